#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/ctl/ctl_quality.h"
#include "client/ctl/ctl.h"
#include "client/ctl/ctl_text.h"

json_t *ctl_json_text(const char *text)
{
    json_t *value = json_string(text);
    if (value)
        return value;
    char *copy = strdup(text);
    for (char *c = copy; c && *c; c++)
        if (*c & 0x80)
            *c = '?';
    value = copy ? json_string(copy) : NULL;
    free(copy);
    return value ? value : json_null();
}

json_t *ctl_json_real(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

static json_t *whole(uint64_t value)
{
    return value <= INT64_MAX ? json_integer((json_int_t)value) : json_real((double)value);
}

json_t *ctl_json_documents(const struct samkv_document_info *documents, size_t count)
{
    json_t *list = json_array();
    for (size_t i = 0; i < count; i++) {
        const struct samkv_document_info *d = &documents[i];
        json_t *o = json_object();
        json_object_set_new(o, "collection", ctl_json_text(d->collection));
        json_object_set_new(o, "id", ctl_json_text(d->id));
        json_object_set_new(o, "title", ctl_json_text(d->title));
        json_object_set_new(o, "tokens", whole(d->tokens));
        json_object_set_new(o, "blocks", whole(d->blocks));
        json_object_set_new(o, "bytes_raw", whole(d->bytes_raw));
        json_object_set_new(o, "bytes_stored", whole(d->bytes_stored));
        json_object_set_new(o, "bytes_index", whole(d->bytes_index));
        json_object_set_new(o, "created_unix_s", json_integer(d->created_unix_s));
        json_object_set_new(o, "key", ctl_json_text(d->key));
        json_object_set_new(o, "pinned", json_boolean(d->pinned));
        json_object_set_new(o, "put_unix_s", json_integer(d->put_unix_s));
        json_object_set_new(o, "expires_unix_s", json_integer(d->expires_unix_s));
        json_object_set_new(o, "used_unix_s", json_integer(d->used_unix_s));
        json_object_set_new(o, "uses", whole(d->uses));
        json_array_append_new(list, o);
    }
    return list;
}

json_t *ctl_json_collection(const struct samkv_collection_info *c)
{
    json_t *o = json_object();
    json_object_set_new(o, "name", ctl_json_text(c->name));
    json_object_set_new(o, "model", ctl_json_text(c->model));
    json_object_set_new(o, "dtype", ctl_json_text(c->dtype));
    json_object_set_new(o, "codec", ctl_json_text(c->codec));
    json_object_set_new(o, "block_size", whole(c->block_tokens));
    json_object_set_new(o, "init_tokens", whole(c->init_tokens));
    json_object_set_new(o, "local_tokens", whole(c->local_tokens));
    json_object_set_new(o, "preamble_tokens", whole(c->preamble_tokens));
    json_object_set_new(o, "documents", whole(c->documents));
    json_object_set_new(o, "quota_bytes", whole(c->quota_bytes));
    json_object_set_new(o, "ttl_s", whole(c->ttl_s));
    char mode[16];
    snprintf(mode, sizeof mode, "%04o", c->mode);
    json_object_set_new(o, "owner", whole(c->owner));
    json_object_set_new(o, "group", whole(c->group));
    json_object_set_new(o, "mode", ctl_json_text(mode));
    json_object_set_new(o, "bytes_raw", whole(c->bytes_raw));
    json_object_set_new(o, "bytes_stored", whole(c->bytes_stored));
    json_object_set_new(o, "ratio",
                        ctl_json_real(c->bytes_stored ? (double)c->bytes_raw / (double)c->bytes_stored : 0));
    json_object_set_new(o, "fingerprint", ctl_json_text(c->fingerprint));
    return o;
}

static json_t *numbers(const uint32_t *values, size_t count)
{
    json_t *list = json_array();
    for (size_t i = 0; i < count; i++)
        json_array_append_new(list, whole(values[i]));
    return list;
}

static json_t *timing(const struct samkv_timing *t)
{
    json_t *o = json_object();
    json_object_set_new(o, "total", ctl_json_real(t->total));
    json_object_set_new(o, "index", ctl_json_real(t->index));
    json_object_set_new(o, "query", ctl_json_real(t->query));
    json_object_set_new(o, "select", ctl_json_real(t->select));
    json_object_set_new(o, "read", ctl_json_real(t->read));
    json_object_set_new(o, "recompute", ctl_json_real(t->recompute));
    json_object_set_new(o, "reply", ctl_json_real(t->reply));
    json_object_set_new(o, "queue", ctl_json_real(t->queue));
    return o;
}

void ctl_json_figures(json_t *o, const struct samkv_figures *f)
{
    json_t *top_p = json_array(), *keep = json_array();
    for (uint32_t i = 0; i < f->documents; i++) {
        json_array_append_new(top_p, ctl_json_real(f->top_p[i]));
        json_array_append_new(keep, numbers(f->keep[i].blocks, f->keep[i].count));
    }
    json_object_set_new(o, "kept_tokens", whole(f->kept_tokens));
    json_object_set_new(o, "total_tokens", whole(f->total_tokens));
    json_object_set_new(o, "sequence_ratio", ctl_json_real(f->sequence_ratio));
    json_object_set_new(o, "recompute_ratio", ctl_json_real(f->recompute_ratio));
    json_object_set_new(o, "top_p", top_p);
    json_object_set_new(o, "keep", keep);
    json_object_set_new(o, "document_tokens", numbers(f->document_tokens, f->documents));
    json_object_set_new(o, "block_size", whole(f->block_tokens));
    json_object_set_new(o, "stable_layers", numbers(f->stable_layers, f->stable_layer_count));
    json_object_set_new(o, "preamble_tokens", whole(f->preamble_tokens));
    json_object_set_new(o, "next_position", whole(f->next_position));
    json_object_set_new(o, "anchors_exceed_budget", json_boolean(f->anchors_exceed_budget));
    json_object_set_new(o, "bytes_read", whole(f->bytes_read));
    json_object_set_new(o, "bytes_stored", whole(f->bytes_stored));
    json_object_set_new(o, "backend", ctl_json_text(f->backend));
    json_object_set_new(o, "timing_ms", timing(&f->timing_ms));
    json_object_set_new(o, "request", whole(f->request));
    json_object_set_new(o, "decision", json_string(ctl_decision_name(f->decision)));
    json_object_set_new(o, "ratio", ctl_json_real(f->ratio));
    if (f->sparse_ms != 0 || f->full_ms != 0) {
        json_object_set_new(o, "expected_sparse_ms", f->sparse_ms >= 0 ? ctl_json_real(f->sparse_ms) : json_null());
        json_object_set_new(o, "expected_full_ms", f->full_ms >= 0 ? ctl_json_real(f->full_ms) : json_null());
    }
}

int ctl_json_print(json_t *object)
{
    size_t shape = ctl_is_terminal(stdout) ? JSON_INDENT(2) : 0;
    int failed = json_dumpf(object, stdout, shape | JSON_REAL_PRECISION(15));
    json_decref(object);
    fputc('\n', stdout);
    if (failed)
        ctl_error("cannot write the answer as JSON");
    return failed ? CTL_FAILED : CTL_DONE;
}
