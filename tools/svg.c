#include "svg.h"

#include "runtime.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

enum { NAME_MAX_CHARS = 100, LINEAR_TICKS = 5, TICKS_A_DECADE = 3 };

/* From the ninth series on with square markers. */
static const char *const colours[] = {"#0072b2", "#d55e00", "#009e73", "#aa3377",
                                      "#996600", "#4a3aa7", "#000000", "#56a0c8"};
enum { COLOURS = sizeof colours / sizeof *colours };

const char *svg_colour(size_t series) { return colours[series % COLOURS]; }

/* ---- Text ---- */

void svg_text(FILE *out, const char *text)
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

static void put_label(FILE *out, const svg_axis *a, double value)
{
    if (a->logarithmic)
        fprintf(out, "%g", value / a->unit);
    else if (a->digits)
        fprintf(out, "%.*f", a->digits, value / a->unit);
    else
        put_count(out, (uint64_t)llround(value / a->unit));
}

/* ---- Scales ---- */

svg_axis svg_linear(double most, double least_step)
{
    const double rough = fmax(most / LINEAR_TICKS, least_step), power = pow(10, floor(log10(rough)));
    const double part = rough / power;
    svg_axis a = {.step = fmax((part <= 1.001   ? 1
                                : part <= 2.001 ? 2
                                : part <= 5.001 ? 5
                                                : 10) *
                                   power,
                               least_step),
                  .unit = 1};
    a.most = a.step * fmax(ceil(most / a.step - 1e-9), 1);
    a.digits = a.step < 1 ? (int)ceil(-log10(a.step) - 1e-9) : 0;
    return a;
}

/* The tick of a number: 0 is 1, 1 is 2, 2 is 5, 3 is 10. */
static double tick(int number)
{
    static const int mantissa[TICKS_A_DECADE] = {1, 2, 5};
    const int decade = (int)floor((double)number / TICKS_A_DECADE);
    return mantissa[number - decade * TICKS_A_DECADE] * pow(10, decade);
}

svg_axis svg_logarithmic(double least, double most, double unit)
{
    int low = TICKS_A_DECADE * (int)floor(log10(least)) + TICKS_A_DECADE, high;
    while (tick(low) >= least * (1 - 1e-9))
        low--;
    for (high = low + 1; tick(high) <= most * (1 + 1e-9);)
        high++;
    return (svg_axis){.logarithmic = true, .least = tick(low), .most = tick(high), .step = low, .unit = unit};
}

svg_axis svg_binary(double least, double most)
{
    return (svg_axis){.logarithmic = true, .binary = true, .least = least / 2, .most = most * 2, .unit = 1};
}

/* The value of tick `i`; NAN behind the last one. */
static double tick_value(const svg_axis *a, int i)
{
    const double value = a->binary ? ldexp(a->least, i) : a->logarithmic ? tick((int)a->step + i) : i * a->step;
    return value <= a->most * 1.0001 ? value : NAN;
}

static double share(const svg_axis *a, double value)
{
    return a->logarithmic ? log(value / a->least) / log(a->most / a->least) : value / a->most;
}

double svg_x(const svg *s, double value) { return SVG_LEFT + share(&s->x, value) * (SVG_WIDTH - SVG_LEFT - SVG_RIGHT); }
double svg_y(const svg *s, double value) { return svg_top(s) + SVG_AREA - share(&s->y, value) * SVG_AREA; }
int svg_top(const svg *s) { return svg_row(s->rows) + SVG_LEGEND_ROW / 2; }
int svg_row(size_t series) { return SVG_HEAD + SVG_LEGEND_ROW * (int)series; }

/* ---- Parts ---- */

void svg_begin(const svg *s, const char *title)
{
    const int height = svg_top(s) + SVG_AREA + SVG_FOOT;
    fprintf(s->out,
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\" "
            "font-family=\"sans-serif\" font-size=\"13\" fill=\"" SVG_INK "\">\n"
            "<title>%s</title>\n"
            "<rect width=\"%d\" height=\"%d\" fill=\"#ffffff\"/>\n",
            SVG_WIDTH, height, SVG_WIDTH, height, title, SVG_WIDTH, height);
}

void svg_end(const svg *s) { fprintf(s->out, "</svg>\n"); }

void svg_axes(const svg *s, const char *x_title, const char *y_title)
{
    FILE *out = s->out;
    const int top = svg_top(s), middle = (SVG_LEFT + SVG_WIDTH - SVG_RIGHT) / 2;
    fprintf(out, "<g class=\"x\" text-anchor=\"middle\">\n");
    for (int i = 0; !isnan(tick_value(&s->x, i)); i++) {
        const double x = svg_x(s, tick_value(&s->x, i));
        fprintf(out, "<path d=\"M%.2f %dV%d\" stroke=\"#dddddd\"/><text x=\"%.2f\" y=\"%d\">", x, top, top + SVG_AREA,
                x, top + SVG_AREA + 20);
        put_label(out, &s->x, tick_value(&s->x, i));
        fprintf(out, "</text>\n");
    }
    fprintf(out, "<text x=\"%d\" y=\"%d\">%s</text>\n</g>\n", middle, top + SVG_AREA + 44, x_title);
    fprintf(out, "<g class=\"y\" text-anchor=\"end\">\n");
    for (int i = 0; !isnan(tick_value(&s->y, i)); i++) {
        const double y = svg_y(s, tick_value(&s->y, i));
        fprintf(out, "<path d=\"M%d %.2fH%d\" stroke=\"#dddddd\"/><text x=\"%d\" y=\"%.2f\" dy=\"0.35em\">", SVG_LEFT,
                y, SVG_WIDTH - SVG_RIGHT, SVG_LEFT - 8, y);
        put_label(out, &s->y, tick_value(&s->y, i));
        fprintf(out, "</text>\n");
    }
    fprintf(out, "</g>\n<text transform=\"translate(20 %d) rotate(-90)\" text-anchor=\"middle\">%s</text>\n",
            top + SVG_AREA / 2, y_title);
    fprintf(out, "<path d=\"M%d %dV%dH%d\" fill=\"none\" stroke=\"" SVG_INK "\"/>\n", SVG_LEFT, top, top + SVG_AREA,
            SVG_WIDTH - SVG_RIGHT);
}

void svg_marker(const svg *s, double x, double y, size_t series, bool hollow)
{
    const char *colour = svg_colour(series);
    if (series < COLOURS)
        fprintf(s->out, "<circle cx=\"%.2f\" cy=\"%.2f\" r=\"4\"", x, y);
    else
        fprintf(s->out, "<rect x=\"%.2f\" y=\"%.2f\" width=\"8\" height=\"8\"", x - 4, y - 4);
    fprintf(s->out, " fill=\"%s\" stroke=\"%s\" stroke-width=\"1.5\">", hollow ? "#ffffff" : colour, colour);
}

void svg_marker_end(const svg *s, size_t series) { fprintf(s->out, "</%s>", series < COLOURS ? "circle" : "rect"); }
