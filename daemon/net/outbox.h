#pragma once
/* The way back: frames that workers made, for the event loop to send. */
#include <pthread.h>
#include <uv.h>

#include "daemon/net/output.h"

struct samkv_outbox {
    pthread_mutex_t lock;
    struct samkv_outgoing *first, **last;
    uv_async_t wake; /* its callback takes what is there */
};

/* on_wake runs on the loop, with wake.data = arg. Close `wake` with uv_close, then call deinit. */
enum samkv_status samkv_outbox_init(struct samkv_outbox *, uv_loop_t *, uv_async_cb on_wake, void *arg) SAMKV_MUST_USE;
void samkv_outbox_deinit(struct samkv_outbox *); /* frees what nobody took */

/* Any thread. */
void samkv_outbox_post(struct samkv_outbox *, struct samkv_outgoing *);
/* All that is there, in order, linked by next; NULL when empty. The loop's thread. */
struct samkv_outgoing *samkv_outbox_take(struct samkv_outbox *);
