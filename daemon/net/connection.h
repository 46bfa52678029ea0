#pragma once
/*
 * A session on the event loop: polls its socket for what it wants, and keeps the requests that it has with workers.
 * Also what server.c and connection.c share of the server. The loop's thread only.
 */
#include <uv.h>

#include "daemon/base/pool.h"
#include "daemon/net/lease_watch.h"
#include "daemon/net/outbox.h"
#include "daemon/net/request.h"
#include "daemon/net/server.h"
#include "daemon/net/session.h"
#include "daemon/net/users.h"

struct samkv_connection {
    struct samkv_server *server;
    struct samkv_connection *next, **link; /* the server's list */
    struct samkv_request *requests;        /* with workers */
    uv_poll_t poll;
    int polled;         /* events asked for now */
    bool gone;          /* the session is deinitialised: answers have nowhere to go */
    bool handle_closed; /* with this and no request left, the memory goes */
    struct samkv_caller caller;
    struct samkv_user *user;
    struct samkv_session session;
};

struct samkv_server {
    uv_loop_t loop;
    uv_poll_t poll;
    uv_signal_t signals[2], hangup;
    uv_timer_t timer;
    uv_idle_t awake;         /* active: the loop looks for events instead of sleeping until one comes */
    uint64_t awake_until_ns; /* of uv_hrtime */
    struct samkv_outbox outbox;
    bool outbox_open;
    struct samkv_listener listener;
    struct samkv_service *service;
    struct samkv_pool *pool;
    struct samkv_session_host host;
    struct samkv_budget budget;
    struct samkv_users users;
    struct samkv_lease_watches leases;
    struct samkv_connection *connections;
    bool accept_paused;
    uint64_t stopping_since_ms; /* 0: not stopping */
    bool cancelled, timed_out;
    void (*reload)(void *arg);
    void *reload_arg;
    atomic_int reloads; /* asked for and not done; only the first one's job counts them down */
    bool watched;       /* systemd restarts a daemon that it does not hear from */
    int open_handles;   /* whose close callback has not come */
};

void samkv_connection_host_init(struct samkv_server *);
/* Takes fd over, unless it fails: BUSY when there are too many, or NO_MEMORY. */
enum samkv_status samkv_connection_open(struct samkv_server *, int fd, struct samkv_error *) SAMKV_MUST_USE;
void samkv_connection_tick(struct samkv_connection *);
/* A frame from a worker: to its client, or away when that is gone. */
void samkv_connection_deliver(struct samkv_outgoing *);
void samkv_connection_cancel(struct samkv_connection *);
/* Sends what waits, then ends. */
void samkv_connection_end(struct samkv_connection *);
/* Ends at once: socket and memory go, requests go on until they notice. */
void samkv_connection_close(struct samkv_connection *);

/* A client just spoke: it may well speak again before a sleeping processor would have woken. */
void samkv_server_stay_awake(struct samkv_server *);

/* Something ended: may be the last thing that a stop waited for. Called at the end of the loop's callbacks. */
void samkv_server_after_change(struct samkv_server *);
