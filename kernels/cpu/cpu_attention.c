/*
 * Attention: (KV head, query tile) tasks dealt to threads. The query heads of a group are rows of one tile, so that
 * each key and value is read once for all of them.
 */
#include "kernels/cpu/cpu.h"

#include <assert.h>
#include <omp.h>

/*
 * Rows of a tile: the most, which reads keys least often, unless threads would have nothing to do. A row's result is
 * the same in any tile.
 */
static int64_t tile_rows(int64_t rows, int kv_heads, int team)
{
    static const int sizes[] = {SAMKV_CPU_ATTENTION_ROWS, SAMKV_CPU_ATTENTION_ROWS / 2, 16};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if ((rows + sizes[i] - 1) / sizes[i] * kv_heads >= team)
            return sizes[i];
    return 16;
}

void samkv_cpu_attention(struct samkv_stream *stream, const struct samkv_attention *a)
{
    assert(a->n >= 0 && a->kv_heads > 0 && a->heads % a->kv_heads == 0 && a->head_dim > 0);
    assert(a->head_dim <= SAMKV_CPU_MAX_HEAD_DIM && a->ldq >= (size_t)a->heads * (size_t)a->head_dim);
    if (a->n == 0 || samkv_cpu_stream_failed(stream))
        return;
    const struct samkv_cpu_device *cpu = samkv_cpu_of(stream);
    bool bf16 = cpu->base.bf16_matrices && a->head_dim % 2 == 0;
    int64_t rows = (int64_t)a->n * (a->heads / a->kv_heads);
    int team = samkv_cpu_team(stream, (size_t)rows * (size_t)a->n_keys * (size_t)a->kv_heads);
    int64_t size = tile_rows(rows, a->kv_heads, team);
    int64_t tiles = (rows + size - 1) / size, tasks = tiles * a->kv_heads;
    size_t share = cpu->simd->attention_scratch(a->head_dim);
    char *scratch = samkv_cpu_stream_scratch(stream, share * (size_t)team);
    if (!scratch)
        return;
        /* Last tiles see most keys: they go first, so that what remains at the end is small. */
#pragma omp parallel for num_threads(team) schedule(dynamic, 1)
    for (int64_t t = 0; t < tasks; t++) {
        int64_t row0 = (tiles - 1 - t / a->kv_heads) * size;
        int64_t left = rows - row0;
        struct samkv_cpu_tile tile = {
            .args = a,
            .kv_head = (int)(t % a->kv_heads),
            .row0 = (int)row0,
            .rows = (int)(left < size ? left : size),
            .scratch = (float *)(scratch + share * (size_t)omp_get_thread_num()),
        };
        if (bf16)
            cpu->simd->attention_tile_bf16(&tile);
        else
            cpu->simd->attention_tile(&tile);
    }
}
