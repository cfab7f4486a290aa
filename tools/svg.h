/* Drawings of values over an area with two axes, as SVG: what every plot of the program shares. */
#ifndef SVG_H
#define SVG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* Pixels of the drawing: the area between the axes, and what stands around it. */
enum {
    SVG_WIDTH = 960,
    SVG_LEFT = 76,
    SVG_RIGHT = 32,
    SVG_HEAD = 62,
    SVG_LEGEND_ROW = 20,
    SVG_AREA = 400,
    SVG_FOOT = 66
};

#define SVG_INK "#222222"

/* From `least` to `most`, both ticks: linear ones `step` apart; logarithmic ones at 1, 2 and 5 times powers of ten, or
 * at powers of two. */
typedef struct svg_axis {
    bool logarithmic, binary;
    double least, most, step;
    double unit; /* a tick's label is its value divided by this */
    int digits;  /* of a label after the point; 0: whole numbers with commas */
} svg_axis;

/* Some five ticks of 1, 2 or 5 times a power of ten from 0 on, the last at or above `most`. */
svg_axis svg_linear(double most, double least_step);

/* The ticks around least .. most, which are positive; one more on both sides where they are on a tick. */
svg_axis svg_logarithmic(double least, double most, double unit);

/* Powers of two from the half of `least` to the double of `most`, both powers of two too. */
svg_axis svg_binary(double least, double most);

/* A drawing with `rows` rows of legend above the area. */
typedef struct svg {
    FILE *out;
    svg_axis x, y;
    size_t rows;
} svg;

/* Pixels of a value, and of the area's upper edge. */
double svg_x(const svg *s, double value);
double svg_y(const svg *s, double value);
int svg_top(const svg *s);

/* Begin the drawing, which is called `title`. Axes come next; what is drawn over them follows. */
void svg_begin(const svg *s, const char *title);
void svg_axes(const svg *s, const char *x, const char *y);
void svg_end(const svg *s);

/* Text as XML has it, at most 100 characters; bytes that XML cannot have become question marks. */
void svg_text(FILE *out, const char *text);

/* Colours told apart on white, also by those who do not see all of them. */
const char *svg_colour(size_t series);

/* A marker, hollow or not, of a series; what stands inside it, and svg_marker_end, must follow. */
void svg_marker(const svg *s, double x, double y, size_t series, bool hollow);
void svg_marker_end(const svg *s, size_t series);

/* Middle of a series' row of the legend. */
int svg_row(size_t series);

#endif
