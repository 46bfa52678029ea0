#pragma once
/*
 * Rows of a KV cache that arrive in bands of layers: a pass over the cache begins when the first band is in place and
 * waits before each later one, instead of for all layers.
 *
 *   band   layers [first_layer[b], first_layer[b + 1]).
 *
 * Threads: one side tells (arrive in order of bands, end), another waits on its lane; both at once.
 */
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "proto/status.h"
#include "kernels/kernels.h"

#define SAMKV_BANDS_MAX 4

struct samkv_bands {
    int count;
    uint32_t first_layer[SAMKV_BANDS_MAX + 1];
    struct samkv_event *in_place[SAMKV_BANDS_MAX];
    /* Called once, when the first band has arrived, on the telling thread; must not block. */
    void (*begin)(void *arg);
    void *begin_arg;

    pthread_mutex_t lock; /* of what follows */
    pthread_cond_t changed;
    int arrived;
    enum samkv_status ended; /* not OK: no more will come */
};

/*
 * As many bands as are worth it for so many layers; one where a layer's bytes of one token would leave a record's later
 * layers without the alignment that kernels want. On failure nothing is to be freed.
 */
enum samkv_status samkv_bands_init(struct samkv_bands *, struct samkv_device *, uint32_t layers,
                                   size_t layer_token_bytes, void (*begin)(void *arg), void *begin_arg,
                                   struct samkv_error *) SAMKV_MUST_USE;
void samkv_bands_deinit(struct samkv_bands *, struct samkv_device *); /* zeroed ones too */

/* Puts the next band's event behind what is on the stream, and lets who waits go on. */
void samkv_bands_arrive(struct samkv_bands *, struct samkv_stream *);

/* Nothing more will come. */
void samkv_bands_fail(struct samkv_bands *, enum samkv_status);

/* On the lane of `stream`: what it gets from here on comes behind the band that has this layer. */
enum samkv_status samkv_bands_await(struct samkv_bands *, struct samkv_stream *, uint32_t layer,
                                    struct samkv_error *) SAMKV_MUST_USE;
