#include "daemon/base/log_limit.h"

#include <stddef.h>

static struct samkv_log_site *find(struct samkv_log_limit *l, const char *format)
{
    size_t first = ((uintptr_t)format >> 3) % SAMKV_LOG_SITES;
    for (size_t i = 0; i < SAMKV_LOG_SITES; i++) {
        struct samkv_log_site *site = &l->sites[(first + i) % SAMKV_LOG_SITES];
        if (!site->format)
            site->format = format;
        if (site->format == format)
            return site;
    }
    return NULL;
}

static bool pass(struct samkv_log_site *site, int level, uint64_t now_ms)
{
    /* What was suppressed is told before the place speaks again: until then its window does not end. */
    if (!site->spoken || (now_ms - site->since_ms >= SAMKV_LOG_WINDOW_MS && !site->suppressed)) {
        site->since_ms = now_ms;
        site->spoken = 0;
    }
    if (site->spoken < SAMKV_LOG_BURST) {
        site->spoken++;
        return true;
    }
    site->suppressed++;
    site->level = level;
    return false;
}

bool samkv_log_limit_pass(struct samkv_log_limit *l, const char *format, int level, uint64_t now_ms)
{
    pthread_mutex_lock(&l->lock);
    struct samkv_log_site *site = find(l, format);
    bool may = !site || pass(site, level, now_ms);
    pthread_mutex_unlock(&l->lock);
    return may;
}

bool samkv_log_limit_next(struct samkv_log_limit *l, uint64_t now_ms, struct samkv_log_site *out)
{
    bool found = false;
    pthread_mutex_lock(&l->lock);
    for (size_t i = 0; i < SAMKV_LOG_SITES && !found; i++) {
        struct samkv_log_site *site = &l->sites[i];
        if (!site->suppressed || now_ms - site->since_ms < SAMKV_LOG_WINDOW_MS)
            continue;
        *out = *site;
        site->suppressed = site->spoken = 0;
        found = true;
    }
    pthread_mutex_unlock(&l->lock);
    return found;
}
