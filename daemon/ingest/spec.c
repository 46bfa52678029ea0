#include "daemon/ingest/spec.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/ids.h"
#include "daemon/ingest/calibration.h"

static const char *name_of(const char *collection)
{
    return collection && *collection ? collection : SAMKV_DEFAULT_COLLECTION;
}

enum samkv_status samkv_spec_open(struct samkv_models *models, struct samkv_snapshot *snapshot, const char *name,
                                  struct samkv_collection *out, struct samkv_engine **engine, struct samkv_error *err)
{
    name = name_of(name);
    enum samkv_status status = samkv_snapshot_collection(snapshot, name, out, err);
    if (status == SAMKV_NOT_FOUND)
        return samkv_fail(err, status,
                          "there is no collection '%s': ingest something into it, or see samkvctl ls --collections",
                          name);
    if (status)
        return status;
    *engine = samkv_models_match(models, out->fingerprint);
    if (!*engine) {
        char model[sizeof out->model];
        memcpy(model, out->model, sizeof model);
        samkv_collection_deinit(out);
        return samkv_fail(
            err, SAMKV_MISMATCH,
            "collection '%s' was made with model '%s', and no model with its fingerprint is loaded: start "
            "samkvd with that model, or ingest into another collection",
            name, model);
    }
    return SAMKV_OK;
}

/* ------------------------------------------------------------------ the parts of a new one */

static enum samkv_status pick_size(int64_t asked, uint32_t otherwise, uint32_t lowest, uint32_t highest,
                                   const char *what, uint32_t *out, struct samkv_error *err)
{
    if (asked >= 0 && (asked < lowest || asked > highest))
        return samkv_fail(err, SAMKV_INVALID, "%s %lld is out of range: say %u to %u", what, (long long)asked, lowest,
                          highest);
    *out = asked >= 0 ? (uint32_t)asked : otherwise;
    return SAMKV_OK;
}

static enum samkv_status pick_sizes(const struct samkv_collection_spec *spec, struct samkv_collection *c,
                                    struct samkv_error *err)
{
    enum samkv_status status =
        pick_size(spec->block_tokens, c->block_tokens, 1, SAMKV_MAX_BLOCK_TOKENS, "block size", &c->block_tokens, err);
    if (!status)
        status = pick_size(spec->init_tokens, c->init_tokens, 0, 1u << 20, "init tokens", &c->init_tokens, err);
    if (!status)
        status = pick_size(spec->local_tokens, c->local_tokens, 1, 1u << 20, "local tokens", &c->local_tokens, err);
    return status;
}

static enum samkv_status pick_codec(const char *asked, enum samkv_codec otherwise, enum samkv_codec *out,
                                    struct samkv_error *err)
{
    int codec = asked && *asked ? samkv_codec_parse(asked) : (int)otherwise;
    if (codec < 0)
        return samkv_fail(err, SAMKV_INVALID, "there is no codec '%.20s': say raw, zstd, rans (all lossless), q8 or q4",
                          asked);
    *out = (enum samkv_codec)codec;
    return SAMKV_OK;
}

static enum samkv_status check_tokens(const int32_t *tokens, size_t count, uint32_t vocab, struct samkv_error *err)
{
    for (size_t i = 0; i < count; i++)
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= vocab)
            return samkv_fail(err, SAMKV_INVALID, "preamble token %zu is %d: the model's vocabulary is 0 to %u", i,
                              tokens[i], vocab - 1);
    return SAMKV_OK;
}

/* The preamble that the request means, or the tokenizer's BOS for a text without one. */
static enum samkv_status preamble_ids(const struct samkv_ingest_request *r, const struct samkv_engine *engine,
                                      struct samkv_ids *ids, struct samkv_error *err)
{
    const struct samkv_collection_spec *spec = &r->spec;
    const struct samkv_tokenizer *tokenizer = engine->model->tokenizer;
    bool text = spec->has_preamble ? spec->preamble_is_text : r->text != NULL;
    if (!text) {
        enum samkv_status status =
            check_tokens(spec->preamble_tokens, spec->preamble_count, engine->model->config.vocab, err);
        if (!status && samkv_ids_append(ids, spec->preamble_tokens, spec->preamble_count))
            status = samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
        return status;
    }
    if (!tokenizer)
        return samkv_fail(err, SAMKV_UNSUPPORTED, "model '%s' has no tokenizer: give token ids instead of text",
                          engine->model->name);
    return samkv_tokenizer_encode(tokenizer, spec->has_preamble ? spec->preamble_text : "",
                                  spec->has_preamble ? spec->preamble_bytes : 0,
                                  SAMKV_ENCODE_SPECIAL | SAMKV_ENCODE_BOS, ids, err);
}

static enum samkv_status set_preamble(const struct samkv_ingest_request *r, const struct samkv_engine *engine,
                                      struct samkv_collection *c, struct samkv_error *err)
{
    const struct samkv_model_config *config = &engine->model->config;
    struct samkv_ids ids;
    samkv_ids_init(&ids);
    enum samkv_status status = preamble_ids(r, engine, &ids, err);
    if (!status && ids.count >= samkv_config_most_tokens(config))
        status =
            samkv_fail(err, SAMKV_TOO_LARGE, "a preamble of %zu tokens leaves no room in the model's context of %u",
                       ids.count, samkv_config_most_tokens(config));
    if (status || !ids.count) {
        samkv_ids_deinit(&ids);
        return status;
    }
    free(c->preamble);
    c->preamble = ids.data; /* handed over */
    c->preamble_tokens = (uint32_t)ids.count;
    /* A preamble is a document behind nothing: the store knows no other kind. */
    samkv_collection_document_key(c, true, c->preamble, c->preamble_tokens, &c->preamble_key);
    return SAMKV_OK;
}

static void take_model(struct samkv_collection *c, const struct samkv_engine *engine)
{
    snprintf(c->model, sizeof c->model, "%s", engine->model->name);
    memcpy(c->fingerprint, engine->model->fingerprint, sizeof c->fingerprint);
    c->shape = samkv_model_kv_shape(engine->model, engine->stored);
    c->heads = engine->model->config.heads;
}

/* Sizes of blocks and anchors as the model's calibration has them; a damaged one says nothing. */
static enum samkv_status take_calibrated(struct samkv_snapshot *snapshot, const struct samkv_engine *engine,
                                         struct samkv_collection *c, struct samkv_error *err)
{
    struct samkv_calibration found;
    enum samkv_status status =
        samkv_calibration_load(snapshot, engine->model->fingerprint, engine->model->config.layers, &found, err);
    if (status == SAMKV_NOT_FOUND || status == SAMKV_CORRUPT)
        return SAMKV_OK;
    if (status)
        return status;
    if (found.block_tokens)
        c->block_tokens = found.block_tokens;
    if (found.init_tokens >= 0)
        c->init_tokens = (uint32_t)found.init_tokens;
    if (found.local_tokens > 0)
        c->local_tokens = (uint32_t)found.local_tokens;
    return SAMKV_OK;
}

static enum samkv_status make_new(struct samkv_models *models, struct samkv_snapshot *snapshot,
                                  const struct samkv_ingest_request *r, enum samkv_codec codec,
                                  struct samkv_collection *c, struct samkv_engine **engine, struct samkv_error *err)
{
    const char *name = name_of(r->collection);
    *c = (struct samkv_collection){
        .block_tokens = SAMKV_DEFAULT_BLOCK_TOKENS,
        .init_tokens = SAMKV_DEFAULT_INIT_TOKENS,
        .local_tokens = SAMKV_DEFAULT_LOCAL_TOKENS,
    };
    if (strlen(name) > SAMKV_ID_MAX_BYTES)
        return samkv_fail(err, SAMKV_INVALID, "the collection's name is longer than %d bytes", SAMKV_ID_MAX_BYTES);
    snprintf(c->name, sizeof c->name, "%s", name);
    *engine = samkv_models_find(models, r->spec.model);
    if (!*engine)
        return samkv_fail(err, SAMKV_NOT_FOUND,
                          "no model '%s' is loaded: see samkvctl status, or start samkvd with --model NAME=PATH",
                          r->spec.model ? r->spec.model : "");
    take_model(c, *engine);
    c->quota_bytes = r->spec.quota_bytes > 0 ? (uint64_t)r->spec.quota_bytes : 0;
    c->ttl_s = r->spec.ttl_s > 0 ? (uint64_t)r->spec.ttl_s : 0;
    c->ownership = r->spec.ownership;
    enum samkv_status status = samkv_collection_mask(c, err);
    if (!status)
        status = pick_codec(r->spec.codec, codec, &c->codec, err);
    if (!status)
        status = take_calibrated(snapshot, *engine, c, err);
    if (!status)
        status = pick_sizes(&r->spec, c, err);
    return status ? status : set_preamble(r, *engine, c, err);
}

/* ------------------------------------------------------------------ against the stored one */

static enum samkv_status differs(const struct samkv_collection *c, const char *what, struct samkv_error *err)
{
    return samkv_fail(err, SAMKV_MISMATCH,
                      "collection '%s' has another %s: leave the option away, or ingest into another --collection",
                      c->name, what);
}

static enum samkv_status compare_limits(const struct samkv_collection_spec *spec, const struct samkv_collection *c,
                                        struct samkv_error *err)
{
    bool quota = spec->quota_bytes >= 0 && (uint64_t)spec->quota_bytes != c->quota_bytes;
    bool ttl = spec->ttl_s >= 0 && (uint64_t)spec->ttl_s != c->ttl_s;
    if (!quota && !ttl)
        return SAMKV_OK;
    return samkv_fail(err, SAMKV_MISMATCH, "collection '%s' has another %s: change it with samkvctl set %s", c->name,
                      quota ? "quota" : "TTL", c->name);
}

static enum samkv_status compare(struct samkv_models *models, const struct samkv_ingest_request *r,
                                 const struct samkv_collection *c, struct samkv_error *err)
{
    const struct samkv_collection_spec *spec = &r->spec;
    struct samkv_collection wanted = *c; /* borrows its preamble */
    struct samkv_engine *engine = samkv_models_match(models, c->fingerprint);
    if (spec->model && *spec->model) {
        struct samkv_engine *named = samkv_models_find(models, spec->model);
        if (!named)
            return samkv_fail(err, SAMKV_NOT_FOUND, "no model '%s' is loaded: see samkvctl status", spec->model);
        if (named != engine)
            return differs(c, "model", err);
    }
    enum samkv_status status = pick_sizes(spec, &wanted, err);
    if (!status)
        status = pick_codec(spec->codec, c->codec, &wanted.codec, err);
    if (status)
        return status;
    if (wanted.codec != c->codec)
        return differs(c, "codec", err);
    if (wanted.block_tokens != c->block_tokens)
        return differs(c, "block size", err);
    if (wanted.init_tokens != c->init_tokens || wanted.local_tokens != c->local_tokens)
        return differs(c, "anchor size", err);
    status = compare_limits(spec, c, err);
    if (status || !spec->has_preamble)
        return status;
    struct samkv_ids ids;
    samkv_ids_init(&ids);
    status = preamble_ids(r, engine, &ids, err);
    if (!status && (ids.count != c->preamble_tokens ||
                    memcmp(ids.data ? ids.data : (int32_t *)"", c->preamble ? c->preamble : (int32_t *)"",
                           ids.count * sizeof *ids.data)))
        status = differs(c, "preamble", err);
    samkv_ids_deinit(&ids);
    return status;
}

enum samkv_status samkv_spec_resolve(struct samkv_models *models, struct samkv_snapshot *snapshot,
                                     const struct samkv_ingest_request *r, enum samkv_codec codec,
                                     struct samkv_collection *out, struct samkv_engine **engine, bool *exists,
                                     struct samkv_error *err)
{
    enum samkv_status status = samkv_spec_open(models, snapshot, r->collection, out, engine, err);
    *exists = status == SAMKV_OK;
    if (status == SAMKV_NOT_FOUND)
        status = make_new(models, snapshot, r, codec, out, engine, err);
    else if (!status)
        status = compare(models, r, out, err);
    else
        return status;
    if (status)
        samkv_collection_deinit(out);
    return status;
}
