#pragma once
/*
 * What a job notes of its own way: phases with their beginnings and ends. A job gets a trace or NULL, and adds to it
 * as phases end; phases may overlap. Adding is allowed from several threads of one job at a time; reading only when the
 * job is over.
 */
#include <stdatomic.h>
#include <stdint.h>

#define SAMKV_TRACE_SPANS 20

/* clang-format off */
#define SAMKV_PHASE_MAP(X)                                                                     \
    X(QUEUE, "queue")         /* waiting for a worker */                                       \
    X(OPEN, "open")           /* collection, manifests, the query's tokens */                  \
    X(INDEX, "index") X(QUERY, "query") X(SELECT, "select") X(READ, "read")                    \
    X(RECOMPUTE, "recompute") X(REPLY, "reply")                                                \
    X(HEAL, "heal")           /* damage that was met, computed again */                        \
    X(DECODE, "decode")       /* of an answer, from its first token on */                      \
    X(PREFILL, "prefill")     /* of an ingest, waiting for a pass and for the disk included */ \
    X(COMMIT, "commit")
/* clang-format on */

enum samkv_phase {
#define SAMKV_PHASE_ENUM(name, text) SAMKV_PHASE_##name,
    SAMKV_PHASE_MAP(SAMKV_PHASE_ENUM)
#undef SAMKV_PHASE_ENUM
        SAMKV_PHASE_COUNT
};

struct samkv_span {
    enum samkv_phase phase;
    double start_ms, end_ms; /* of samkv_now_ms */
};

/* All zero at the start. What finds no room is not noted. */
struct samkv_trace {
    struct samkv_span spans[SAMKV_TRACE_SPANS];
    _Atomic uint32_t taken; /* may exceed the room */
    uint64_t repaired;      /* records of damage that was met */
};

const char *samkv_phase_name(enum samkv_phase);

/* NULL is allowed. A span without any length is dropped: the phase did not come to run. */
void samkv_trace_add(struct samkv_trace *, enum samkv_phase, double start_ms, double end_ms);

/* The same from *since to now, which *since becomes. Returns the milliseconds. */
double samkv_trace_lap(struct samkv_trace *, enum samkv_phase, double *since);

uint32_t samkv_trace_count(const struct samkv_trace *);
