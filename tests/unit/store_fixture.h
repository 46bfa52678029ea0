#pragma once
/* What the store's tests share: a directory that goes away, documents whose bytes follow from a seed, and their reading
 * back. */
#include <check.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/store/store.h"

struct fixture_directory {
    char path[64];
};

static inline void fixture_directory_make(struct fixture_directory *d)
{
    snprintf(d->path, sizeof d->path, "%s/samkv-store-XXXXXX", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(d->path));
}

static inline void fixture_directory_remove(struct fixture_directory *d)
{
    DIR *dir = opendir(d->path);
    struct dirent *e;
    while (dir && (e = readdir(dir)))
        unlinkat(dirfd(dir), e->d_name, 0);
    if (dir)
        closedir(dir);
    rmdir(d->path);
}

static inline struct samkv_store *fixture_open_with(const struct fixture_directory *d, uint64_t max_bytes,
                                                    enum samkv_compact compact)
{
    struct samkv_store_options o = {
        .path = d->path, .max_bytes = max_bytes, .codec = SAMKV_CODEC_ZSTD, .compact = compact};
    struct samkv_store *s;
    struct samkv_error err = {0};
    enum samkv_status st = samkv_store_open(&o, &s, &err);
    ck_assert_msg(st == SAMKV_OK, "open: %s: %s", samkv_status_name(st), err.text);
    return s;
}

static inline struct samkv_store *fixture_open(const struct fixture_directory *d, uint64_t max_bytes)
{
    return fixture_open_with(d, max_bytes, SAMKV_COMPACT_AUTO);
}

/* What the disk has given for all data files. */
static inline uint64_t fixture_allocated(const struct fixture_directory *d)
{
    DIR *dir = opendir(d->path);
    uint64_t bytes = 0;
    struct stat st;
    for (struct dirent *e; dir && (e = readdir(dir));)
        if (strncmp(e->d_name, "data.", 5) == 0 && strstr(e->d_name, "-lock") == NULL &&
            fstatat(dirfd(dir), e->d_name, &st, 0) == 0)
            bytes += (uint64_t)st.st_blocks * 512;
    if (dir)
        closedir(dir);
    return bytes;
}

/* A document that is all made from `seed`: same seed and shape, same bytes, same key. */
struct fixture_document {
    struct samkv_manifest m;
    int32_t *tokens;
    uint32_t seed;
};

static inline uint64_t fixture_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static inline void fixture_document_make(struct fixture_document *d, uint32_t seed, struct samkv_kv_shape shape,
                                         uint32_t tokens, uint32_t block_tokens)
{
    *d = (struct fixture_document){.seed = seed};
    d->tokens = malloc(tokens * sizeof *d->tokens);
    uint64_t state = seed;
    for (uint32_t i = 0; i < tokens; i++)
        d->tokens[i] = (int32_t)(fixture_random(&state) % 150000);
    d->m = (struct samkv_manifest){.shape = shape,
                                   .heads = 2 * shape.kv_heads,
                                   .tokens = tokens,
                                   .block_tokens = block_tokens,
                                   .blocks = (tokens - 1) / block_tokens + 1,
                                   .local_tokens = 16,
                                   .codec = SAMKV_CODEC_DEFAULT};
    uint8_t fingerprint[16] = {1, 2, 3};
    samkv_document_key(fingerprint, shape.dtype, NULL, 0, block_tokens, 16, d->tokens, tokens, &d->m.key);
}

static inline void fixture_document_free(struct fixture_document *d)
{
    free(d->tokens);
}

/* Numbers like those of a KV cache: centred, with a scale of its own for each channel. */
static inline void fixture_fill(enum samkv_dtype dtype, uint64_t seed, size_t count, void *out)
{
    uint64_t state = seed;
    for (size_t i = 0; i < count; i++) {
        uint64_t r = fixture_random(&state);
        float sum = 0;
        for (int k = 0; k < 4; k++)
            sum += (float)(r >> 16 * k & 0xffff) / 65536.0f - 0.5f;
        float f = sum * (float)(1u << (i % 5)) * 0.25f;
        uint16_t h = dtype == SAMKV_BF16 ? samkv_f32_to_bf16(f) : samkv_f32_to_f16(f);
        if (dtype == SAMKV_F32)
            memcpy((uint8_t *)out + 4 * i, &f, 4);
        else
            memcpy((uint8_t *)out + 2 * i, &h, 2);
    }
}

static inline uint32_t fixture_block_tokens(const struct samkv_manifest *m, uint32_t block)
{
    return block + 1 < m->blocks ? m->block_tokens : m->tokens - block * m->block_tokens;
}

static inline size_t fixture_piece_elements(const struct samkv_manifest *m, uint32_t block)
{
    return fixture_block_tokens(m, block) * samkv_kv_width(&m->shape);
}

/* The pieces of a block, one after the other in *bytes; both to be freed. filled = false: for reading into. */
static inline void **fixture_block(const struct fixture_document *d, uint32_t block, bool filled, uint8_t **bytes)
{
    const struct samkv_manifest *m = &d->m;
    size_t pieces = 2 * (size_t)m->shape.layers, elements = fixture_piece_elements(m, block),
           piece = elements * samkv_dtype_bytes(m->shape.dtype);
    void **list = malloc(pieces * sizeof *list);
    *bytes = malloc(pieces * piece);
    memset(*bytes, 0xa5, pieces * piece);
    for (size_t i = 0; i < pieces; i++) {
        list[i] = *bytes + i * piece;
        if (filled)
            fixture_fill(m->shape.dtype, (uint64_t)d->seed << 32 | block << 12 | i, elements, list[i]);
    }
    return list;
}

static inline size_t fixture_index_count(const struct samkv_manifest *m)
{
    return m->blocks * samkv_kv_width(&m->shape) + (size_t)m->heads * m->shape.head_dim;
}

static inline enum samkv_status fixture_write_block(struct samkv_writer *w, const struct fixture_document *d,
                                                    uint32_t block, struct samkv_error *err)
{
    uint8_t *bytes;
    void **list = fixture_block(d, block, true, &bytes);
    enum samkv_status st = samkv_writer_block(w, block, (const void *const *)list, err);
    free(list);
    free(bytes);
    return st;
}

static inline enum samkv_status fixture_write_index(struct samkv_writer *w, const struct fixture_document *d,
                                                    uint32_t layer, struct samkv_error *err)
{
    size_t count = fixture_index_count(&d->m);
    float *index = malloc(count * sizeof *index);
    fixture_fill(SAMKV_F32, (uint64_t)d->seed << 32 | 0xffff0000u | layer, count, index);
    enum samkv_status st = samkv_writer_index(w, layer, index, count, err);
    free(index);
    return st;
}

/* Begins, writes all and commits (id = NULL: without a name). OK also when it was there, and is then named. */
static inline enum samkv_status fixture_ingest_once(struct samkv_store *s, const struct fixture_document *d,
                                                    const char *id, struct samkv_error *err)
{
    struct samkv_writer *w;
    enum samkv_status st = samkv_writer_begin(s, &d->m, d->tokens, &w, err);
    if (st != SAMKV_OK)
        return st;
    if (!w)
        return id ? samkv_store_name_put(s, "c", id, NULL, &d->m.key, err) : SAMKV_OK;
    for (uint32_t b = 0; st == SAMKV_OK && b < d->m.blocks; b++)
        st = fixture_write_block(w, d, b, err);
    for (uint32_t l = 0; st == SAMKV_OK && l < d->m.shape.layers; l++)
        st = fixture_write_index(w, d, l, err);
    if (st == SAMKV_OK)
        return samkv_writer_commit(w, id ? "c" : NULL, id, id ? "a title" : NULL, err);
    samkv_writer_abort(w);
    return st;
}

/* A document that is there may go before it has its name (NOT_FOUND): then once more, as an ingest does. */
static inline enum samkv_status fixture_ingest(struct samkv_store *s, const struct fixture_document *d, const char *id,
                                               struct samkv_error *err)
{
    enum samkv_status st = SAMKV_NOT_FOUND;
    for (int i = 0; st == SAMKV_NOT_FOUND && i < 3; i++)
        st = fixture_ingest_once(s, d, id, err);
    return st;
}

#define FIXTURE_OK(call)                                                                                               \
    do {                                                                                                               \
        enum samkv_status fixture_status = (call);                                                                     \
        ck_assert_msg(fixture_status == SAMKV_OK, "%s: %s: %s", #call, samkv_status_name(fixture_status), err.text);   \
    } while (0)

/* Reads every record and compares it with what fixture_ingest wrote: the first status that is not OK, or MISMATCH. */
static inline enum samkv_status fixture_compare(struct samkv_snapshot *sn, const struct fixture_document *d)
{
    const struct samkv_manifest *m = &d->m;
    struct samkv_manifest there;
    enum samkv_status st = samkv_snapshot_manifest(sn, &m->key, &there, NULL);
    int32_t *tokens = malloc(m->tokens * sizeof *tokens);
    if (st == SAMKV_OK)
        st = samkv_snapshot_tokens(sn, &m->key, tokens, m->tokens, NULL);
    if (st == SAMKV_OK && memcmp(tokens, d->tokens, m->tokens * sizeof *tokens) != 0)
        st = SAMKV_MISMATCH;
    free(tokens);
    for (uint32_t b = 0; st == SAMKV_OK && b < m->blocks; b++) {
        uint8_t *want, *got;
        void **a = fixture_block(d, b, true, &want), **g = fixture_block(d, b, false, &got);
        st = samkv_snapshot_block(sn, &there, b, g, NULL);
        size_t bytes = fixture_block_tokens(m, b) * samkv_kv_token_bytes(&m->shape);
        if (st == SAMKV_OK && memcmp(want, got, bytes) != 0)
            st = SAMKV_MISMATCH;
        free(a), free(g), free(want), free(got);
    }
    size_t count = fixture_index_count(m);
    float *want = malloc(count * sizeof *want), *got = malloc(count * sizeof *got);
    for (uint32_t l = 0; st == SAMKV_OK && l < m->shape.layers; l++) {
        fixture_fill(SAMKV_F32, (uint64_t)d->seed << 32 | 0xffff0000u | l, count, want);
        st = samkv_snapshot_index(sn, &there, l, got, count, NULL);
        if (st == SAMKV_OK && memcmp(want, got, count * sizeof *want) != 0)
            st = SAMKV_MISMATCH;
    }
    free(want), free(got);
    return st;
}

/* The same in a snapshot of its own, by name; NOT_FOUND when there is no such name. */
static inline enum samkv_status fixture_check_name(struct samkv_store *s, const char *id,
                                                   const struct fixture_document *d)
{
    struct samkv_snapshot *sn;
    struct samkv_name name;
    enum samkv_status st = samkv_snapshot_begin(s, &sn, NULL);
    if (st != SAMKV_OK)
        return st;
    st = samkv_snapshot_name(sn, "c", id, &name, NULL);
    if (st == SAMKV_OK) {
        st = memcmp(&name.key, &d->m.key, sizeof name.key) ? SAMKV_MISMATCH : fixture_compare(sn, d);
        samkv_name_deinit(&name);
    }
    samkv_snapshot_end(sn);
    return st;
}

static inline struct samkv_store_stats fixture_stats(struct samkv_store *s)
{
    struct samkv_store_stats stats;
    struct samkv_error err = {0};
    FIXTURE_OK(samkv_store_stats(s, &stats, &err));
    return stats;
}

static inline int fixture_run(Suite *suite)
{
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
