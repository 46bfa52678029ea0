#pragma once
/*
 * How often one place in the code may speak: SAMKV_LOG_BURST lines in a window of time, and the rest is counted. A
 * place is known by the address of its format. Any thread.
 */
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define SAMKV_LOG_BURST     20
#define SAMKV_LOG_WINDOW_MS 5000
#define SAMKV_LOG_SITES     128 /* what comes beyond them is not limited */

struct samkv_log_site {
    const char *format; /* NULL: free */
    uint64_t since_ms;  /* of its window */
    uint32_t spoken;
    uint32_t suppressed; /* not told yet */
    int level;           /* of what was suppressed */
};

struct samkv_log_limit {
    pthread_mutex_t lock;
    struct samkv_log_site sites[SAMKV_LOG_SITES];
};
#define SAMKV_LOG_LIMIT_INIT                                                                                           \
    {                                                                                                                  \
        .lock = PTHREAD_MUTEX_INITIALIZER                                                                              \
    }

/* Whether this line may be written. */
bool samkv_log_limit_pass(struct samkv_log_limit *, const char *format, int level, uint64_t now_ms);

/* The next place whose window is over and that was not heard all: what it suppressed, which counts as told then. */
bool samkv_log_limit_next(struct samkv_log_limit *, uint64_t now_ms, struct samkv_log_site *out);
