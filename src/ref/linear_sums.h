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

dcm_status OF(ref_linear)(const ref_linear_args *a, int threads)
{
    const size_t row_bytes = quant_row_bytes(a->type, a->cols);
    const size_t products = (size_t)a->n * a->rows * a->cols;
    REAL *input = NULL;
    float *row = NULL;
    dcm_status status;
    DCM_TRY(status, fail, mem_new(&input, a->n, (size_t)a->cols * sizeof *input, "a linear map's input"));
    DCM_TRY(status, fail, mem_new(&row, (size_t)threads, (size_t)a->cols * sizeof *row, "a matrix row a thread"));
#pragma omp parallel for num_threads(threads) if (a->n > 1 && products > REF_SHARED_MIN)
    for (uint32_t t = 0; t < a->n; t++)
        OF(input_row)(a, t, input + (size_t)t * a->cols);
#pragma omp parallel for num_threads(threads) if (products > REF_SHARED_MIN)
    for (uint32_t r = 0; r < a->rows; r++) {
        float *w = row + (size_t)ref_thread() * a->cols;
        quant_to_float(a->type, (const char *)a->w + r * row_bytes, w, a->cols);
        for (uint32_t t = 0; t < a->n; t++) {
            float *y = a->y + t * a->ldy + r;
            REAL sum = OF(ref_dot)(w, input + (size_t)t * a->cols, a->cols);
            if (a->bias)
                sum += a->bias[r];
            if (a->add)
                sum += *y;
            *y = (float)(a->elu && !(sum > 0) ? expm1(sum) : sum);
        }
    }
fail:
    mem_free(&input);
    mem_free(&row);
    return status;
}
