/* How a cache's attention differs from that of the full cache, layer by layer. */
#ifndef DCM_EVAL_H
#define DCM_EVAL_H

#include <dcm/session.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Of one layer, from queries q of a pass over a text with the session's cache. Each is put twice: to the units that it
 * sees (out, weights a), and to the keys and values of all tokens up to it as the same pass made them, at their own
 * places (full, weights p). Means are over queries and heads.
 *
 * a and p are compared on blocks: one block a unit, with the sum of p over the tokens that the unit stands for, and one
 * block more for all tokens that no unit stands for (evicted by a window), where a is 0.
 */
typedef struct dcm_attention_metrics {
    double il;           /* L_IL: mean of |out - full|^2 */
    double attention;    /* mean of |full|^2 */
    double cosine;       /* mean of cos(out, full) */
    double js;           /* mean Jensen-Shannon divergence of a and p, in nats */
    double sdi;          /* (1 - cosine) / 2 + js / 2 */
    double bsd;          /* mean over boundaries of |a_older / a_newer - 1|; 0 where there are none */
    double bsd_log;      /* the same of |ln(a_older / a_newer)|, in which no single boundary outweighs all others */
    uint64_t boundaries; /* neighbouring units of different levels, sinks left out, of every query and head; not counted
                            where a weight is under 1e-12 */
} dcm_attention_metrics;

/*
 * Feed all `count` tokens to a session that nothing was fed to, in one step, and measure: `queries` tokens are spread
 * evenly over those from `first` on (0 or too many: each one), the last token among them. `layer` is (layers of the
 * model). Errors: DCM_ERR_USAGE (an id outside the vocabulary; first >= count; the session's chunk is so small that the
 * tokens take several steps: it needs count, or twice as much with merges), DCM_ERR_MEMORY, DCM_ERR_DEVICE.
 */
DCM_API dcm_status dcm_session_measure(dcm_session *session, const int32_t *tokens, size_t count, size_t first,
                                       size_t queries, dcm_attention_metrics *layer);

#ifdef __cplusplus
}
#endif

#endif
