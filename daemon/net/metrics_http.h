#pragma once
/*
 * GET /metrics (the exposition) and GET /healthz over HTTP, on a thread of their own: nothing here waits for the event
 * loop, and the loop for nothing here. Another thread reads the store's sums every few seconds, so that no scrape does.
 */
#include <stdbool.h>

#include "daemon/net/listen.h"
#include "daemon/net/service.h"

struct samkv_metrics_http;

/* False: built without libmicrohttpd, and start answers UNSUPPORTED. */
bool samkv_metrics_http_is_built(void);

/*
 * address: "127.0.0.1:9464", "[::1]:9464", a port alone (on 127.0.0.1), or a path with a '/' for a Unix socket (mode
 * 0660). INVALID for anything else and for addresses that other machines reach: there is no authentication. Start when
 * the server is there, stop before it goes. NULL is allowed.
 */
enum samkv_status samkv_metrics_http_start(struct samkv_service *, const char *address, struct samkv_metrics_http **out,
                                           struct samkv_error *) SAMKV_MUST_USE;
void samkv_metrics_http_stop(struct samkv_metrics_http *);

/* INVALID as above, and UNSUPPORTED; looks at the text only. */
enum samkv_status samkv_metrics_address_check(const char *address, struct samkv_error *) SAMKV_MUST_USE;

/* What start listens on. */
enum samkv_status samkv_metrics_listen(const char *address, struct samkv_listener *out,
                                       struct samkv_error *) SAMKV_MUST_USE;
