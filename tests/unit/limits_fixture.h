#pragma once
/* What the tests of limits share: a clock that only they move, collections with limits, and looking at the data file.
 */
#include <stdatomic.h>
#include <sys/stat.h>

#include "tests/unit/store_fixture.h"

static const struct samkv_kv_shape limits_shape = {4, 4, 32, SAMKV_F32};
static atomic_int_fast64_t limits_clock = 1000000;

static inline int64_t limits_now(void *arg)
{
    (void)arg;
    return atomic_load(&limits_clock);
}

static inline struct samkv_store *limits_open(const struct fixture_directory *d, struct samkv_store_options o)
{
    struct samkv_store *s;
    struct samkv_error err = {0};
    o.path = d->path;
    o.codec = SAMKV_CODEC_ZSTD;
    o.now_s = limits_now;
    FIXTURE_OK(samkv_store_open(&o, &s, &err));
    return s;
}

/* `tokens` make about 4 KiB each, of which little compresses. */
static inline struct fixture_document limits_document(uint32_t seed, uint32_t tokens)
{
    struct fixture_document d;
    fixture_document_make(&d, seed, limits_shape, tokens, 16);
    d.m.codec = SAMKV_CODEC_ZSTD;
    return d;
}

static inline void limits_collection(struct samkv_store *s, const char *name, uint64_t quota_bytes, uint64_t ttl_s)
{
    struct samkv_collection c = {.shape = limits_shape,
                                 .heads = 8,
                                 .block_tokens = 16,
                                 .codec = SAMKV_CODEC_ZSTD,
                                 .quota_bytes = quota_bytes,
                                 .ttl_s = ttl_s};
    struct samkv_error err = {0};
    snprintf(c.name, sizeof c.name, "%s", name);
    FIXTURE_OK(samkv_store_collection_put(s, &c, &err));
}

/* The document of this seed under its number. */
static inline enum samkv_status limits_put(struct samkv_store *s, uint32_t seed, uint32_t tokens,
                                           struct samkv_error *err)
{
    struct fixture_document d = limits_document(seed, tokens);
    char id[16];
    snprintf(id, sizeof id, "%u", seed);
    enum samkv_status st = fixture_ingest(s, &d, id, err);
    fixture_document_free(&d);
    return st;
}

static inline enum samkv_status limits_check(struct samkv_store *s, uint32_t seed, uint32_t tokens)
{
    struct fixture_document d = limits_document(seed, tokens);
    char id[16];
    snprintf(id, sizeof id, "%u", seed);
    enum samkv_status st = fixture_check_name(s, id, &d);
    fixture_document_free(&d);
    return st;
}

static inline void limits_use(struct samkv_store *s, uint32_t seed, uint32_t tokens, int times)
{
    struct fixture_document d = limits_document(seed, tokens);
    while (times--)
        samkv_store_use(s, &d.m.key);
    fixture_document_free(&d);
}

static inline void limits_pin(struct samkv_store *s, uint32_t seed, bool pinned)
{
    struct samkv_error err = {0};
    char id[16];
    snprintf(id, sizeof id, "%u", seed);
    FIXTURE_OK(samkv_store_pin(s, "c", id, pinned, &err));
}

static inline uint64_t limits_file_bytes(const struct fixture_directory *d)
{
    return fixture_allocated(d);
}

static inline struct samkv_collection_stats limits_stats(struct samkv_store *s, const char *collection)
{
    struct samkv_collection_stats stats;
    samkv_store_collection_stats(s, collection, &stats);
    return stats;
}
