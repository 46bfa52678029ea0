/* y = x · wᵀ: oneDNN for many rows, dot products straight from the weights for a few (decoding). */
#include "kernels/cpu/cpu.h"

#include <assert.h>
#include <omp.h>
#include <oneapi/dnnl/dnnl.h>
#include <string.h>

/* Outputs are dealt in runs of this many, so that no two threads write one cache line of an aligned y. */
#define OUTPUT_RUN 16

static void few_rows(struct samkv_stream *stream, const struct samkv_matmul *m)
{
    const struct samkv_cpu_device *cpu = samkv_cpu_of(stream);
    int runs = (m->out + OUTPUT_RUN - 1) / OUTPUT_RUN;
    int team = samkv_cpu_team(stream, (size_t)m->in * (size_t)m->out);
    if (team > runs)
        team = runs;
        /* One contiguous share of the weights a thread: the reading is sequential, which is all that counts here. */
#pragma omp parallel for num_threads(team) schedule(static)
    for (int t = 0; t < team; t++) {
        int from = (int)((int64_t)runs * t / team) * OUTPUT_RUN;
        int to = (int)((int64_t)runs * (t + 1) / team) * OUTPUT_RUN;
        if (to > m->out)
            to = m->out;
        if (cpu->base.bf16_matrices)
            cpu->simd->matmul_rows_bf16(m, from, to);
        else
            cpu->simd->matmul_rows(m, from, to);
    }
}

/* What oneDNN adds to: the bias, or y itself with the bias. */
static void add_bias(struct samkv_stream *stream, const struct samkv_matmul *m)
{
    const struct samkv_cpu_device *cpu = samkv_cpu_of(stream);
    float *y = m->y;
    int team = samkv_cpu_team(stream, (size_t)m->n * (size_t)m->out);
#pragma omp parallel for num_threads(team) schedule(static)
    for (int i = 0; i < m->n; i++) {
        if (m->accumulate)
            cpu->simd->add(m->bias, (size_t)m->out, y + (size_t)i * m->ldy);
        else
            memcpy(y + (size_t)i * m->ldy, m->bias, (size_t)m->out * sizeof *y);
    }
}

void samkv_cpu_matmul(struct samkv_stream *stream, const struct samkv_matmul *m)
{
    assert(m->n >= 0 && m->in > 0 && m->out > 0 && m->ldx >= (size_t)m->in && m->ldy >= (size_t)m->out);
    if (m->n == 0 || samkv_cpu_stream_failed(stream))
        return;
    if (m->n <= SAMKV_CPU_SMALL_ROWS) {
        few_rows(stream, m);
        return;
    }
    if (stream->device->bf16_matrices) {
        samkv_cpu_matmul_bf16(stream, m);
        return;
    }
    if (m->bias)
        add_bias(stream, m);
    omp_set_num_threads(samkv_cpu_of(stream)->threads); /* oneDNN asks OpenMP */
    float beta = m->accumulate || m->bias ? 1.0f : 0.0f;
    dnnl_status_t status = dnnl_sgemm('N', 'T', m->n, m->out, m->in, 1.0f, m->x, (dnnl_dim_t)m->ldx, m->w, m->in, beta,
                                      m->y, (dnnl_dim_t)m->ldy);
    if (status == dnnl_out_of_memory)
        samkv_cpu_stream_fail(stream, SAMKV_NO_MEMORY, "no memory for a matrix product");
    else if (status != dnnl_success)
        samkv_cpu_stream_fail(stream, SAMKV_DEVICE, "oneDNN refused a matrix product");
}
