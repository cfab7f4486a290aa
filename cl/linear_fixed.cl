/*
 * Weight matrices: products of quants with x in fixed point, on CPUs that multiply bytes and add the products, four at
 * a time or (DOT2, quants of 4 bits) two. Built behind cl/weights.cl and before cl/linear.cl, for matrices with QUADS.
 *
 * A block of x is cut into three signed bytes a value, X = (c * 256 + b) * 256 + a, |X| <= DOT_TOP, so that x = X
 * * scale with an error of half a unit of X: 2^-24 of the block's largest magnitude, which is what a float of that size
 * has. The products with unsigned quants are then added without any rounding, and the block's sum is rounded to float
 * once: to the same bits with and without DOT2.
 */
#ifndef DOT2
#define DOT2 0 /* 1: by instructions of AVX2, else of AVX-512 VNNI */
#endif
#define DOT_TOP 8355000.0f /* under 127 * 65793 = 8355711 by more than a rounded quotient may be too large */
/* A block's record: BLOCK / 4 words of a, then of b, of c; what the sums of a, b, c begin with; scale; sum of x. */
enum { DOT_A = 0, DOT_B = BLOCK / 4, DOT_C = 2 * (BLOCK / 4), DOT_BEGIN = 3 * (BLOCK / 4), DOT_SCALE = DOT_BEGIN + 3,
       DOT_SUM, DOT_WORDS = DOT_BEGIN + 8 };

/*
 * dot4: s + the products of the 4 unsigned bytes of each u with the 4 signed bytes of x; dot_words: the words that such
 * an s stands for.
 */
#if DOT2
/*
 * Sums of words are kept as two 16-bit halves, of two bytes' products each: those of a block of 32 quants below 16 are
 * at most 16 * 15 * 128 = 30720. One statement, or the compiler puts all products first and sums into memory.
 */
static inline int8 add_halves(int8 s, uint8 u, int8 x)
{
    int8 products;
    __asm__("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(s), "=&x"(products) : "x"(u), "x"(x));
    return s;
}

static inline int8 join_halves(int8 s)
{
    const int8 ones = 0x00010001;
    __asm__("vpmaddwd %1, %0, %0" : "+x"(s) : "x"(ones));
    return s;
}

static inline int16 dot4(int16 s, uint16 u, int x)
{
    return (int16)(add_halves(s.lo, u.lo, (int8)(x)), add_halves(s.hi, u.hi, (int8)(x)));
}

static inline int16 dot_words(int16 s) { return (int16)(join_halves(s.lo), join_halves(s.hi)); }
#else
static inline int16 dot4(int16 s, uint16 u, int x)
{
    const int16 all = (int16)(x);
    __asm__("vpdpbusd %2, %1, %0" : "+v"(s) : "v"(u), "v"(all));
    return s;
}

static inline int16 dot_words(int16 s) { return s; }
#endif

/* To the nearest integers; |t| < 2^23. */
static inline int16 to_integer(float16 t)
{
    const float16 magic = 0x1.8p23f, high = t * (1.0f / 256) + magic, low = fma(high - magic, (float16)(-256.0f), t);
    return (as_int16(high) - as_int16(magic) << 8) + as_int16(low + magic) - as_int16(magic);
}

static inline int total16(int16 v)
{
    const int8 a = v.lo + v.hi;
    const int4 b = a.lo + a.hi;
    return b.x + b.y + (b.z + b.w);
}

/* The lowest signed byte of each, and what is left for the others. */
static inline int16 lowest(int16 x) { return x << 24 >> 24; }
static inline int16 others(int16 x) { return (x - lowest(x)) >> 8; }

/* Put 16 values of a block at column k into its record; their bytes are added to a, b and c. */
static inline void fix16(float16 x, float inverse, uint k, __global int *record, int16 *a, int16 *b, int16 *c)
{
    const int16 x0 = to_integer(x * inverse), x1 = others(x0), x2 = others(x1);
    *(__global char16 *)(record + DOT_A + k / 4) = convert_char16(lowest(x0));
    *(__global char16 *)(record + DOT_B + k / 4) = convert_char16(lowest(x1));
    *(__global char16 *)(record + DOT_C + k / 4) = convert_char16(x2);
    *a += lowest(x0);
    *b += lowest(x1);
    *c += x2;
}

/* The records of all blocks of x. */
void fix_blocks(__global const float *x, uint cols, __global int *record)
{
    for (uint block = 0; block < cols / BLOCK; block++, x += BLOCK, record += DOT_WORDS) {
        int16 a = 0, b = 0, c = 0;
        float16 sum = vload16(0, x), top = fabs(sum);
        for (uint k = 16; k < BLOCK; k += 16) {
            const float16 v = vload16(0, x + k);
            sum += v;
            top = fmax(top, fabs(v));
        }
        const float most = max16(top), total = sum16(sum);
        const bool tiny = most < 0x1p-103f; /* whose inverse would be infinite */
        const float inverse = tiny ? 0x1p126f : DOT_TOP / most, scale = tiny ? 0x1p-126f : most / DOT_TOP;
        for (uint k = 0; k < BLOCK; k += 16)
            fix16(vload16(0, x + k), inverse, k, record, &a, &b, &c);
#if BITS == 8 /* quants are taken 128 too large */
        record[DOT_BEGIN] = -128 * total16(a);
        record[DOT_BEGIN + 1] = -128 * total16(b);
        record[DOT_BEGIN + 2] = -128 * total16(c);
#endif
        record[DOT_SCALE] = as_int(scale + 0.0f * total); /* not a number where x is not one */
        record[DOT_SUM] = as_int(total);
    }
}

/* Rows' integer products with a block, times its scale. */
static inline float16 block_dot(__global const uchar *quants, __global const int *record)
{
    __global const uint *q = (__global const uint *)quants;
#if BITS == 4
    int16 a = 0, b = 0, c = 0;
    UNROLL
    for (uint j = 0; j < 4; j++) {
        const uint16 pair = vload16(j, q), low = pair & 0x0f0f0f0fu, high = pair >> 4 & 0x0f0f0f0fu;
        a = dot4(dot4(a, low, record[DOT_A + j]), high, record[DOT_A + j + 4]);
        b = dot4(dot4(b, low, record[DOT_B + j]), high, record[DOT_B + j + 4]);
        c = dot4(dot4(c, low, record[DOT_C + j]), high, record[DOT_C + j + 4]);
    }
#else
    int16 a = record[DOT_BEGIN], b = record[DOT_BEGIN + 1], c = record[DOT_BEGIN + 2];
    UNROLL
    for (uint j = 0; j < BLOCK / 4; j++) {
        const uint16 u = vload16(j, q) ^ 0x80808080u;
        a = dot4(a, u, record[DOT_A + j]);
        b = dot4(b, u, record[DOT_B + j]);
        c = dot4(c, u, record[DOT_C + j]);
    }
#endif
    const float16 low = fma(convert_float16(dot_words(b)), (float16)(256.0f), convert_float16(dot_words(a)));
    return fma(convert_float16(dot_words(c)), (float16)(65536.0f), low) * as_float(record[DOT_SCALE]);
}

void fetch_ahead(__global const uchar *p);

/* The 16 rows' products with the x of the records. */
float16 tile_dot(__global const uchar *tile, uint cols, __global const int *record)
{
    float16 sum = 0;
    for (uint b = 0; b < cols / BLOCK; b++, record += DOT_WORDS) {
        __global const uchar *p = block_at(tile, b);
        fetch_ahead(p);
        const float16 d = SCALES(16, 0, p, super_at(tile, b));
        sum = fma(d, block_dot(p + BLOCK_HEAD, record), sum);
#if HAS_MIN
        sum = fma(MINIMUMS(16, 0, p, super_at(tile, b), d), (float16)(as_float(record[DOT_SUM])), sum);
#endif
    }
    return sum;
}
