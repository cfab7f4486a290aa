/* Body of linear.c, for sums in REAL; OF(name) names what belongs to it. */

static void OF(input_row)(const ref_linear_args *a, uint32_t t, REAL *out)
{
    const size_t cols = a->cols;
    const float *x = a->x + t * cols * (a->input == REF_SWIGLU ? 2 : 1);
    REAL scale = 1;
    if (a->input == REF_RMSNORM) {
        REAL sum = 0;
        for (size_t i = 0; i < cols; i++)
            sum += (REAL)x[i] * x[i];
        scale = (REAL)(1 / sqrt(sum / (double)cols + a->eps));
    }
    for (size_t i = 0; i < cols; i++)
        switch (a->input) {
        case REF_PLAIN: out[i] = x[i]; break;
        case REF_RMSNORM: out[i] = x[i] * scale * a->gain[i]; break;
        case REF_SWIGLU: out[i] = (REAL)(x[i] / (1 + exp(-(double)x[i])) * x[cols + i]); break;
        }
}

/* Rows `first` and up, as far as there are ROWS of them; w: room for so many. */
static void OF(some_rows)(const ref_linear_args *a, uint32_t first, const REAL *input, float *w)
{
    const size_t cols = a->cols, row_bytes = quant_row_bytes(a->type, a->cols);
    const uint32_t rows = a->rows - first < ROWS ? a->rows - first : ROWS;
    for (uint32_t r = 0; r < rows; r++)
        quant_to_float(a->type, (const char *)a->w + (first + r) * row_bytes, w + r * cols, cols);
    for (uint32_t t = 0; t < a->n; t++) {
        float *y = a->y + t * a->ldy + first;
        REAL sum[ROWS];
        OF(ref_dots)(w, rows, input + t * cols, cols, sum);
        for (uint32_t r = 0; r < rows; r++) {
            if (a->bias)
                sum[r] += a->bias[first + r];
            if (a->add)
                sum[r] += y[r];
            y[r] = (float)(a->elu && !(sum[r] > 0) ? expm1(sum[r]) : sum[r]);
        }
    }
}

dcm_status OF(ref_linear)(const ref_linear_args *a, int threads)
{
    const size_t products = (size_t)a->n * a->rows * a->cols;
    REAL *input = NULL;
    float *rows = NULL;
    dcm_status status;
    DCM_TRY(status, fail, mem_new(&input, a->n, (size_t)a->cols * sizeof *input, "a linear map's input"));
    DCM_TRY(status, fail, mem_new(&rows, (size_t)threads * ROWS, (size_t)a->cols * sizeof *rows, "matrix rows"));
#pragma omp parallel for num_threads(threads) if (a->n > 1 && products > REF_SHARED_MIN)
    for (uint32_t t = 0; t < a->n; t++)
        OF(input_row)(a, t, input + (size_t)t * a->cols);
#pragma omp parallel for num_threads(threads) if (products > REF_SHARED_MIN)
    for (uint32_t first = 0; first < a->rows; first += ROWS)
        OF(some_rows)(a, first, input, rows + (size_t)ref_thread() * ROWS * a->cols);
fail:
    mem_free(&input);
    mem_free(&rows);
    return status;
}
