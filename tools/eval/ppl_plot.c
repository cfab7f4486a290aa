#include "ppl.h"

#include "svg.h"

#include <math.h>

enum { ASIDE = 12 };

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

/* Pixels across of a point: those of equal bytes stand side by side. */
static double place(const svg *s, const ppl_point *point, size_t series)
{
    int beside = 0;
    for (size_t i = 0; i < series; i++)
        beside += fabs(point[i].bytes / point[series].bytes - 1) < 0.01;
    return svg_x(s, point[series].bytes) + ASIDE * beside;
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

static void draw_point(const svg *s, const ppl_point *point, size_t series)
{
    const ppl_point *p = &point[series];
    const double x = place(s, point, series);
    const int row = svg_row(series);
    fprintf(s->out, "<g class=\"series\">\n");
    svg_marker(s, SVG_LEFT + 20, row, series, false);
    svg_marker_end(s, series);
    fprintf(s->out, "<text x=\"%d\" y=\"%d\" dy=\"0.35em\">", SVG_LEFT + 50, row);
    svg_text(s->out, p->name);
    fprintf(s->out, "</text>\n");
    draw_interval(s, p, x, series);
    svg_marker(s, x, svg_y(s, p->kl), series, false);
    fprintf(s->out, "<title>");
    svg_text(s->out, p->name);
    fprintf(s->out, ": KL %.5f, %.5f to %.5f, %.0f bytes</title>", p->kl, p->interval.low, p->interval.high, p->bytes);
    svg_marker_end(s, series);
    fprintf(s->out, "\n</g>\n");
}

void ppl_plot(const ppl_results *r, const ppl_point *point, FILE *out)
{
    double least = point[0].bytes, most = 0, kl = 0;
    const char *title;
    for (size_t i = 0; i < r->policies; i++) {
        least = fmin(least, point[i].bytes);
        most = fmax(most, point[i].bytes);
        kl = fmax(kl, fmax(point[i].kl, point[i].interval.high)); /* fmax passes NAN over */
    }
    const double unit = unit_of(most, &title);
    const svg s = {.out = out, .x = svg_logarithmic(least, most, unit), .y = svg_linear(kl, 1e-6), .rows = r->policies};
    svg_begin(&s, "KL to the full cache against bytes");
    draw_head(&s, r);
    svg_axes(&s, title, "KL to the full cache, nats a token");
    for (size_t i = 0; i < r->policies; i++)
        draw_point(&s, point, i);
    svg_end(&s);
}
