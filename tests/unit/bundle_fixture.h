#pragma once
/* A stream in memory, and stores to export from and to import into. */
#include "tests/unit/store_fixture.h"

#include "daemon/store/bundle.h"

struct memory_stream {
    uint8_t *data;
    size_t count, at;
    size_t piece; /* a read gives at most so much; 0: all that is asked for */
    struct samkv_bundle_stream stream;
};

static inline enum samkv_status memory_write(void *arg, const void *bytes, size_t count, struct samkv_error *err)
{
    struct memory_stream *m = arg;
    (void)err;
    m->data = realloc(m->data, m->count + count);
    memcpy(m->data + m->count, bytes, count);
    m->count += count;
    return SAMKV_OK;
}

static inline enum samkv_status memory_read(void *arg, void *bytes, size_t count, size_t *got, struct samkv_error *err)
{
    struct memory_stream *m = arg;
    (void)err;
    size_t n = m->at < m->count ? m->count - m->at : 0;
    n = n < count ? n : count;
    if (m->piece && n > m->piece)
        n = m->piece;
    if (n)
        memcpy(bytes, m->data + m->at, n);
    m->at += n;
    *got = n;
    return SAMKV_OK;
}

static inline enum samkv_status memory_skip(void *arg, uint64_t count, struct samkv_error *err)
{
    struct memory_stream *m = arg;
    (void)err;
    m->at = count > m->count ? m->count : m->at + (size_t)count;
    return SAMKV_OK;
}

static inline struct samkv_bundle_stream *memory_rewind(struct memory_stream *m, bool skips)
{
    m->at = 0;
    m->stream = (struct samkv_bundle_stream){memory_write, memory_read, skips ? memory_skip : NULL, m};
    return &m->stream;
}

static inline void memory_free(struct memory_stream *m)
{
    free(m->data);
    *m = (struct memory_stream){0};
}

static inline enum samkv_status go_on(void *arg, const struct samkv_bundle_progress *p, struct samkv_error *err)
{
    (void)arg, (void)p, (void)err;
    return SAMKV_OK;
}

static inline struct samkv_store *bundle_store(const struct fixture_directory *d, enum samkv_codec codec,
                                               uint64_t max_bytes)
{
    struct samkv_store_options o = {.path = d->path, .max_bytes = max_bytes, .codec = codec};
    struct samkv_store *s;
    struct samkv_error err = {0};
    FIXTURE_OK(samkv_store_open(&o, &s, &err));
    return s;
}

/* Collection "c" of documents as fixture_document_make makes them. */
static inline struct samkv_collection bundle_collection(struct samkv_kv_shape shape, uint32_t block_tokens,
                                                        enum samkv_codec codec)
{
    return (struct samkv_collection){.name = "c",
                                     .model = "fixture",
                                     .fingerprint = {1, 2, 3},
                                     .shape = shape,
                                     .heads = 2 * shape.kv_heads,
                                     .block_tokens = block_tokens,
                                     .init_tokens = 16,
                                     .local_tokens = 16,
                                     .codec = codec};
}

static inline void bundle_export(struct samkv_store *s, struct memory_stream *out, struct samkv_bundle_progress *p)
{
    struct samkv_error err = {0};
    memory_free(out);
    FIXTURE_OK(samkv_bundle_export(s, "c", "", NULL, memory_rewind(out, false), go_on, NULL, p, &err));
    ck_assert_uint_eq(p->bytes, out->count);
}

static inline enum samkv_status bundle_import(struct samkv_store *s, struct memory_stream *in, bool keep, bool skips,
                                              struct samkv_bundle_progress *p, struct samkv_error *err)
{
    const struct samkv_bundle_options o = {.keep = keep};
    const struct samkv_bundle_host host = {0};
    return samkv_bundle_import(s, &o, memory_rewind(in, skips), &host, p, err);
}
