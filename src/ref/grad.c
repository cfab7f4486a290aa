#include "ref/grad.h"

#include "ref/ref.h"

#include <math.h>
#include <stddef.h>

/* Fewer elements are not worth waking threads for. */
static bool shared(ref_rows rows) { return (size_t)rows.n * rows.cols > REF_SHARED_MIN; }

static void norm_row(size_t cols, const float *x, const float *gain, double eps, const float *dy, float *dx, bool add)
{
    double squares = 0, dot = 0;
    for (size_t i = 0; i < cols; i++) {
        squares += (double)x[i] * x[i];
        dot += (double)x[i] * gain[i] * dy[i];
    }
    const double mean = squares / (double)cols + eps, scale = 1 / sqrt(mean);
    for (size_t i = 0; i < cols; i++) {
        const double d = scale * ((double)gain[i] * dy[i] - x[i] * dot / (mean * (double)cols));
        dx[i] = (float)(add ? dx[i] + d : d);
    }
}

void ref_norm_back(ref_rows rows, const float *x, const float *gain, float eps, const float *dy, float *dx, bool add)
{
    const size_t cols = rows.cols;
#pragma omp parallel for num_threads(rows.threads) if (shared(rows))
    for (uint32_t r = 0; r < rows.n; r++)
        norm_row(cols, x + r * cols, gain, eps, dy + r * cols, dx + r * cols, add);
}

void ref_swiglu_back(ref_rows rows, const float *x, const float *dy, float *dx)
{
    const size_t cols = rows.cols;
#pragma omp parallel for num_threads(rows.threads) if (shared(rows))
    for (uint32_t r = 0; r < rows.n; r++)
        for (size_t i = 0; i < cols; i++) {
            const size_t at = r * 2 * cols + i;
            const double z = x[at], up = x[at + cols], d = dy[r * cols + i], s = 1 / (1 + exp(-z));
            dx[at] = (float)(d * up * s * (1 + z * (1 - s)));
            dx[at + cols] = (float)(d * z * s);
        }
}

static double largest(const float *x, size_t n)
{
    double most = -INFINITY;
    for (size_t i = 0; i < n; i++)
        most = x[i] > most ? x[i] : most;
    return most;
}

/* Log of the sum of exp(x). */
static double log_sum(const float *x, size_t n)
{
    const double most = largest(x, n);
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += exp(x[i] - most);
    return most + log(sum);
}

void ref_kl_back(ref_rows rows, float *logits, const float *target, float scale, float *loss)
{
    const size_t cols = rows.cols;
#pragma omp parallel for num_threads(rows.threads) if (shared(rows))
    for (uint32_t r = 0; r < rows.n; r++) {
        float *x = logits + r * cols;
        const float *t = target + r * cols;
        const double log_q = log_sum(x, cols), log_p = log_sum(t, cols);
        double sum = 0;
        for (size_t i = 0; i < cols; i++) {
            const double p = exp(t[i] - log_p), q = exp(x[i] - log_q);
            sum += p * ((t[i] - log_p) - (x[i] - log_q));
            x[i] = (float)(scale * (q - p));
        }
        loss[r] = (float)sum;
    }
}

void ref_square_back(ref_rows rows, const float *x, const float *y, float scale, float *dx, float *loss)
{
    const size_t cols = rows.cols;
#pragma omp parallel for num_threads(rows.threads) if (shared(rows))
    for (uint32_t r = 0; r < rows.n; r++) {
        double sum = 0;
        for (size_t i = r * cols; i < (r + 1) * cols; i++) {
            const double d = (double)x[i] - y[i];
            sum += d * d;
            dx[i] = (float)(dx[i] + 2 * scale * d);
        }
        loss[r] = (float)sum;
    }
}

static bool dense_shared(const ref_dense_back_args *a) { return (size_t)a->n * a->in * a->out > REF_SHARED_MIN; }

/* Through the activation, then dx. */
static void dense_back_row(const ref_dense_back_args *a, size_t t)
{
    float *dy = a->dy + t * a->out;
    for (size_t o = 0; a->elu && o < a->out; o++) {
        const double y = a->y[t * a->out + o];
        dy[o] = (float)(dy[o] * (y > 0 ? 1 : y + 1));
    }
    for (size_t i = 0; a->dx && i < a->in; i++) {
        double sum = 0;
        for (size_t o = 0; o < a->out; o++)
            sum += (double)dy[o] * a->w[o * a->in + i];
        a->dx[t * a->in + i] = (float)sum;
    }
}

void ref_dense_back(const ref_dense_back_args *a, int threads)
{
#pragma omp parallel for num_threads(threads) if (dense_shared(a))
    for (uint32_t t = 0; t < a->n; t++)
        dense_back_row(a, t);
#pragma omp parallel for num_threads(threads) if (dense_shared(a))
    for (uint32_t o = 0; o < a->out; o++) {
        double bias = a->dbias[o];
        for (size_t t = 0; t < a->n; t++)
            bias += a->dy[t * a->out + o];
        a->dbias[o] = (float)bias;
        for (size_t i = 0; i < a->in; i++) {
            double sum = a->dw[o * (size_t)a->in + i];
            for (size_t t = 0; t < a->n; t++)
                sum += (double)a->dy[t * a->out + o] * a->x[t * a->in + i];
            a->dw[o * (size_t)a->in + i] = (float)sum;
        }
    }
}
