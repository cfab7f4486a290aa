/* Step time against context as an SVG: p50 and p99 of every decoding test, a pair of lines a policy. */
#include "bench.h"

#include "svg.h"

#include <inttypes.h>
#include <math.h>

typedef struct plot {
    svg s;
    const bench *b;
    bool several_sizes;
} plot;

static bool first_of_series(const bench *b, size_t i) { return b->cases[i].decode && i % b->depths == 0; }

static void measure(plot *p)
{
    double tokens = 0, ms = 0;
    const bench_case *first = NULL;
    for (size_t i = 0; i < p->b->count; i++) {
        const bench_case *c = &p->b->cases[i];
        double p50, p99;
        if (first_of_series(p->b, i)) {
            p->s.rows++;
            p->several_sizes = p->several_sizes || (first && first->size != c->size);
            first = first ? first : c;
        }
        if (!c->decode || !c->steps)
            continue;
        bench_step_times(p->b, c, &p50, &p99);
        tokens = fmax(tokens, (double)c->depth);
        ms = fmax(ms, p99);
    }
    p->s.x = svg_linear(tokens, 1);
    p->s.y = svg_linear(ms, 1e-6);
}

/* One of the two lines of a series: points joined, then a marker each, with its figures for those who point at it. */
static void draw_line(const plot *p, const bench_case *cases, size_t series, bool p99)
{
    FILE *out = p->s.out;
    double ms[2];
    fprintf(out, "<polyline class=\"%s\" fill=\"none\" stroke=\"%s\" stroke-width=\"2\"%s points=\"",
            p99 ? "p99" : "p50", svg_colour(series), p99 ? " stroke-dasharray=\"5 4\"" : "");
    for (size_t i = 0; i < p->b->depths; i++) {
        if (!cases[i].steps)
            continue;
        bench_step_times(p->b, &cases[i], &ms[0], &ms[1]);
        fprintf(out, "%.2f,%.2f ", svg_x(&p->s, (double)cases[i].depth), svg_y(&p->s, ms[p99]));
    }
    fprintf(out, "\"/>\n");
    for (size_t i = 0; i < p->b->depths; i++) {
        if (!cases[i].steps)
            continue;
        bench_step_times(p->b, &cases[i], &ms[0], &ms[1]);
        svg_marker(&p->s, svg_x(&p->s, (double)cases[i].depth), svg_y(&p->s, ms[p99]), series, p99);
        fprintf(out, "<title>");
        svg_text(out, cases[i].name);
        fprintf(out, ", %s: p50 %.3f ms, p99 %.3f ms</title>", cases[i].test, ms[0], ms[1]);
        svg_marker_end(&p->s, series);
        fputc('\n', out);
    }
}

static void draw_series(const plot *p, const bench_case *cases, size_t series)
{
    FILE *out = p->s.out;
    const int y = svg_row(series);
    fprintf(out, "<g class=\"series\">\n<path d=\"M%d %dh40\" stroke=\"%s\" stroke-width=\"2\"/>", SVG_LEFT, y,
            svg_colour(series));
    svg_marker(&p->s, SVG_LEFT + 20, y, series, false);
    svg_marker_end(&p->s, series);
    fprintf(out, "<text x=\"%d\" y=\"%d\" dy=\"0.35em\">", SVG_LEFT + 50, y);
    svg_text(out, cases[0].name);
    if (p->several_sizes)
        fprintf(out, ", tg%" PRIu64, cases[0].size);
    fprintf(out, "</text>\n");
    draw_line(p, cases, series, true);
    draw_line(p, cases, series, false);
    fprintf(out, "</g>\n");
}

static void draw_head(const plot *p)
{
    dcm_device_info device;
    bool busy = false;
    dcm_device_get_info(p->b->r.device, &device);
    for (size_t i = 0; i < p->b->count; i++)
        busy = busy || p->b->cases[i].state == BENCH_BUSY;
    fprintf(p->s.out, "<text x=\"%d\" y=\"24\" font-size=\"16\" font-weight=\"bold\">", SVG_LEFT);
    svg_text(p->s.out, p->b->r.info.name);
    fprintf(p->s.out, "</text>\n<text x=\"%d\" y=\"42\">", SVG_LEFT);
    svg_text(p->s.out, device.name);
    fprintf(p->s.out, "; lines: p50, dashed: p99%s</text>\n", busy ? "; the machine was busy meanwhile" : "");
}

void bench_plot(const bench *b, FILE *out)
{
    plot p = {.s.out = out, .b = b};
    measure(&p);
    svg_begin(&p.s, "Time of a decoded token against context");
    draw_head(&p);
    svg_axes(&p.s, "context: tokens in the cache before the test", "time of a decoded token, ms");
    for (size_t i = 0, series = 0; i < b->count; i++)
        if (first_of_series(b, i))
            draw_series(&p, &b->cases[i], series++);
    svg_end(&p.s);
}
