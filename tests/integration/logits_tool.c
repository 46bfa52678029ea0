/*
 * Logits of a model on the CPU, for compare_logits.py and bench_prefill.py.
 *   logits_tool [--bf16] MODEL LENGTH...  MODEL: a directory or a .gguf; --bf16: matrices in bf16 where the CPU has it
 * stdin: token ids, as 32-bit numbers in the machine's byte order, LENGTH of them for each LENGTH. stdout: for each,
 * the vocabulary's float32 logits behind the last one. stderr: seconds to load, resident memory, and of each pass
 * seconds. A pass that is refused ends the program with its reason. Exit code 1 for any failure.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "daemon/model/forward.h"

static double now(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

struct state {
    struct samkv_model *model;
    struct samkv_stream *stream;
    struct samkv_workspace *ws;
};

static enum samkv_status run(const struct state *s, const int32_t *ids, int32_t *numbers, int n, float *logits,
                             struct samkv_error *err)
{
    struct samkv_kv_cache cache;
    enum samkv_status status = samkv_kv_cache_init(&cache, s->model, (size_t)n, err);
    if (status)
        return status;
    for (int i = 0; i < n; i++) {
        numbers[i] = i;
        numbers[n + i] = i + 1;
    }
    const struct samkv_pass pass = {
        .n = n,
        .ids = ids,
        .positions = numbers,
        .cache_rows = numbers,
        .limits = numbers + n,
        .depth = s->model->config.layers,
        .logits = logits,
    };
    double start = now(CLOCK_MONOTONIC), cpu = now(CLOCK_PROCESS_CPUTIME_ID);
    status = samkv_forward(s->model, s->stream, s->ws, &pass, &cache, err);
    if (!status)
        fprintf(stderr, "pass %d tokens %.6f s, %.6f s of processors\n", n, now(CLOCK_MONOTONIC) - start,
                now(CLOCK_PROCESS_CPUTIME_ID) - cpu);
    samkv_kv_cache_deinit(&cache, s->model->device);
    return status;
}

/* One length after the other from stdin to stdout. */
static enum samkv_status answer(const struct state *s, char *const *lengths, int count, struct samkv_error *err)
{
    uint32_t vocab = s->model->config.vocab;
    float *logits = malloc(vocab * sizeof *logits);
    enum samkv_status status = logits ? SAMKV_OK : SAMKV_NO_MEMORY;
    for (int i = 0; i < count && !status; i++) {
        int n = atoi(lengths[i]);
        int32_t *ids = n > 0 ? malloc(3 * (size_t)n * sizeof *ids) : NULL;
        if (!ids || fread(ids, sizeof *ids, (size_t)n, stdin) != (size_t)n)
            status = samkv_fail(err, SAMKV_INVALID, "there are no %d token ids", n);
        else
            status = run(s, ids, ids + n, n, logits, err);
        if (!status && fwrite(logits, sizeof *logits, vocab, stdout) != vocab)
            status = samkv_fail(err, SAMKV_INVALID, "cannot write");
        free(ids);
    }
    free(logits);
    return status;
}

static void print_shape(const struct state *s)
{
    const struct samkv_model_config *c = &s->model->config;
    printf("{\"layers\": %u, \"hidden\": %u, \"heads\": %u, \"kv_heads\": %u, \"head_dim\": %u, \"ffn\": %u}\n",
           c->layers, c->hidden, c->heads, c->kv_heads, c->head_dim, c->ffn);
}

/* The product that bench_prefill.py measures everything by. Bits of 0.01 in bf16 or f32 are no special numbers either
 * way. */
static int print_peak(struct samkv_device *device)
{
    enum { SIZE = 2048, TRIES = 8 };
    size_t count = (size_t)SIZE * SIZE;
    float *x = malloc(count * sizeof *x), *w = malloc(count * sizeof *w), *y = malloc(count * sizeof *y);
    struct samkv_stream *stream = NULL;
    double best = 1e9;
    if (!x || !w || !y || device->ops->stream_new(device, &stream))
        return 1;
    for (size_t i = 0; i < count; i++)
        x[i] = w[i] = 0.01f;
    for (int i = 0; i < TRIES; i++) {
        const struct samkv_matmul m = {
            .x = x, .ldx = SIZE, .w = w, .y = y, .ldy = SIZE, .n = SIZE, .in = SIZE, .out = SIZE};
        double start = now(CLOCK_PROCESS_CPUTIME_ID);
        device->ops->matmul(stream, &m);
        double spent = now(CLOCK_PROCESS_CPUTIME_ID) - start;
        best = spent < best ? spent : best;
    }
    printf("%.1f\n", 2.0 * SIZE * SIZE * SIZE / best / 1e9);
    device->ops->stream_free(stream);
    free(x);
    free(w);
    free(y);
    return 0;
}

int main(int argc, char **argv)
{
    struct samkv_error err = {0};
    struct samkv_device *device;
    struct state s = {0};
    struct rusage usage;
    bool bf16 = argc > 1 && !strcmp(argv[1], "--bf16");
    if (bf16)
        argv++, argc--;
    bool shape = argc > 2 && !strcmp(argv[1], "--shape");
    if (shape)
        argv++, argc--;
    if (argc < 2)
        return 2;
    if (samkv_device_open("cpu", SAMKV_F32, &device, NULL, 0, &err)) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    if (bf16 && !samkv_cpu_use_bf16(device))
        fprintf(stderr, "this processor multiplies no bf16\n");
    if (!strcmp(argv[1], "--peak")) {
        int failed = print_peak(device);
        device->ops->device_free(device);
        return failed;
    }
    double start = now(CLOCK_MONOTONIC);
    enum samkv_status status = samkv_model_load("model", argv[1], device, &s.model, &err);
    if (!status) {
        getrusage(RUSAGE_SELF, &usage);
        fprintf(stderr, "load %.3f s, resident %ld kB, %s\n", now(CLOCK_MONOTONIC) - start, usage.ru_maxrss,
                device->name);
        status = samkv_workspace_new(s.model, &s.ws, &err);
    }
    if (!status)
        status = device->ops->stream_new(device, &s.stream);
    if (!status && shape)
        print_shape(&s);
    else if (!status)
        status = answer(&s, argv + 2, argc - 2, &err);
    if (status)
        fprintf(stderr, "%s\n", err.text);
    if (s.stream)
        device->ops->stream_free(s.stream);
    samkv_workspace_free(s.ws);
    samkv_model_free(s.model);
    device->ops->device_free(device);
    return status ? 1 : 0;
}
