/*
 * The scorer, a merge model with one small network per layer and KV head, and how its parameters lie in memory.
 *
 * A unit of one KV head is x = [k ; v], 2d channels in the cache's order, keys without rotation. With z = (x - mean) *
 * scale, channel by channel, the network sees each of the two units a (older) and b of level g alone:
 *   h = ELU(w1 z + b1[g])                              (hidden)
 *   s = w2 . h + deviation * sqrt(mean of z^2 over the d key channels)
 * and the pair becomes, with D = s_a - s_b + prior[g], sigmoids m_k = S(sharp_k D) and m_v = S(sharp_v D), and the
 * residual e = (u^T (h_a + h_b) + r[g]) / scale, channel by channel:
 *   k = m_k k_a + (1 - m_k) k_b + e_k,  v = m_v v_a + (1 - m_v) v_b + e_v.
 * Nothing is kept beside keys and values. In attention bias[g] is added to the scores of what was merged from level g
 * (cache_set_biases). A level from `levels` on uses the last one's b1, prior, r and bias.
 */
#ifndef OPS_SCORE_H
#define OPS_SCORE_H

#include <stddef.h>
#include <stdint.h>

enum { SCORE_HIDDEN_MAX = 128 }; /* what groups of GPUs have local memory for */

typedef struct score_shape {
    uint32_t head_dim; /* d, even */
    uint32_t hidden;   /* H, a multiple of 16 up to SCORE_HIDDEN_MAX */
    uint32_t levels;   /* G */
} score_shape;

/* First floats of the arrays in the row of one (layer, KV head), and the row's length, a multiple of 16. */
typedef struct score_layout {
    size_t mean;      /* (2d) */
    size_t scale;     /* (2d), > 0; with mean: measured, not trained */
    size_t w1;        /* (H, 2d) */
    size_t b1;        /* (G, H) */
    size_t w2;        /* (H) */
    size_t u;         /* (H, 2d) */
    size_t r;         /* (G, 2d) */
    size_t prior;     /* (G) */
    size_t bias;      /* (G) */
    size_t deviation; /* () */
    size_t sharp_k;   /* () */
    size_t sharp_v;   /* () */
    size_t row;
} score_layout;

static inline score_layout score_layout_of(score_shape s)
{
    const size_t x = 2 * (size_t)s.head_dim, h = s.hidden, g = s.levels;
    score_layout l = {.mean = 0, .scale = x, .w1 = 2 * x};
    l.b1 = l.w1 + h * x;
    l.w2 = l.b1 + g * h;
    l.u = l.w2 + h;
    l.r = l.u + h * x;
    l.prior = l.r + g * x;
    l.bias = l.prior + g;
    l.deviation = l.bias + g;
    l.sharp_k = l.deviation + 1;
    l.sharp_v = l.sharp_k + 1;
    l.row = (l.sharp_v + 1 + 15) / 16 * 16;
    return l;
}

#endif
