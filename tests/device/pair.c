#include "tests/device/pair.h"

#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef enum samkv_status device_new(int, enum samkv_dtype, struct samkv_device **, struct samkv_error *);

static void *need(void *memory)
{
    if (!memory) {
        fprintf(stderr, "out of memory\n");
        exit(2);
    }
    return memory;
}

/* ------------------------------------------------------------------ devices */

static device_new *load(const char *module)
{
    void *library = dlopen(module, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        fprintf(stderr, "%s\n", dlerror());
        return NULL;
    }
    int (*abi)(void) = (int (*)(void))dlsym(library, "samkv_cuda_abi");
    device_new *create = (device_new *)dlsym(library, "samkv_cuda_device_new");
    if (!abi || !create || abi() != 2) {
        fprintf(stderr, "%s is not the CUDA backend that this test knows\n", module);
        return NULL;
    }
    return create;
}

/* "cpu" as the module compares the twin with itself: that is how the test is tested without a GPU. */
struct samkv_device *pair_device(const char *module, const char *dtype)
{
    struct samkv_error err = {0};
    struct samkv_device *device = NULL;
    enum samkv_status status;
    if (!strcmp(module, "cpu")) {
        status = samkv_cpu_discrete_new(0, &device, &err);
    } else {
        device_new *create = load(module);
        if (!create)
            return NULL;
        status = create(0, (enum samkv_dtype)samkv_dtype_parse(dtype), &device, &err);
    }
    if (status)
        fprintf(stderr, "%s: %s\n", samkv_status_text(status), err.text);
    return status ? NULL : device;
}

bool pair_open(struct pair *p, const char *module, const char *dtype)
{
    struct samkv_error err = {0};
    *p = (struct pair){.module = module, .dtype = dtype, .random = 0x9e3779b97f4a7c15u};
    p->gpu = pair_device(module, dtype);
    if (!p->gpu)
        return false;
    enum samkv_status status = samkv_cpu_device_new(0, &p->cpu, &err);
    if (!status)
        status = p->gpu->ops->stream_new(p->gpu, &p->gpu_stream);
    if (!status)
        status = p->cpu->ops->stream_new(p->cpu, &p->cpu_stream);
    if (status)
        fprintf(stderr, "%s: %s\n", samkv_status_text(status), err.text);
    return !status;
}

void pair_close(struct pair *p)
{
    p->gpu->ops->stream_free(p->gpu_stream);
    p->cpu->ops->stream_free(p->cpu_stream);
    p->gpu->ops->device_free(p->gpu);
    p->cpu->ops->device_free(p->cpu);
}

/* ------------------------------------------------------------------ operands */

uint32_t pair_random(struct pair *p, uint32_t bound)
{
    p->random ^= p->random << 13;
    p->random ^= p->random >> 7;
    p->random ^= p->random << 17;
    return (uint32_t)((p->random >> 32) * bound >> 32);
}

double pair_rounding(const struct pair *p, double roundings)
{
    double half_unit = p->gpu->dtype == SAMKV_BF16 ? 0x1p-9 : p->gpu->dtype == SAMKV_F16 ? 0x1p-12 : 1e-6;
    return roundings * half_unit + 2e-6;
}

static enum samkv_dtype dtype_on(const struct samkv_device *device, enum pair_kind kind)
{
    switch (kind) {
    case PAIR_ACTIVATION:
        return device->dtype;
    case PAIR_F16:
        return SAMKV_F16;
    case PAIR_BF16:
        return SAMKV_BF16;
    case PAIR_I32:
        return SAMKV_I32;
    default:
        return SAMKV_F32;
    }
}

static size_t bytes_on(const struct samkv_device *device, const struct pair_operand *o, size_t count)
{
    return count * (o->kind == PAIR_F64 ? 8 : samkv_dtype_bytes(dtype_on(device, o->kind)));
}

static size_t host_bytes(enum pair_kind kind)
{
    return kind == PAIR_F64 ? 8 : kind == PAIR_F16 || kind == PAIR_BF16 ? 2 : 4;
}

static float to_f32(enum samkv_dtype dtype, const void *base, size_t i)
{
    if (dtype == SAMKV_F32)
        return ((const float *)base)[i];
    uint16_t h = ((const uint16_t *)base)[i];
    return dtype == SAMKV_F16 ? samkv_f16_to_f32(h) : samkv_bf16_to_f32(h);
}

static void from_f32(enum samkv_dtype dtype, float f, void *base, size_t i)
{
    if (dtype == SAMKV_F32)
        ((float *)base)[i] = f;
    else
        ((uint16_t *)base)[i] = dtype == SAMKV_F16 ? samkv_f32_to_f16(f) : samkv_f32_to_bf16(f);
}

struct pair_operand *pair_add(struct pair_test *t, enum pair_kind kind, size_t count)
{
    if (t->operands == PAIR_OPERANDS)
        need(NULL);
    struct pair_operand *o = &t->operand[t->operands++];
    *o = (struct pair_operand){.kind = kind, .count = count, .contents = need(calloc(count + 1, host_bytes(kind)))};
    return o;
}

struct pair_operand *pair_add_random(struct pair *p, struct pair_test *t, enum pair_kind kind, size_t count,
                                     float deviation)
{
    struct pair_operand *o = pair_add(t, kind, count);
    for (size_t i = 0; i < count; i++) {
        float sum = 0; /* of twelve uniform ones: near enough to a normal distribution */
        for (int j = 0; j < 12; j++)
            sum += (float)pair_random(p, 1u << 24) * 0x1p-24f;
        float value = (sum - 6) * deviation;
        uint16_t half;
        if (kind == PAIR_ACTIVATION) {
            from_f32(p->gpu->dtype, value, p->gpu->dtype == SAMKV_F32 ? (void *)&value : (void *)&half, 0);
            if (p->gpu->dtype != SAMKV_F32)
                value = to_f32(p->gpu->dtype, &half, 0);
        }
        from_f32(kind == PAIR_F16 || kind == PAIR_BF16 ? dtype_on(p->gpu, kind) : SAMKV_F32, value, o->contents, i);
    }
    return o;
}

struct pair_operand *pair_add_output(struct pair_test *t, enum pair_kind kind, size_t count)
{
    struct pair_operand *o = pair_add(t, kind, count);
    o->output = true;
    for (size_t i = 0; i < count; i++)
        from_f32(kind == PAIR_F16 || kind == PAIR_BF16 ? (kind == PAIR_F16 ? SAMKV_F16 : SAMKV_BF16) : SAMKV_F32, NAN,
                 o->contents, i);
    return o;
}

void pair_add_table(struct pair *p, struct pair_test *t, int n, int half)
{
    float *row = pair_add(t, PAIR_F32, (size_t)n * 2 * (size_t)half)->contents;
    for (int i = 0; i < n; i++, row += 2 * half) {
        for (int j = 0; j < half; j++) {
            double angle = pair_random(p, 1u << 20) * 1e-3;
            row[j] = (float)cos(angle);
            row[half + j] = (float)sin(angle);
        }
    }
}

/* ------------------------------------------------------------------ one side */

void *pair_upload(struct samkv_stream *stream, const void *host, size_t bytes)
{
    void *memory = NULL;
    struct samkv_error err = {0};
    if (stream->device->ops->alloc(stream->device, bytes, &memory))
        need(NULL);
    stream->device->ops->upload(stream, memory, host, bytes);
    if (stream->device->ops->sync(stream, &err)) /* the host's memory may be on the stack */
        fprintf(stderr, "upload: %s\n", err.text);
    return memory;
}

void pair_expect(struct pair *p, bool good, const char *what)
{
    p->checks++;
    p->failures += !good;
    if (!good)
        printf("FAIL %s\n", what);
}

/* The operand's bytes as `device` holds them, margins included. */
static void *image_of(const struct samkv_device *device, const struct pair_operand *o, bool gpu)
{
    size_t all = o->count + 2 * PAIR_MARGIN, first = bytes_on(device, o, PAIR_MARGIN);
    const void *contents = gpu && o->gpu_contents ? o->gpu_contents : o->contents;
    uint8_t *image = need(malloc(bytes_on(device, o, all)));
    memset(image, 0xff, bytes_on(device, o, all)); /* NaN in every float type, −1 as an index */
    if (o->kind != PAIR_ACTIVATION) {
        memcpy(image + first, contents, o->count * host_bytes(o->kind));
        return image;
    }
    for (size_t i = 0; i < o->count; i++)
        from_f32(device->dtype, ((const float *)contents)[i], image + first, i);
    return image;
}

struct side {
    struct samkv_device *device;
    struct samkv_stream *stream;
    void *memory[PAIR_OPERANDS], *result[PAIR_OPERANDS];
};

/* Runs the test once on one device; results are read back into fresh memory. */
static bool run_side(struct side *s, const struct pair_test *t, bool gpu)
{
    const struct samkv_ops *ops = s->device->ops;
    void *operands[PAIR_OPERANDS] = {0};
    struct samkv_error err = {0};
    for (int i = 0; i < t->operands; i++) {
        const struct pair_operand *o = &t->operand[i];
        size_t bytes = bytes_on(s->device, o, o->count + 2 * PAIR_MARGIN);
        if (!s->memory[i] && ops->alloc(s->device, bytes, &s->memory[i]))
            return false;
        void *image = image_of(s->device, o, gpu);
        ops->upload(s->stream, s->memory[i], image, bytes);
        if (ops->sync(s->stream, &err))
            fprintf(stderr, "%s: upload: %s\n", t->name, err.text);
        free(image);
        operands[i] = (uint8_t *)s->memory[i] + bytes_on(s->device, o, PAIR_MARGIN);
    }
    t->run(s->stream, operands, t->shape);
    for (int i = 0; i < t->operands; i++) {
        size_t bytes = bytes_on(s->device, &t->operand[i], t->operand[i].count + 2 * PAIR_MARGIN);
        s->result[i] = need(malloc(bytes));
        ops->download(s->stream, s->result[i], s->memory[i], bytes);
    }
    if (ops->sync(s->stream, &err)) {
        fprintf(stderr, "%s: %s\n", t->name, err.text);
        return false;
    }
    return true;
}

static void free_results(struct side *s)
{
    for (int i = 0; i < PAIR_OPERANDS; i++) {
        free(s->result[i]);
        s->result[i] = NULL;
    }
}

static void free_side(struct side *s)
{
    free_results(s);
    for (int i = 0; i < PAIR_OPERANDS; i++)
        s->device->ops->release(s->device, s->memory[i]);
}

/* ------------------------------------------------------------------ comparison */

/* Inputs must be as they were: a kernel that writes outside its output is found here too. */
static bool untouched(const struct side *s, const struct pair_test *t, int i, bool gpu)
{
    void *image = image_of(s->device, &t->operand[i], gpu);
    bool same =
        !memcmp(image, s->result[i], bytes_on(s->device, &t->operand[i], t->operand[i].count + 2 * PAIR_MARGIN));
    free(image);
    return same;
}

static bool compare(const struct pair_test *t, int i, const struct side *gpu, const struct side *cpu)
{
    const struct pair_operand *o = &t->operand[i];
    enum samkv_dtype on_gpu = dtype_on(gpu->device, o->kind), on_cpu = dtype_on(cpu->device, o->kind);
    size_t all = o->count + 2 * PAIR_MARGIN, written = 0, worst_at = 0;
    double square = 0, worst = 0;
    for (size_t j = 0; j < all; j++) {
        double want = to_f32(on_cpu, cpu->result[i], j);
        if (!isnan(want)) {
            square += want * want;
            written++;
        }
    }
    double rms = written ? sqrt(square / (double)written) : 0;
    for (size_t j = 0; j < all; j++) {
        double want = to_f32(on_cpu, cpu->result[i], j), got = to_f32(on_gpu, gpu->result[i], j);
        if (isnan(want) && isnan(got))
            continue;
        double diff = fabs(got - want) / (fabs(want) + rms + 1e-30);
        if (!(diff <= worst)) {
            worst = diff;
            worst_at = j;
            if (isnan(diff))
                break;
        }
    }
    if (worst <= t->tolerance && written > 0)
        return true;
    printf("FAIL %s: operand %d at %zd of %zu: got %g, want %g (off by %.2e, allowed %.2e)\n", t->name, i,
           (ssize_t)worst_at - PAIR_MARGIN, o->count, to_f32(on_gpu, gpu->result[i], worst_at),
           to_f32(on_cpu, cpu->result[i], worst_at), worst, t->tolerance);
    return false;
}

static bool same_again(const struct pair_test *t, int i, const struct side *first, const struct side *second)
{
    size_t bytes = bytes_on(first->device, &t->operand[i], t->operand[i].count + 2 * PAIR_MARGIN);
    if (!memcmp(first->result[i], second->result[i], bytes))
        return true;
    printf("FAIL %s: operand %d has other bytes the second time\n", t->name, i);
    return false;
}

void pair_check(struct pair *p, struct pair_test *t)
{
    struct side gpu = {.device = p->gpu, .stream = p->gpu_stream}, cpu = {.device = p->cpu, .stream = p->cpu_stream};
    struct side again = gpu;
    bool good = run_side(&cpu, t, false) && run_side(&gpu, t, true);
    memcpy(again.memory, gpu.memory, sizeof gpu.memory);
    good = good && run_side(&again, t, true);
    for (int i = 0; i < t->operands && good; i++) {
        if (t->operand[i].output) {
            good = compare(t, i, &gpu, &cpu) && same_again(t, i, &gpu, &again);
        } else if (!untouched(&gpu, t, i, true)) {
            printf("FAIL %s: operand %d is an input and was written\n", t->name, i);
            good = false;
        }
    }
    p->checks++;
    p->failures += !good;
    free_results(&again);
    free_side(&gpu);
    free_side(&cpu);
    for (int i = 0; i < t->operands; i++) {
        free(t->operand[i].contents);
        free(t->operand[i].gpu_contents);
    }
    t->operands = 0;
}
