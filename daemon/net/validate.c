#include "daemon/net/validate.h"

#include <string.h>
#include <utf8proc.h>

#include "daemon/fetch/calibrate.h"
#include "daemon/fetch/evaluate.h"
#include "daemon/fetch/fetch.h"
#include "daemon/store/store.h"

#define TRY(check)                                                                                                     \
    do {                                                                                                               \
        enum samkv_status try_status = (check);                                                                        \
        if (try_status != SAMKV_OK)                                                                                    \
            return try_status;                                                                                         \
    } while (0)

/* Messages say where it is wrong, not what is there: the bytes may be anything. */
static enum samkv_status check_plain_text(const char *text, size_t bytes, const char *what, struct samkv_error *err)
{
    for (size_t i = 0; i < bytes;) {
        utf8proc_int32_t point;
        utf8proc_ssize_t n =
            utf8proc_iterate((const utf8proc_uint8_t *)text + i, (utf8proc_ssize_t)(bytes - i), &point);
        if (n <= 0)
            return samkv_fail(err, SAMKV_INVALID, "the %s is not valid UTF-8 (byte %zu)", what, i);
        if (point < 0x20 || (point >= 0x7f && point < 0xa0))
            return samkv_fail(err, SAMKV_INVALID, "the %s has a control character (byte %zu)", what, i);
        i += (size_t)n;
    }
    return SAMKV_OK;
}

enum samkv_status samkv_check_name(const char *name, const char *what, struct samkv_error *err)
{
    size_t bytes = strlen(name);
    if (bytes == 0 || bytes > SAMKV_ID_MAX_BYTES)
        return samkv_fail(err, SAMKV_INVALID, "the %s has %zu bytes; give 1 to %d", what, bytes, SAMKV_ID_MAX_BYTES);
    return check_plain_text(name, bytes, what, err);
}

enum samkv_status samkv_check_title(const char *title, struct samkv_error *err)
{
    size_t bytes = strlen(title);
    if (bytes > SAMKV_MAX_TITLE_BYTES)
        return samkv_fail(err, SAMKV_INVALID, "the title has %zu bytes; give at most %d", bytes, SAMKV_MAX_TITLE_BYTES);
    return check_plain_text(title, bytes, "title", err);
}

enum samkv_status samkv_check_collection(const char *name, struct samkv_error *err)
{
    return *name ? samkv_check_name(name, "collection name", err) : SAMKV_OK;
}

enum samkv_status samkv_check_ids(char *const *ids, size_t count, struct samkv_error *err)
{
    if (count == 0)
        return samkv_fail(err, SAMKV_INVALID, "no document ids; name at least one");
    if (count > SAMKV_MAX_DOCUMENTS)
        return samkv_fail(err, SAMKV_INVALID, "%zu documents in one request are too many; name at most %d", count,
                          SAMKV_MAX_DOCUMENTS);
    for (size_t i = 0; i < count; i++)
        TRY(samkv_check_name(ids[i], "document id", err));
    return SAMKV_OK;
}

static enum samkv_status check_range(uint32_t value, uint32_t least, uint32_t most, const char *what,
                                     struct samkv_error *err)
{
    if (value < least || value > most)
        return samkv_fail(err, SAMKV_INVALID, "%s %u is out of range; give %u to %u", what, value, least, most);
    return SAMKV_OK;
}

static enum samkv_status check_spec(const Samkv__CollectionSpec *spec, struct samkv_error *err)
{
    if (spec->mode)
        TRY(samkv_mode_check(spec->mode, err));
    if (*spec->model)
        TRY(samkv_check_name(spec->model, "model name", err));
    if (*spec->codec)
        TRY(samkv_check_name(spec->codec, "codec", err));
    if (spec->preamble_text.len && spec->preamble_tokens)
        return samkv_fail(err, SAMKV_INVALID, "the preamble is given as text and as tokens; give one of them");
    if (spec->block_size_given_case == SAMKV__COLLECTION_SPEC__BLOCK_SIZE_GIVEN_BLOCK_SIZE)
        TRY(check_range(spec->block_size, 1, SAMKV_MAX_BLOCK_TOKENS, "block size", err));
    if (spec->init_tokens_given_case == SAMKV__COLLECTION_SPEC__INIT_TOKENS_GIVEN_INIT_TOKENS)
        TRY(check_range(spec->init_tokens, 0, SAMKV_MAX_ANCHOR_TOKENS, "init tokens", err));
    if (spec->local_tokens_given_case == SAMKV__COLLECTION_SPEC__LOCAL_TOKENS_GIVEN_LOCAL_TOKENS)
        TRY(check_range(spec->local_tokens, 0, SAMKV_MAX_ANCHOR_TOKENS, "local tokens", err));
    return SAMKV_OK;
}

enum samkv_status samkv_check_ingest(const ProtobufCMessage *message, struct samkv_error *err)
{
    const Samkv__IngestRequest *m = (const Samkv__IngestRequest *)message;
    TRY(samkv_check_collection(m->collection, err));
    TRY(samkv_check_name(m->id, "document id", err));
    TRY(samkv_check_title(m->title, err));
    if (m->text.len && m->tokens)
        return samkv_fail(err, SAMKV_INVALID, "the document is given as text and as tokens; give one of them");
    if (!m->text.len && (!m->tokens || !m->tokens->n_ids))
        return samkv_fail(err, SAMKV_INVALID, "the document is empty; give text or tokens");
    if (m->chunk_tokens)
        TRY(check_range(m->chunk_tokens, 1, 1u << 24, "chunk tokens", err));
    return m->spec ? check_spec(m->spec, err) : SAMKV_OK;
}

static enum samkv_status check_layers(const Samkv__FetchRequest *m, struct samkv_error *err)
{
    if (m->n_stable_layers > SAMKV_MAX_LAYERS)
        return samkv_fail(err, SAMKV_INVALID, "%zu stable layers are too many; name at most %d", m->n_stable_layers,
                          SAMKV_MAX_LAYERS);
    for (size_t i = 0; i < m->n_stable_layers; i++)
        TRY(check_range(m->stable_layers[i], 0, SAMKV_MAX_LAYERS - 1, "stable layer", err));
    return SAMKV_OK;
}

/* How blocks are chosen and recomputed. Comparisons are written so that NaN fails. */
static enum samkv_status check_way(const Samkv__FetchRequest *m, struct samkv_error *err)
{
    if (m->ratio_given_case == SAMKV__FETCH_REQUEST__RATIO_GIVEN_RATIO && !(m->ratio > 0 && m->ratio <= 1))
        return samkv_fail(err, SAMKV_INVALID, "ratio %g is out of range; give more than 0 and at most 1", m->ratio);
    if ((uint32_t)m->selection > SAMKV__SELECTION__FIXED)
        return samkv_fail(err, SAMKV_INVALID, "selection %d is not known; give dynamic or fixed", (int)m->selection);
    if ((uint32_t)m->update > SAMKV__UPDATE__DELTA)
        return samkv_fail(err, SAMKV_INVALID, "update %d is not known; give overwrite, cosine, delta or a number",
                          (int)m->update);
    if ((uint32_t)m->scoring > SAMKV__SCORING__ATTEND)
        return samkv_fail(err, SAMKV_INVALID, "score %d is not known; give mean, tokens, exact, last or attend",
                          (int)m->scoring);
    if ((uint32_t)m->neighbours > SAMKV__NEIGHBOURS__BOTH)
        return samkv_fail(err, SAMKV_INVALID, "neighbours %d is not known; give none, left or both",
                          (int)m->neighbours);
    if (!(m->theta >= 0 && m->theta <= 1))
        return samkv_fail(err, SAMKV_INVALID, "theta %g is out of range; give 0 to 1", m->theta);
    if ((uint32_t)m->positions > SAMKV__POSITIONS__COMPACT)
        return samkv_fail(err, SAMKV_INVALID, "positions %d is not known; give original or compact", (int)m->positions);
    if ((uint32_t)m->placement > SAMKV__PLACEMENT__DEVICE)
        return samkv_fail(err, SAMKV_INVALID, "placement %d is not known; give host or device", (int)m->placement);
    TRY(check_layers(m, err));
    if (m->init_tokens_given_case == SAMKV__FETCH_REQUEST__INIT_TOKENS_GIVEN_INIT_TOKENS)
        TRY(check_range(m->init_tokens, 0, SAMKV_MAX_ANCHOR_TOKENS, "init tokens", err));
    if (m->local_tokens_given_case == SAMKV__FETCH_REQUEST__LOCAL_TOKENS_GIVEN_LOCAL_TOKENS)
        TRY(check_range(m->local_tokens, 0, SAMKV_MAX_ANCHOR_TOKENS, "local tokens", err));
    return SAMKV_OK;
}

/* Everything but the query. */
static enum samkv_status check_selection(const Samkv__FetchRequest *m, struct samkv_error *err)
{
    TRY(samkv_check_collection(m->collection, err));
    TRY(samkv_check_ids(m->ids, m->n_ids, err));
    return check_way(m, err);
}

enum samkv_status samkv_check_fetch(const ProtobufCMessage *message, struct samkv_error *err)
{
    const Samkv__FetchRequest *m = (const Samkv__FetchRequest *)message;
    if (m->query_text.len && m->query_tokens)
        return samkv_fail(err, SAMKV_INVALID, "the query is given as text and as tokens; give one of them");
    if (!m->query_text.len && (!m->query_tokens || !m->query_tokens->n_ids))
        return samkv_fail(err, SAMKV_INVALID, "the query is empty; give text or tokens");
    return check_selection(m, err);
}

enum samkv_status samkv_check_ask(const ProtobufCMessage *message, struct samkv_error *err)
{
    const Samkv__AskRequest *m = (const Samkv__AskRequest *)message;
    if (!m->fetch)
        return samkv_fail(err, SAMKV_INVALID, "no documents are named; give at least one id");
    if (!m->question.len)
        return samkv_fail(err, SAMKV_INVALID, "the question is empty; ask something");
    if ((uint32_t)m->method > SAMKV__METHOD__REUSE)
        return samkv_fail(err, SAMKV_INVALID, "method %d is not known; give samkv, full or reuse", (int)m->method);
    TRY(check_range(m->max_tokens, 0, SAMKV_MAX_ANSWER_TOKENS, "max tokens", err));
    return check_selection(m->fetch, err);
}

static enum samkv_status check_variant(const Samkv__EvaluateVariant *v, struct samkv_error *err)
{
    if ((uint32_t)v->method > SAMKV__EVALUATED__EVALUATE_SAMKV)
        return samkv_fail(err, SAMKV_INVALID, "a variant's method %d is not known; give 0 to %d", (int)v->method,
                          (int)SAMKV__EVALUATED__EVALUATE_SAMKV);
    if ((uint32_t)v->cut > SAMKV__CUT__CUT_RANDOM)
        return samkv_fail(err, SAMKV_INVALID, "a variant's cut %d is not known; give 0 to %d", (int)v->cut,
                          (int)SAMKV__CUT__CUT_RANDOM);
    if (!(v->share >= 0 && v->share <= 1))
        return samkv_fail(err, SAMKV_INVALID, "a variant's share %g is out of range; give 0 to 1", v->share);
    return v->fetch ? check_way(v->fetch, err) : SAMKV_OK;
}

enum samkv_status samkv_check_evaluate(const ProtobufCMessage *message, struct samkv_error *err)
{
    const Samkv__EvaluateRequest *m = (const Samkv__EvaluateRequest *)message;
    TRY(samkv_check_collection(m->collection, err));
    TRY(samkv_check_ids(m->ids, m->n_ids, err));
    if (m->question.len && m->query_tokens)
        return samkv_fail(err, SAMKV_INVALID, "the question is given as text and as tokens; give one of them");
    if (!m->question.len && (!m->query_tokens || !m->query_tokens->n_ids))
        return samkv_fail(err, SAMKV_INVALID, "the question is empty; give text or tokens");
    if (m->gold.len && m->gold_tokens)
        return samkv_fail(err, SAMKV_INVALID, "the gold answer is given as text and as tokens; give one of them");
    TRY(check_range(m->max_tokens, 0, SAMKV_MAX_ANSWER_TOKENS, "max tokens", err));
    if (!m->n_variants || m->n_variants > SAMKV_MAX_VARIANTS)
        return samkv_fail(err, SAMKV_INVALID, "%zu variants; give 1 to %d", m->n_variants, SAMKV_MAX_VARIANTS);
    for (size_t i = 0; i < m->n_variants; i++)
        TRY(check_variant(m->variants[i], err));
    return SAMKV_OK;
}

enum samkv_status samkv_check_list(const ProtobufCMessage *message, struct samkv_error *err)
{
    const Samkv__ListRequest *m = (const Samkv__ListRequest *)message;
    if (*m->after)
        TRY(samkv_check_name(m->after, "place to go on after", err));
    return samkv_check_collection(m->collection, err);
}

enum samkv_status samkv_check_show(const ProtobufCMessage *message, struct samkv_error *err)
{
    const Samkv__ShowRequest *m = (const Samkv__ShowRequest *)message;
    TRY(samkv_check_collection(m->collection, err));
    return samkv_check_name(m->id, "document id", err);
}

enum samkv_status samkv_check_remove(const ProtobufCMessage *message, struct samkv_error *err)
{
    const Samkv__RemoveRequest *m = (const Samkv__RemoveRequest *)message;
    TRY(samkv_check_collection(m->collection, err));
    if (m->all && m->n_ids)
        return samkv_fail(err, SAMKV_INVALID, "ids and a whole collection are both to be removed; give one of them");
    if (m->all && !*m->collection)
        return samkv_fail(err, SAMKV_INVALID, "which collection is to be removed? give its name");
    if (m->all)
        return SAMKV_OK;
    return samkv_check_ids(m->ids, m->n_ids, err);
}

enum samkv_status samkv_check_configure(const ProtobufCMessage *message, struct samkv_error *err)
{
    const Samkv__ConfigureRequest *m = (const Samkv__ConfigureRequest *)message;
    TRY(samkv_check_collection(m->collection, err));
    bool sets_mode = m->mode_given_case == SAMKV__CONFIGURE_REQUEST__MODE_GIVEN_MODE;
    bool sets_group = m->group_given_case == SAMKV__CONFIGURE_REQUEST__GROUP_GIVEN_GROUP;
    if (m->quota_given_case != SAMKV__CONFIGURE_REQUEST__QUOTA_GIVEN_QUOTA_BYTES &&
        m->ttl_given_case != SAMKV__CONFIGURE_REQUEST__TTL_GIVEN_TTL_S && !sets_mode && !sets_group &&
        m->quality_given_case != SAMKV__CONFIGURE_REQUEST__QUALITY_GIVEN_QUALITY &&
        m->gate_share_given_case != SAMKV__CONFIGURE_REQUEST__GATE_SHARE_GIVEN_GATE_SHARE)
        return samkv_fail(err, SAMKV_INVALID,
                          "nothing is to be changed; give a quota, a TTL, a group, a mode or a quality");
    if (sets_group && m->group == UINT32_MAX)
        return samkv_fail(err, SAMKV_INVALID, "%u is no group's number", m->group);
    if (sets_mode)
        TRY(samkv_mode_check(m->mode, err));
    if (m->gate_share_given_case == SAMKV__CONFIGURE_REQUEST__GATE_SHARE_GIVEN_GATE_SHARE &&
        !(m->gate_share >= 0 && m->gate_share <= 1))
        return samkv_fail(err, SAMKV_INVALID, "a share of %g is out of range; give 0 to 1", m->gate_share);
    return SAMKV_OK;
}

enum samkv_status samkv_check_pin(const ProtobufCMessage *message, struct samkv_error *err)
{
    const Samkv__PinRequest *m = (const Samkv__PinRequest *)message;
    TRY(samkv_check_collection(m->collection, err));
    return samkv_check_ids(m->ids, m->n_ids, err);
}

enum samkv_status samkv_check_verify(const ProtobufCMessage *message, struct samkv_error *err)
{
    const Samkv__VerifyRequest *m = (const Samkv__VerifyRequest *)message;
    return samkv_check_collection(m->collection, err);
}

enum samkv_status samkv_check_export(const ProtobufCMessage *message, struct samkv_error *err)
{
    const Samkv__ExportRequest *m = (const Samkv__ExportRequest *)message;
    if (*m->after)
        TRY(samkv_check_name(m->after, "place to go on after", err));
    if (*m->after && m->resume)
        return samkv_fail(err, SAMKV_INVALID, "a resumed export knows where to go on; leave the id out");
    return samkv_check_collection(m->collection, err);
}

enum samkv_status samkv_check_import(const ProtobufCMessage *message, struct samkv_error *err)
{
    const Samkv__ImportRequest *m = (const Samkv__ImportRequest *)message;
    return samkv_check_collection(m->collection, err);
}

enum samkv_status samkv_check_calibrate(const ProtobufCMessage *message, struct samkv_error *err)
{
    const Samkv__CalibrateRequest *m = (const Samkv__CalibrateRequest *)message;
    TRY(samkv_check_collection(m->collection, err));
    if (m->sample > SAMKV_CALIBRATE_MAX_SAMPLE)
        return samkv_fail(err, SAMKV_INVALID, "a sample of %u questions is too large; give at most %d", m->sample,
                          SAMKV_CALIBRATE_MAX_SAMPLE);
    if (m->ratio_given_case == SAMKV__CALIBRATE_REQUEST__RATIO_GIVEN_RATIO && !(m->ratio > 0 && m->ratio <= 1))
        return samkv_fail(err, SAMKV_INVALID, "ratio %g is out of range; give more than 0 and at most 1", m->ratio);
    if ((uint32_t)m->selection > SAMKV__SELECTION__FIXED)
        return samkv_fail(err, SAMKV_INVALID, "selection %d is not known; give dynamic or fixed", (int)m->selection);
    if ((uint32_t)m->update > SAMKV__UPDATE__COSINE)
        return samkv_fail(err, SAMKV_INVALID, "update %d is not known here; give overwrite or cosine", (int)m->update);
    if (m->apply && m->forget)
        return samkv_fail(err, SAMKV_INVALID, "what is found cannot be stored and forgotten; give one of them");
    for (size_t i = 0; i < m->n_questions; i++) {
        const Samkv__CalibrateQuestion *q = m->questions[i];
        TRY(samkv_check_ids(q->ids, q->n_ids, err));
        if (q->text.len && q->tokens)
            return samkv_fail(err, SAMKV_INVALID, "question %zu is given as text and as tokens; give one of them",
                              i + 1);
        if (!q->text.len && (!q->tokens || !q->tokens->n_ids))
            return samkv_fail(err, SAMKV_INVALID, "question %zu is empty; give text or tokens", i + 1);
    }
    return SAMKV_OK;
}
