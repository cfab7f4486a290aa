/* Step time against context as an SVG: p50 and p99 of every decoding test, a pair of lines a policy. */
#include "bench.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

/* Pixels of the drawing: the area between the axes, and what stands around it. */
enum { WIDTH = 960, LEFT = 76, RIGHT = 32, HEAD = 62, LEGEND_ROW = 20, AREA = 400, FOOT = 66, NAME_MAX_CHARS = 100 };

/* Told apart on white, also by those who do not see all colours; from the ninth on with square markers. */
static const char *const colours[] = {"#0072b2", "#d55e00", "#009e73", "#aa3377",
                                      "#996600", "#4a3aa7", "#000000", "#56a0c8"};
enum { COLOURS = sizeof colours / sizeof *colours };

#define INK "#222222"

typedef struct axis {
    double most, step; /* the last tick's value; between ticks */
    int digits;        /* after the point */
} axis;

typedef struct plot {
    const bench *b;
    FILE *out;
    size_t series;
    bool several_sizes;
    axis x, y;
    int top; /* of the area */
} plot;

/* ---- Text ---- */

/* As XML has it; bytes that XML cannot have become question marks. */
static void put_text(FILE *out, const char *text)
{
    json_t *valid = runtime_text(text);
    const char *at = json_string_value(valid);
    size_t chars = 0;
    for (; at && *at && chars < NAME_MAX_CHARS; at++) {
        chars += ((unsigned char)*at & 0xc0) != 0x80;
        switch (*at) {
        case '&': fputs("&amp;", out); break;
        case '<': fputs("&lt;", out); break;
        case '>': fputs("&gt;", out); break;
        case '"': fputs("&quot;", out); break;
        default: fputc((unsigned char)*at < ' ' ? '?' : *at, out);
        }
    }
    for (; at && ((unsigned char)*at & 0xc0) == 0x80; at++)
        fputc(*at, out);
    if (at && *at)
        fputs("...", out);
    json_decref(valid);
}

/* 12,345 */
static void put_count(FILE *out, uint64_t n)
{
    if (n >= 1000) {
        put_count(out, n / 1000);
        fprintf(out, ",%03" PRIu64, n % 1000);
    } else {
        fprintf(out, "%" PRIu64, n);
    }
}

/* ---- Scales ---- */

/* Some five ticks of 1, 2 or 5 times a power of ten from 0 on, the last at or above `most`. */
static axis make_axis(double most, double least_step)
{
    const double rough = fmax(most / 5, least_step), power = pow(10, floor(log10(rough))), part = rough / power;
    axis a = {.step = fmax((part <= 1.001 ? 1 : part <= 2.001 ? 2 : part <= 5.001 ? 5 : 10) * power, least_step)};
    a.most = a.step * fmax(ceil(most / a.step - 1e-9), 1);
    a.digits = a.step < 1 ? (int)ceil(-log10(a.step) - 1e-9) : 0;
    return a;
}

static double at_x(const plot *p, double tokens) { return LEFT + tokens / p->x.most * (WIDTH - LEFT - RIGHT); }
static double at_y(const plot *p, double ms) { return p->top + AREA - ms / p->y.most * AREA; }

/* ---- Parts ---- */

static bool first_of_series(const bench *b, size_t i) { return b->cases[i].decode && i % b->depths == 0; }

static void measure(plot *p)
{
    double tokens = 0, ms = 0;
    const bench_case *first = NULL;
    for (size_t i = 0; i < p->b->count; i++) {
        const bench_case *c = &p->b->cases[i];
        double p50, p99;
        if (first_of_series(p->b, i)) {
            p->series++;
            p->several_sizes = p->several_sizes || (first && first->size != c->size);
            first = first ? first : c;
        }
        if (!c->decode || !c->steps)
            continue;
        bench_step_times(p->b, c, &p50, &p99);
        tokens = fmax(tokens, (double)c->depth);
        ms = fmax(ms, p99);
    }
    p->x = make_axis(tokens, 1);
    p->y = make_axis(ms, 1e-6);
    p->top = HEAD + LEGEND_ROW * (int)p->series + 10;
}

static void draw_axes(const plot *p)
{
    FILE *out = p->out;
    fprintf(out, "<g class=\"x\" text-anchor=\"middle\">\n");
    for (int i = 0; i * p->x.step <= p->x.most * 1.0001; i++) {
        const double x = at_x(p, i * p->x.step);
        fprintf(out, "<path d=\"M%.2f %dV%d\" stroke=\"#dddddd\"/><text x=\"%.2f\" y=\"%d\">", x, p->top, p->top + AREA,
                x, p->top + AREA + 20);
        put_count(out, (uint64_t)llround(i * p->x.step));
        fprintf(out, "</text>\n");
    }
    fprintf(out, "<text x=\"%d\" y=\"%d\">context: tokens in the cache before the test</text>\n</g>\n",
            (LEFT + WIDTH - RIGHT) / 2, p->top + AREA + 44);
    fprintf(out, "<g class=\"y\" text-anchor=\"end\">\n");
    for (int i = 0; i * p->y.step <= p->y.most * 1.0001; i++) {
        const double y = at_y(p, i * p->y.step);
        fprintf(out,
                "<path d=\"M%d %.2fH%d\" stroke=\"#dddddd\"/><text x=\"%d\" y=\"%.2f\" dy=\"0.35em\">%.*f</text>\n",
                LEFT, y, WIDTH - RIGHT, LEFT - 8, y, p->y.digits, i * p->y.step);
    }
    fprintf(out, "</g>\n<text transform=\"translate(20 %d) rotate(-90)\" text-anchor=\"middle\">", p->top + AREA / 2);
    fprintf(out, "time of a decoded token, ms</text>\n");
    fprintf(out, "<path d=\"M%d %dV%dH%d\" fill=\"none\" stroke=\"" INK "\"/>\n", LEFT, p->top, p->top + AREA,
            WIDTH - RIGHT);
}

static void draw_marker(const plot *p, double x, double y, size_t series, bool p99)
{
    const char *colour = colours[series % COLOURS];
    if (series < COLOURS)
        fprintf(p->out, "<circle cx=\"%.2f\" cy=\"%.2f\" r=\"4\"", x, y);
    else
        fprintf(p->out, "<rect x=\"%.2f\" y=\"%.2f\" width=\"8\" height=\"8\"", x - 4, y - 4);
    fprintf(p->out, " fill=\"%s\" stroke=\"%s\" stroke-width=\"1.5\"", p99 ? "#ffffff" : colour, colour);
}

/* One of the two lines of a series: points joined, then a marker each, with its figures for those who point at it. */
static void draw_line(const plot *p, const bench_case *cases, size_t series, bool p99)
{
    FILE *out = p->out;
    double ms[2];
    fprintf(out, "<polyline class=\"%s\" fill=\"none\" stroke=\"%s\" stroke-width=\"2\"%s points=\"",
            p99 ? "p99" : "p50", colours[series % COLOURS], p99 ? " stroke-dasharray=\"5 4\"" : "");
    for (size_t i = 0; i < p->b->depths; i++) {
        if (!cases[i].steps)
            continue;
        bench_step_times(p->b, &cases[i], &ms[0], &ms[1]);
        fprintf(out, "%.2f,%.2f ", at_x(p, (double)cases[i].depth), at_y(p, ms[p99]));
    }
    fprintf(out, "\"/>\n");
    for (size_t i = 0; i < p->b->depths; i++) {
        if (!cases[i].steps)
            continue;
        bench_step_times(p->b, &cases[i], &ms[0], &ms[1]);
        draw_marker(p, at_x(p, (double)cases[i].depth), at_y(p, ms[p99]), series, p99);
        fprintf(out, "><title>");
        put_text(out, cases[i].name);
        fprintf(out, ", %s: p50 %.3f ms, p99 %.3f ms</title></%s>\n", cases[i].test, ms[0], ms[1],
                series < COLOURS ? "circle" : "rect");
    }
}

static void draw_series(const plot *p, const bench_case *cases, size_t series)
{
    FILE *out = p->out;
    const int y = HEAD + LEGEND_ROW * (int)series;
    fprintf(out, "<g class=\"series\">\n<path d=\"M%d %dh40\" stroke=\"%s\" stroke-width=\"2\"/>", LEFT, y,
            colours[series % COLOURS]);
    draw_marker(p, LEFT + 20, y, series, false);
    fprintf(out, "/><text x=\"%d\" y=\"%d\" dy=\"0.35em\">", LEFT + 50, y);
    put_text(out, cases[0].name);
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
    fprintf(p->out, "<text x=\"%d\" y=\"24\" font-size=\"16\" font-weight=\"bold\">", LEFT);
    put_text(p->out, p->b->r.info.name);
    fprintf(p->out, "</text>\n<text x=\"%d\" y=\"42\">", LEFT);
    put_text(p->out, device.name);
    fprintf(p->out, "; lines: p50, dashed: p99%s</text>\n", busy ? "; the machine was busy meanwhile" : "");
}

void bench_plot(const bench *b, FILE *out)
{
    plot p = {.b = b, .out = out};
    measure(&p);
    const int height = p.top + AREA + FOOT;
    fprintf(out,
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\" "
            "font-family=\"sans-serif\" font-size=\"13\" fill=\"" INK "\">\n"
            "<title>Time of a decoded token against context</title>\n"
            "<rect width=\"%d\" height=\"%d\" fill=\"#ffffff\"/>\n",
            WIDTH, height, WIDTH, height, WIDTH, height);
    draw_head(&p);
    draw_axes(&p);
    for (size_t i = 0, series = 0; i < b->count; i++)
        if (first_of_series(b, i))
            draw_series(&p, &b->cases[i], series++);
    fprintf(out, "</svg>\n");
}
