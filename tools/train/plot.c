#include "journal.h"

#include "output.h"
#include "regular.h"
#include "svg.h"
#include "tool.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MEAN_OVER = 24 }; /* steps */

/* Rows of a journal: step, the loss's KL and BSD, and the held-out KL where it was tested, else NAN. */
typedef struct curve {
    double *step, *kl, *bsd, *held;
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
    double **const all[] = {&c->step, &c->kl, &c->bsd, &c->held};
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
    enum { KL = 4, BSD = 7, HELD = 8 }; /* columns of journal.c's header */
    char line[JOURNAL_LINE];
    int code = 0;
    uint64_t size;
    FILE *in = regular_open(path, &size);
    if (!in)
        return DCM_ERR_FILE;
    while (code == 0 && fgets(line, sizeof line, in)) {
        if (*line < '0' || *line > '9')
            continue;
        if (c->count == c->room)
            code = grow(c);
        if (code == 0) {
            c->step[c->count] = field(line, 0);
            c->kl[c->count] = field(line, KL);
            c->bsd[c->count] = field(line, BSD);
            c->held[c->count++] = field(line, HELD);
        }
    }
    fclose(in);
    return code;
}

/* Of the steps up to row i. */
static double running_mean(const double *values, size_t i)
{
    const size_t first = i < MEAN_OVER ? 0 : i + 1 - MEAN_OVER;
    double sum = 0;
    for (size_t k = first; k <= i; k++)
        sum += values[k];
    return sum / (double)(i + 1 - first);
}

static double highest(const curve *c, const double *values)
{
    double most = 0;
    for (size_t i = 0; i < c->count; i++)
        most = fmax(most, running_mean(values, i));
    return most;
}

static double highest_kl(const curve *c)
{
    double most = highest(c, c->kl);
    for (size_t i = 0; i < c->count; i++)
        most = fmax(most, c->held[i]); /* fmax passes NAN over */
    return most;
}

static void draw_name(const svg *s, size_t series, const char *name)
{
    svg_marker(s, SVG_LEFT + 20, svg_row(series), series, false);
    svg_marker_end(s, series);
    fprintf(s->out, "<text x=\"%d\" y=\"%d\" dy=\"0.35em\">%s</text>\n", SVG_LEFT + 50, svg_row(series), name);
}

/* Running means, `by` times as high. */
static void draw_means(const svg *s, const curve *c, const double *values, double by, size_t series, const char *name)
{
    draw_name(s, series, name);
    fprintf(s->out, "<polyline class=\"series\" fill=\"none\" stroke=\"%s\" points=\"", svg_colour(series));
    for (size_t i = 0; i < c->count; i++)
        fprintf(s->out, "%.2f,%.2f ", svg_x(s, c->step[i]), svg_y(s, by * running_mean(values, i)));
    fprintf(s->out, "\"/>\n");
}

static void draw_losses(const svg *s, const curve *c)
{
    const double bsd = highest(c, c->bsd), by = highest_kl(c) / bsd;
    char name[96];
    snprintf(name, sizeof name, "training texts, mean of %d steps", MEAN_OVER);
    draw_means(s, c, c->kl, 1, 0, name);
    if (!(bsd > 0))
        return;
    snprintf(name, sizeof name, "their BSD times %.3g, mean of %d steps", by, MEAN_OVER);
    draw_means(s, c, c->bsd, by, 2, name);
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
        const svg s = {.out = file.out,
                       .x = svg_linear(c.step[c.count - 1], 1),
                       .y = svg_linear(highest_kl(&c), 1e-6),
                       .rows = highest(&c, c.bsd) > 0 ? 3 : 2};
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
    free(c.bsd);
    free(c.held);
    return code ? code : closed;
}
