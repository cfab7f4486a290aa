#include "tables.h"

#include "svg.h"

#include <math.h>
#include <string.h>

static void draw_head(const svg *s, const tables_run *run)
{
    const char *file = run->o->source.input.file;
    dcm_device_info device;
    dcm_device_get_info(run->e.r.device, &device);
    fprintf(s->out, "<text x=\"%d\" y=\"24\" font-size=\"16\" font-weight=\"bold\">", SVG_LEFT);
    svg_text(s->out, run->e.r.info.name);
    fprintf(s->out, "</text>\n<text x=\"%d\" y=\"42\">", SVG_LEFT);
    svg_text(s->out, file ? file : "one text");
    fprintf(s->out, ", %zu predictions; ", run->text.count - run->first);
    svg_text(s->out, device.name);
    fprintf(s->out, "</text>\n");
}

/* A file by the group lengths of its training, and its name without folders. */
static void put_name(const tables_run *run, size_t file, FILE *out)
{
    const char *slash = strrchr(run->path[file], '/'), *groups = run->info[file].groups;
    fprintf(out, "trained with L = ");
    svg_text(out, *groups ? groups : "?");
    fprintf(out, " (");
    svg_text(out, slash ? slash + 1 : run->path[file]);
    fprintf(out, ")");
}

static double group_of(const tables_run *run, size_t g) { return (double)run->o->groups.item[g]; }

/* Places of -L by rising group length, in which a line runs. */
static void sort_groups(const tables_run *run, size_t *order)
{
    for (size_t g = 0; g < run->groups; g++) {
        size_t at = g;
        for (; at > 0 && group_of(run, order[at - 1]) > group_of(run, g); at--)
            order[at] = order[at - 1];
        order[at] = g;
    }
}

static void draw_line(const svg *s, const tables_run *run, size_t file)
{
    size_t order[TABLES_GROUPS_MAX];
    const int row = svg_row(file);
    sort_groups(run, order);
    fprintf(s->out, "<g class=\"series\">\n");
    svg_marker(s, SVG_LEFT + 20, row, file, false);
    svg_marker_end(s, file);
    fprintf(s->out, "<text x=\"%d\" y=\"%d\" dy=\"0.35em\">", SVG_LEFT + 50, row);
    put_name(run, file, s->out);
    fprintf(s->out, "</text>\n<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"2\" points=\"", svg_colour(file));
    for (size_t i = 0; i < run->groups; i++)
        fprintf(s->out, "%s%.2f,%.2f", i ? " " : "", svg_x(s, group_of(run, order[i])),
                svg_y(s, tables_kl(run, file * run->groups + order[i])));
    fprintf(s->out, "\"/>\n");
    for (size_t i = 0; i < run->groups; i++) {
        const size_t cache = file * run->groups + order[i];
        svg_marker(s, svg_x(s, group_of(run, order[i])), svg_y(s, tables_kl(run, cache)), file, false);
        fprintf(s->out, "<title>");
        put_name(run, file, s->out);
        fprintf(s->out, ", test L = %.0f: KL %.5f, perplexity %.3f</title>", group_of(run, order[i]),
                tables_kl(run, cache), tables_ppl(run, cache));
        svg_marker_end(s, file);
        fputc('\n', s->out);
    }
    fprintf(s->out, "</g>\n");
}

void tables_plot(const tables_run *run, FILE *out)
{
    double least = group_of(run, 0), most = least, kl = 0;
    for (size_t g = 0; g < run->groups; g++) {
        least = fmin(least, group_of(run, g));
        most = fmax(most, group_of(run, g));
    }
    for (size_t i = 0; i < run->files * run->groups; i++)
        kl = fmax(kl, tables_kl(run, i));
    const svg s = {.out = out, .x = svg_binary(least, most), .y = svg_linear(kl, 1e-6), .rows = run->files};
    svg_begin(&s, "KL to the full cache against the group length at test");
    draw_head(&s, run);
    svg_axes(&s, "test L", "KL to the full cache, nats a token");
    for (size_t i = 0; i < run->files; i++)
        draw_line(&s, run, i);
    svg_end(&s);
}
