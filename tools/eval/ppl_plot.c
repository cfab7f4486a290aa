#include "ppl.h"

#include "svg.h"

#include <math.h>
#include <string.h>

enum { ASIDE = 12 };

/* Policies that differ in their size alone, L or W, by rising bytes: joined by a line. */
typedef struct plot_line {
    char name[POLICY_TEXT];
    const ppl_point *point[POLICIES_MAX];
    size_t count;
} plot_line;

/* A policy's text without its L and W; those, such as "L=64", into `size`. */
static void split_name(const char *text, char *name, char *size)
{
    *name = *size = 0;
    while (*text) {
        const size_t n = strcspn(text, ":");
        const bool is_size = n > 2 && (text[0] == 'L' || text[0] == 'W') && text[1] == '=';
        char *to = is_size ? size : name;
        snprintf(to + strlen(to), POLICY_TEXT - strlen(to), "%s%.*s", *to ? ":" : "", (int)n, text);
        text += n + (text[n] == ':');
    }
}

static void add_point(plot_line *line, const ppl_point *p)
{
    size_t at = line->count++;
    for (; at > 0 && line->point[at - 1]->bytes > p->bytes; at--)
        line->point[at] = line->point[at - 1];
    line->point[at] = p;
}

/* How many lines the points make; in the order of their first points. */
static size_t find_lines(const ppl_point *point, size_t points, plot_line *line)
{
    char name[POLICY_TEXT], size[POLICY_TEXT];
    size_t lines = 0;
    for (size_t i = 0; i < points; i++) {
        size_t at = 0;
        split_name(point[i].name, name, size);
        while (at < lines && strcmp(line[at].name, name))
            at++;
        if (at == lines) {
            memcpy(line[lines].name, name, sizeof name);
            line[lines++].count = 0;
        }
        add_point(&line[at], &point[i]);
    }
    return lines;
}

/* Bytes of a label's unit, by the largest value. */
static double unit_of(double most, const char **title)
{
    static const struct {
        double bytes;
        const char *title;
    } units[] = {{1e9, "keys and values in the cache, GB"},
                 {1e6, "keys and values in the cache, MB"},
                 {1e3, "keys and values in the cache, kB"}};
    size_t i = 0;
    while (i < 2 && most < units[i].bytes)
        i++;
    *title = units[i].title;
    return units[i].bytes;
}

static void draw_head(const svg *s, const ppl_results *r)
{
    dcm_device_info device;
    size_t scored = 0;
    for (size_t i = 0; i < r->texts; i++)
        scored += r->text[i].text.count - r->text[i].first;
    dcm_device_get_info(r->e->r.device, &device);
    fprintf(s->out, "<text x=\"%d\" y=\"24\" font-size=\"16\" font-weight=\"bold\">", SVG_LEFT);
    svg_text(s->out, r->e->r.info.name);
    fprintf(s->out, "</text>\n<text x=\"%d\" y=\"42\">", SVG_LEFT);
    if (r->texts > 1)
        fprintf(s->out, "mean over %zu texts", r->texts);
    else
        svg_text(s->out, r->text->text.name ? r->text->text.name : "one text");
    fprintf(s->out, ", %zu predictions; bars: %g %% of resamples; ", scored, r->e->o->intervals.percent);
    svg_text(s->out, device.name);
    fprintf(s->out, "</text>\n");
}

/* Pixels across of a line's point: where earlier lines have one of equal bytes, beside theirs. */
static double place(const svg *s, const plot_line *line, size_t series, double bytes)
{
    int beside = 0;
    for (size_t i = 0; i < series; i++)
        for (size_t j = 0; j < line[i].count; j++)
            beside += fabs(line[i].point[j]->bytes / bytes - 1) < 0.01;
    return svg_x(s, bytes) + ASIDE * beside;
}

/* The interval as a bar with a cap at each end. */
static void draw_interval(const svg *s, const ppl_point *p, double x, size_t series)
{
    const double low = svg_y(s, p->interval.low), high = svg_y(s, p->interval.high);
    if (!isfinite(low) || !isfinite(high))
        return;
    fprintf(s->out, "<path class=\"interval\" d=\"M%.2f %.2fh10m-5 0V%.2fm-5 0h10\" fill=\"none\" stroke=\"%s\"/>\n",
            x - 5, low, high, svg_colour(series));
}

static void draw_point(const svg *s, const ppl_point *p, double x, size_t series)
{
    char name[POLICY_TEXT], size[POLICY_TEXT];
    draw_interval(s, p, x, series);
    svg_marker(s, x, svg_y(s, p->kl), series, false);
    fprintf(s->out, "<title>");
    svg_text(s->out, p->name);
    fprintf(s->out, ": KL %.5f, %.5f to %.5f, %.0f bytes</title>", p->kl, p->interval.low, p->interval.high, p->bytes);
    svg_marker_end(s, series);
    split_name(p->name, name, size);
    fprintf(s->out, "\n<text class=\"size\" x=\"%.2f\" y=\"%.2f\" font-size=\"11\" fill=\"%s\">", x + 8,
            svg_y(s, p->kl) - 6, svg_colour(series));
    svg_text(s->out, size);
    fprintf(s->out, "</text>\n");
}

static void draw_line(const svg *s, const plot_line *line, size_t series)
{
    const plot_line *l = &line[series];
    const int row = svg_row(series);
    fprintf(s->out, "<g class=\"series\">\n");
    svg_marker(s, SVG_LEFT + 20, row, series, false);
    svg_marker_end(s, series);
    fprintf(s->out, "<text x=\"%d\" y=\"%d\" dy=\"0.35em\">", SVG_LEFT + 50, row);
    svg_text(s->out, l->name);
    fprintf(s->out, "</text>\n<polyline fill=\"none\" stroke=\"%s\" points=\"", svg_colour(series));
    for (size_t i = 0; i < l->count; i++)
        fprintf(s->out, "%s%.2f,%.2f", i ? " " : "", place(s, line, series, l->point[i]->bytes),
                svg_y(s, l->point[i]->kl));
    fprintf(s->out, "\"/>\n");
    for (size_t i = 0; i < l->count; i++)
        draw_point(s, l->point[i], place(s, line, series, l->point[i]->bytes), series);
    fprintf(s->out, "</g>\n");
}

void ppl_plot(const ppl_results *r, const ppl_point *point, FILE *out)
{
    double least = point[0].bytes, most = 0, kl = 0;
    const char *title;
    plot_line line[POLICIES_MAX];
    const size_t lines = find_lines(point, r->policies, line);
    for (size_t i = 0; i < r->policies; i++) {
        least = fmin(least, point[i].bytes);
        most = fmax(most, point[i].bytes);
        kl = fmax(kl, fmax(point[i].kl, point[i].interval.high)); /* fmax passes NAN over */
    }
    const double unit = unit_of(most, &title);
    const svg s = {.out = out, .x = svg_logarithmic(least, most, unit), .y = svg_linear(kl, 1e-6), .rows = lines};
    svg_begin(&s, "KL to the full cache against bytes");
    draw_head(&s, r);
    svg_axes(&s, title, "KL to the full cache, nats a token");
    for (size_t i = 0; i < lines; i++)
        draw_line(&s, line, i);
    svg_end(&s);
}
