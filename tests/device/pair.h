#pragma once
/*
 * A GPU and its CPU twin side by side, and one way to run an operation on both.
 *
 * A test names its operands with their first contents; pair_check() puts them on both devices, runs the operation,
 * and compares every output element by element. Outputs begin as NaN, with a margin of NaN on both sides: where the
 * twin wrote nothing, the GPU must have written nothing either. The GPU runs twice from the same contents, and must
 * give the same bytes.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"

#define PAIR_OPERANDS 8
#define PAIR_MARGIN   64 /* elements; keeps the alignment of what is between */

struct pair {
    const char *module, *dtype; /* as pair_open() got them, for processes of their own */
    struct samkv_device *gpu, *cpu;
    struct samkv_stream *gpu_stream, *cpu_stream;
    uint64_t random;
    int checks, failures;
};

enum pair_kind {
    PAIR_ACTIVATION, /* f32 on the CPU, the device's activation type on the GPU; contents are exact in both */
    PAIR_F32,
    PAIR_F16,
    PAIR_BF16,
    PAIR_I32,
    PAIR_F64,
};

/* `contents` belongs to the pair's caller, as float for ACTIVATION and F32, raw otherwise; see pair_operand(). */
struct pair_operand {
    enum pair_kind kind;
    size_t count;
    bool output;
    void *contents;
    void *gpu_contents; /* NULL: the same */
};

struct pair_test {
    const char *name;
    void (*run)(struct samkv_stream *, void *const *operands, const void *shape);
    const void *shape;
    double tolerance; /* of |gpu − cpu| / (|cpu| + rms(cpu)) */
    int operands;
    struct pair_operand operand[PAIR_OPERANDS];
};

/* A device of the module, or "cpu" for a double with a memory of its own; NULL with a message on stderr. */
struct samkv_device *pair_device(const char *module, const char *dtype);

/* Opens the module and both devices; false with a message on stderr. */
bool pair_open(struct pair *, const char *module, const char *dtype);
void pair_close(struct pair *);

/* Adds an operand of `count` elements, to be filled by the caller or one of the functions below. */
struct pair_operand *pair_add(struct pair_test *, enum pair_kind, size_t count);

/* Random values around 0 with this deviation, exact in the activation type. */
struct pair_operand *pair_add_random(struct pair *, struct pair_test *, enum pair_kind, size_t count, float deviation);

/* An output that begins as NaN. */
struct pair_operand *pair_add_output(struct pair_test *, enum pair_kind, size_t count);

/* A RoPE table of random angles, f32 [n][2][half]. */
void pair_add_table(struct pair *, struct pair_test *, int n, int half);

/* Runs and compares; frees the contents. Prints one line when something is wrong. */
void pair_check(struct pair *, struct pair_test *);

/* `bytes` of the host's in memory of the stream's device, for operands that hold device pointers. The caller releases.
 */
void *pair_upload(struct samkv_stream *, const void *host, size_t bytes);

/* Counts one check that is made without an operand, and prints `what` when it failed. */
void pair_expect(struct pair *, bool good, const char *what);

/* Uniform in [0, bound). */
uint32_t pair_random(struct pair *, uint32_t bound);

/* Tolerance of one rounding to the activation type, times `roundings`. */
double pair_rounding(const struct pair *, double roundings);
