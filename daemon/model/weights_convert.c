/* Rows of a weight, decoded and converted by a few threads. */
#include <pthread.h>
#include <sched.h>
#include <string.h>

#include "daemon/model/gguf.h"
#include "daemon/model/weights.h"

#define MAX_THREADS  16
#define PIECE        4096         /* elements decoded at once: a multiple of every block, small enough for a stack */
#define THREAD_BYTES (512u << 10) /* below this much output a thread is not worth its start */

struct job {
    const struct samkv_weight *weight;
    uint64_t first, count; /* rows */
    enum samkv_dtype dtype;
    uint8_t *dst;
};

size_t samkv_weight_row_bytes(const struct samkv_weight *w)
{
    uint32_t elements = 1, bytes = 0;
    if (!samkv_gguf_type_block(w->type, &elements, &bytes))
        return 0;
    return (size_t)(w->cols / elements * bytes);
}

/*
 * The file's row for HF's row r. HF rotates element i of a head with element i + d/2; files in adjacent-pair order keep
 * the two side by side: element (half, i) is at 2i + half.
 */
static uint64_t source_row(const struct samkv_weight *w, uint64_t r)
{
    uint64_t d = w->interleaved;
    if (!d)
        return r;
    uint64_t in = r % d;
    return r - in + 2 * (in % (d / 2)) + in / (d / 2);
}

uint32_t samkv_ggml_of_dtype(enum samkv_dtype dtype)
{
    return dtype == SAMKV_F32 ? SAMKV_GGML_F32 : dtype == SAMKV_F16 ? SAMKV_GGML_F16 : SAMKV_GGML_BF16;
}

static void narrow(const float *x, size_t count, enum samkv_dtype dtype, uint16_t *y)
{
    if (dtype == SAMKV_BF16)
        for (size_t i = 0; i < count; i++)
            y[i] = samkv_f32_to_bf16(x[i]);
    else
        for (size_t i = 0; i < count; i++)
            y[i] = samkv_f32_to_f16(x[i]);
}

static void convert_row(const struct samkv_weight *w, const uint8_t *src, enum samkv_dtype dtype, uint8_t *dst)
{
    uint32_t elements = 1, bytes = 0;
    (void)samkv_gguf_type_block(w->type, &elements, &bytes);
    float piece[PIECE];
    for (uint64_t at = 0; at < w->cols; at += PIECE) {
        uint64_t count = w->cols - at < PIECE ? w->cols - at : PIECE;
        const uint8_t *from = src + at / elements * bytes;
        if (dtype == SAMKV_F32) {
            (void)samkv_gguf_dequantise(w->type, from, count, (float *)dst + at);
        } else {
            (void)samkv_gguf_dequantise(w->type, from, count, piece);
            narrow(piece, (size_t)count, dtype, (uint16_t *)dst + at);
        }
    }
}

static void *run(void *arg)
{
    const struct job *j = arg;
    size_t src_row = samkv_weight_row_bytes(j->weight), dst_row = (size_t)j->weight->cols * samkv_dtype_bytes(j->dtype);
    bool same = j->weight->type == samkv_ggml_of_dtype(j->dtype);
    for (uint64_t i = 0; i < j->count; i++) {
        const uint8_t *src = j->weight->data + source_row(j->weight, j->first + i) * src_row;
        if (same)
            memcpy(j->dst + i * dst_row, src, src_row);
        else
            convert_row(j->weight, src, j->dtype, j->dst + i * dst_row);
    }
    return NULL;
}

static uint64_t threads_for(uint64_t output_bytes)
{
    cpu_set_t set;
    uint64_t threads = sched_getaffinity(0, sizeof set, &set) ? 1 : (uint64_t)CPU_COUNT(&set);
    if (threads > MAX_THREADS)
        threads = MAX_THREADS;
    return threads < output_bytes / THREAD_BYTES + 1 ? threads : output_bytes / THREAD_BYTES + 1;
}

void samkv_weight_convert(const struct samkv_weight *w, uint64_t first, uint64_t count, enum samkv_dtype dtype,
                          void *dst)
{
    size_t dst_row = (size_t)w->cols * samkv_dtype_bytes(dtype);
    uint64_t parts = threads_for(count * dst_row);
    struct job jobs[MAX_THREADS];
    pthread_t threads[MAX_THREADS];
    bool started[MAX_THREADS] = {false};
    for (uint64_t i = 0; i < parts; i++) {
        uint64_t from = count * i / parts, to = count * (i + 1) / parts;
        jobs[i] = (struct job){w, first + from, to - from, dtype, (uint8_t *)dst + from * dst_row};
        started[i] = i + 1 < parts && !pthread_create(&threads[i], NULL, run, &jobs[i]);
        if (!started[i])
            run(&jobs[i]);
    }
    for (uint64_t i = 0; i < parts; i++)
        if (started[i])
            pthread_join(threads[i], NULL);
}
