#pragma once
/*
 * The event loop: listens, lets sessions read and write, gives requests to the pool of workers and sends what they
 * answer. Nothing that blocks runs on it.
 */
#include "proto/status.h"
#include "daemon/net/listen.h"
#include "daemon/net/service.h"

struct samkv_server;

struct samkv_server_options {
    struct samkv_service *service;  /* borrowed */
    struct samkv_listener listener; /* taken over */
    int workers;
    void (*reload)(void *arg); /* on SIGHUP, on a worker, one at a time; NULL: SIGHUP is ignored */
    void *reload_arg;
};

enum samkv_status samkv_server_new(const struct samkv_server_options *, struct samkv_server **out,
                                   struct samkv_error *) SAMKV_MUST_USE;

/*
 * Serves until SIGTERM or SIGINT; then refuses new requests, finishes running ones and returns. OK when all of them
 * ended; TIMEOUT when some did not: then a worker still uses models and store, and all that is left is to _exit. A
 * second signal ends the process at once (status 1): what was acknowledged is on disk already.
 */
enum samkv_status samkv_server_run(struct samkv_server *) SAMKV_MUST_USE;

/* After run returned OK, or without it. NULL is allowed. */
void samkv_server_free(struct samkv_server *);
