/*
 * y = x · wᵀ over weights in bf16, by oneDNN's matmul: it takes the weights as they lie in a model's file, and on Zen 4
 * reaches nineteen twentieths of what the processor can. Its fast kernels want y without gaps between rows; where there
 * are some, the product goes to scratch memory first.
 */
#include "kernels/cpu/cpu.h"

#include <assert.h>
#include <omp.h>
#include <oneapi/dnnl/dnnl.h>
#include <pthread.h>
#include <string.h>

static pthread_once_t engine_once = PTHREAD_ONCE_INIT;
static dnnl_engine_t engine; /* of the process, never freed: oneDNN's own caches live as long */

static void make_engine(void)
{
    if (dnnl_engine_create(&engine, dnnl_cpu, 0) != dnnl_success)
        engine = NULL;
}

/* One product's primitive. oneDNN keeps what it compiles, so that making it again takes some 30 µs. */
static dnnl_status_t make_primitive(const struct samkv_matmul *m, bool add, dnnl_memory_desc_t d[4],
                                    dnnl_primitive_t *out)
{
    dnnl_dims_t x = {m->n, m->in}, w = {m->in, m->out}, bias = {1, m->out}, y = {m->n, m->out};
    dnnl_matmul_desc_t desc;
    dnnl_primitive_attr_t attributes = NULL;
    dnnl_post_ops_t post = NULL;
    dnnl_primitive_desc_t primitive = NULL;
    dnnl_status_t status = dnnl_memory_desc_init_by_tag(&d[0], 2, x, dnnl_bf16, dnnl_ab);
    if (!status)
        status = dnnl_memory_desc_init_by_tag(&d[1], 2, w, dnnl_bf16, dnnl_ba);
    if (!status)
        status = dnnl_memory_desc_init_by_tag(&d[2], 2, bias, dnnl_f32, dnnl_ab);
    if (!status)
        status = dnnl_memory_desc_init_by_tag(&d[3], 2, y, dnnl_f32, dnnl_ab);
    if (!status)
        status = dnnl_matmul_desc_init(&desc, &d[0], &d[1], m->bias ? &d[2] : NULL, &d[3]);
    if (!status)
        status = dnnl_primitive_attr_create(&attributes);
    if (!status)
        status = dnnl_post_ops_create(&post);
    if (!status && add)
        status = dnnl_post_ops_append_sum(post, 1.0f);
    if (!status)
        status = dnnl_primitive_attr_set_post_ops(attributes, post);
    if (!status)
        status = dnnl_primitive_desc_create(&primitive, &desc, attributes, engine, NULL);
    if (!status)
        status = dnnl_primitive_create(out, primitive);
    dnnl_primitive_desc_destroy(primitive);
    dnnl_post_ops_destroy(post);
    dnnl_primitive_attr_destroy(attributes);
    return status;
}

static dnnl_status_t run(const struct samkv_matmul *m, const uint16_t *x, float *y, bool add)
{
    dnnl_memory_desc_t d[4];
    dnnl_primitive_t primitive = NULL;
    dnnl_stream_t queue = NULL;
    dnnl_memory_t memory[4] = {NULL};
    const void *handles[4] = {x, m->w, m->bias, y};
    static const int roles[4] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_BIAS, DNNL_ARG_DST};
    dnnl_exec_arg_t args[4];
    int count = 0;
    dnnl_status_t status = make_primitive(m, add, d, &primitive);
    if (!status)
        status = dnnl_stream_create(&queue, engine, dnnl_stream_default_flags);
    for (int i = 0; i < 4 && !status; i++) {
        if (!handles[i])
            continue;
        status = dnnl_memory_create(&memory[i], &d[i], engine, (void *)(uintptr_t)handles[i]);
        args[count++] = (dnnl_exec_arg_t){roles[i], memory[i]};
    }
    if (!status)
        status = dnnl_primitive_execute(primitive, queue, count, args);
    if (!status)
        status = dnnl_stream_wait(queue);
    for (int i = 0; i < 4; i++)
        dnnl_memory_destroy(memory[i]);
    dnnl_stream_destroy(queue);
    dnnl_primitive_destroy(primitive);
    return status;
}

static void round_input(const struct samkv_cpu_device *cpu, const struct samkv_matmul *m, int team, uint16_t *x)
{
#pragma omp parallel for num_threads(team) schedule(static)
    for (int i = 0; i < m->n; i++)
        cpu->simd->to_bf16((const float *)m->x + (size_t)i * m->ldx, (size_t)m->in, x + (size_t)i * (size_t)m->in);
}

static void spread_output(const struct samkv_cpu_device *cpu, const struct samkv_matmul *m, int team, const float *y)
{
#pragma omp parallel for num_threads(team) schedule(static)
    for (int i = 0; i < m->n; i++) {
        float *to = (float *)m->y + (size_t)i * m->ldy;
        if (m->accumulate)
            cpu->simd->add(y + (size_t)i * (size_t)m->out, (size_t)m->out, to);
        else
            memcpy(to, y + (size_t)i * (size_t)m->out, (size_t)m->out * sizeof *to);
    }
}

void samkv_cpu_matmul_bf16(struct samkv_stream *stream, const struct samkv_matmul *m)
{
    const struct samkv_cpu_device *cpu = samkv_cpu_of(stream);
    bool dense = m->ldy == (size_t)m->out;
    size_t x_bytes = ((size_t)m->n * (size_t)m->in * sizeof(uint16_t) + 63) / 64 * 64;
    size_t y_bytes = dense ? 0 : (size_t)m->n * (size_t)m->out * sizeof(float);
    char *scratch = samkv_cpu_stream_scratch(stream, x_bytes + y_bytes);
    (void)pthread_once(&engine_once, make_engine);
    if (!scratch)
        return;
    if (!engine) {
        samkv_cpu_stream_fail(stream, SAMKV_DEVICE, "oneDNN has no engine for the CPU");
        return;
    }
    float *y = dense ? m->y : (float *)(void *)(scratch + x_bytes);
    round_input(cpu, m, samkv_cpu_team(stream, (size_t)m->n * (size_t)m->in), (uint16_t *)(void *)scratch);
    omp_set_num_threads(cpu->threads); /* oneDNN asks OpenMP */
    dnnl_status_t status = run(m, (const uint16_t *)(const void *)scratch, y, dense && m->accumulate);
    if (status == dnnl_out_of_memory)
        samkv_cpu_stream_fail(stream, SAMKV_NO_MEMORY, "no memory for a matrix product");
    else if (status != dnnl_success)
        samkv_cpu_stream_fail(stream, SAMKV_DEVICE, "oneDNN refused a matrix product");
    else if (!dense)
        spread_output(cpu, m, samkv_cpu_team(stream, (size_t)m->n * (size_t)m->out), y);
}
