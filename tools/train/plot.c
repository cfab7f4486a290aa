#include "journal.h"

#include "output.h"
#include "svg.h"
#include "tool.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MEAN_OVER = 24 }; /* steps */

/* Rows of a journal: step, the loss's KL, and the held-out one where it was tested, else NAN. */
typedef struct curve {
    double *step, *kl, *held;
    size_t count, room;
} curve;

static double field(const char *line, int number)
{
    for (; number && line; number--)
        line = (line = strchr(line, ',')) ? line + 1 : NULL;
    return line && *line != ',' ? atof(line) : NAN;
}

static int grow(curve *c)
{
    double **const all[] = {&c->step, &c->kl, &c->held};
    c->room = c->room ? 2 * c->room : 256;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        double *grown = realloc(*all[i], c->room * sizeof *grown);
        if (!grown)
            return tool_fail(DCM_ERR_MEMORY, "no room for the rows of a plot");
        *all[i] = grown;
    }
    return 0;
}

static int read_rows(curve *c, const char *path)
{
    enum { KL = 3, HELD = 6 }; /* columns of journal.c's header */
    char line[512];
    int code = 0;
    FILE *in = fopen(path, "r");
    if (!in)
        return tool_fail(DCM_ERR_FILE, "%s: %s", path, strerror(errno));
    while (code == 0 && fgets(line, sizeof line, in)) {
        if (*line < '0' || *line > '9')
            continue;
        if (c->count == c->room)
            code = grow(c);
        if (code == 0) {
            c->step[c->count] = field(line, 0);
            c->kl[c->count] = field(line, KL);
            c->held[c->count++] = field(line, HELD);
        }
    }
    fclose(in);
    return code;
}

/* Of the steps up to row i. */
static double running_mean(const curve *c, size_t i)
{
    const size_t first = i < MEAN_OVER ? 0 : i + 1 - MEAN_OVER;
    double sum = 0;
    for (size_t k = first; k <= i; k++)
        sum += c->kl[k];
    return sum / (double)(i + 1 - first);
}

static double highest(const curve *c)
{
    double most = 0;
    for (size_t i = 0; i < c->count; i++)
        most = fmax(fmax(most, running_mean(c, i)), c->held[i]); /* fmax passes NAN over */
    return most;
}

static void draw_name(const svg *s, size_t series, const char *name)
{
    svg_marker(s, SVG_LEFT + 20, svg_row(series), series, false);
    svg_marker_end(s, series);
    fprintf(s->out, "<text x=\"%d\" y=\"%d\" dy=\"0.35em\">%s</text>\n", SVG_LEFT + 50, svg_row(series), name);
}

static void draw_losses(const svg *s, const curve *c)
{
    char name[64];
    snprintf(name, sizeof name, "training texts, mean of %d steps", MEAN_OVER);
    draw_name(s, 0, name);
    fprintf(s->out, "<polyline class=\"series\" fill=\"none\" stroke=\"%s\" points=\"", svg_colour(0));
    for (size_t i = 0; i < c->count; i++)
        fprintf(s->out, "%.2f,%.2f ", svg_x(s, c->step[i]), svg_y(s, running_mean(c, i)));
    fprintf(s->out, "\"/>\n");
}

static void draw_held(const svg *s, const curve *c)
{
    draw_name(s, 1, "held-out texts");
    for (size_t i = 0; i < c->count; i++) {
        if (isnan(c->held[i]))
            continue;
        svg_marker(s, svg_x(s, c->step[i]), svg_y(s, c->held[i]), 1, false);
        fprintf(s->out, "<title>step %.0f: KL %.4f</title>", c->step[i], c->held[i]);
        svg_marker_end(s, 1);
    }
}

int journal_plot(const char *csv, const char *path)
{
    curve c = {0};
    output_file file = {0};
    int code = read_rows(&c, csv);
    if (code == 0 && c.count)
        code = output_open(&file, path);
    if (code == 0 && c.count) {
        const svg s = {
            .out = file.out, .x = svg_linear(c.step[c.count - 1], 1), .y = svg_linear(highest(&c), 1e-6), .rows = 2};
        svg_begin(&s, "KL to the full cache while training");
        fprintf(s.out, "<text x=\"%d\" y=\"24\" font-size=\"16\" font-weight=\"bold\">KL to the full cache, all group "
                       "lengths</text>\n", SVG_LEFT);
        svg_axes(&s, "step", "KL(full || compressed), nats a token");
        draw_losses(&s, &c);
        draw_held(&s, &c);
        svg_end(&s);
    }
    const int closed = output_close(&file, code == 0);
    free(c.step);
    free(c.kl);
    free(c.held);
    return code ? code : closed;
}
