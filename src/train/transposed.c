#include "train/transposed.h"

#include "base/error.h"

#include <string.h>

enum { PIECE_ROWS = 1024 }; /* rows read from the device at a time */

/* What turns the matrices of one model over. */
typedef struct turner {
    backend *ops;
    step step; /* tokens: the numbers of the rows to read */
    buffer *rows;
    float *piece, *turned;
} turner;

size_t transposed_bytes(const dcm_model_info *m)
{
    const size_t attn = (size_t)m->heads * m->head_dim, qkv = attn + 2 * (size_t)m->kv_heads * m->head_dim;
    const size_t layer = m->hidden * (qkv + attn + 3 * (size_t)m->ffn);
    return (layer * m->layers + (size_t)m->hidden * m->vocab) * sizeof(float);
}

static void turner_close(turner *t)
{
    buffer_free(&t->step.data);
    buffer_free(&t->rows);
    mem_free(&t->piece);
    mem_free(&t->turned);
}

static dcm_status turner_open(turner *t, const dcm_model *model)
{
    const dcm_model_info *m = &model->config.info;
    size_t cols = m->hidden, largest = (size_t)m->hidden * m->vocab;
    cols = m->ffn > cols ? m->ffn : cols;
    cols = (size_t)m->heads * m->head_dim > cols ? (size_t)m->heads * m->head_dim : cols;
    largest = 2 * cols * m->ffn > largest ? 2 * cols * m->ffn : largest;
    largest = cols * 3 * cols > largest ? cols * 3 * cols : largest;
    dcm_status status;
    t->ops = model->ops;
    DCM_TRY(status, fail, t->ops->ops->buffer_new(t->ops, PIECE_ROWS * sizeof(int32_t), MEM_SCRATCH, &t->step.data));
    DCM_TRY(status, fail, t->ops->ops->buffer_new(t->ops, PIECE_ROWS * cols * sizeof(float), MEM_SCRATCH, &t->rows));
    DCM_TRY(status, fail, mem_new(&t->piece, PIECE_ROWS * cols, sizeof *t->piece, "rows of weights"));
    DCM_TRY(status, fail, mem_new(&t->turned, largest, sizeof *t->turned, "a transposed matrix"));
fail:
    return status;
}

/* Rows first .. first + n - 1 of w as floats into t->piece. */
static dcm_status read_rows(turner *t, const matrix *w, uint32_t first, uint32_t n)
{
    const embed_args embed = {w, &t->step, t->rows};
    int32_t ids[PIECE_ROWS];
    dcm_status status;
    for (uint32_t i = 0; i < n; i++)
        ids[i] = (int32_t)(first + i);
    t->step.n = n;
    DCM_TRY(status, fail, t->ops->ops->write(t->step.data, 0, ids, n * sizeof *ids));
    DCM_TRY(status, fail, t->ops->ops->embed(t->ops, &embed));
    status = t->ops->ops->read(t->rows, 0, t->piece, (size_t)n * w->cols * sizeof(float));
fail:
    return status;
}

/* Columns `at` on of t->turned, (w->cols, rows), from w. */
static dcm_status turn(turner *t, const matrix *w, size_t at, size_t rows)
{
    dcm_status status = DCM_OK;
    for (uint32_t first = 0; first < w->rows && status == DCM_OK; first += PIECE_ROWS) {
        const uint32_t n = w->rows - first < PIECE_ROWS ? w->rows - first : PIECE_ROWS;
        status = read_rows(t, w, first, n);
        for (size_t c = 0; c < w->cols; c++)
            for (size_t i = 0; i < n; i++)
                t->turned[c * rows + at + first + i] = t->piece[i * w->cols + c];
    }
    return status;
}

static dcm_status turn_map(turner *t, const linear_map *map, matrix **out)
{
    const uint32_t cols = map->part[0].w->cols;
    dcm_status status = DCM_OK;
    for (uint32_t i = 0; i < map->parts && status == DCM_OK; i++)
        status = turn(t, map->part[i].w, map->part[i].y_offset, map->rows);
    return status == DCM_OK ? t->ops->ops->matrix_new(t->ops, QUANT_F32, cols, map->rows, t->turned, out) : status;
}

dcm_status transposed_open(transposed *t, const dcm_model *model)
{
    const uint32_t layers = model->config.info.layers;
    turner turner = {0};
    dcm_status status;
    DCM_TRY(status, done, turner_open(&turner, model));
    DCM_TRY(status, done, mem_new(&t->layer, layers, sizeof *t->layer, "transposed layers"));
    t->layers = layers;
    for (uint32_t i = 0; i < layers; i++) {
        const model_layer *l = &model->layer[i];
        DCM_TRY(status, done, turn_map(&turner, &l->qkv, &t->layer[i].qkv));
        DCM_TRY(status, done, turn_map(&turner, &l->attn_out, &t->layer[i].attn_out));
        DCM_TRY(status, done, turn_map(&turner, &l->gate_up, &t->layer[i].gate_up));
        DCM_TRY(status, done, turn_map(&turner, &l->down, &t->layer[i].down));
    }
    const matrix *w = model->output;
    DCM_TRY(status, done, turn(&turner, w, 0, w->rows));
    status = model->ops->ops->matrix_new(model->ops, QUANT_F32, w->cols, w->rows, turner.turned, &t->output);
done:
    turner_close(&turner);
    return status;
}

void transposed_close(transposed *t)
{
    for (uint32_t i = 0; i < t->layers; i++) {
        matrix_free(&t->layer[i].qkv);
        matrix_free(&t->layer[i].attn_out);
        matrix_free(&t->layer[i].gate_up);
        matrix_free(&t->layer[i].down);
    }
    mem_free(&t->layer);
    matrix_free(&t->output);
    memset(t, 0, sizeof *t);
}
