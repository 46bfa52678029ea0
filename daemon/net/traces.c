#include "daemon/net/traces.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/clock.h"

struct samkv_traces {
    pthread_mutex_t lock;
    struct samkv_traced *running;
    uint64_t ended; /* in all: the next one's place is this, modulo the ring */
    struct samkv_traced ring[SAMKV_TRACES];
};

struct samkv_traces *samkv_traces_new(void)
{
    struct samkv_traces *t = calloc(1, sizeof *t);
    if (t)
        pthread_mutex_init(&t->lock, NULL);
    return t;
}

void samkv_traces_free(struct samkv_traces *t)
{
    if (t)
        pthread_mutex_destroy(&t->lock);
    free(t);
}

void samkv_traces_begin(struct samkv_traces *t, struct samkv_traced *traced)
{
    pthread_mutex_lock(&t->lock);
    traced->running = true;
    traced->next = t->running;
    traced->link = &t->running;
    if (traced->next)
        traced->next->link = &traced->next;
    t->running = traced;
    pthread_mutex_unlock(&t->lock);
}

/* ------------------------------------------------------------------ what a message is about */

/* Cut to whole characters; what was cut ends in "...". */
static void copy_text(char *out, size_t size, const char *from)
{
    size_t n = strlen(from);
    const char *end = "";
    if (n >= size) {
        n = size - 4;
        end = "...";
        while (n > 0 && ((unsigned char)from[n] & 0xc0) == 0x80)
            n--;
    }
    memcpy(out, from, n);
    strcpy(out + n, end);
}

static const void *field_of(const ProtobufCMessage *m, const char *name, ProtobufCType type, ProtobufCLabel label,
                            size_t *count)
{
    const ProtobufCFieldDescriptor *f = protobuf_c_message_descriptor_get_field_by_name(m->descriptor, name);
    if (!f || f->type != type || (f->label == PROTOBUF_C_LABEL_REPEATED) != (label == PROTOBUF_C_LABEL_REPEATED))
        return NULL;
    if (count)
        *count = *(const size_t *)((const char *)m + f->quantifier_offset);
    return *(const void *const *)((const char *)m + f->offset);
}

static void describe(struct samkv_traced *traced, const ProtobufCMessage *m)
{
    size_t count = 0;
    const char *collection = field_of(m, "collection", PROTOBUF_C_TYPE_STRING, PROTOBUF_C_LABEL_NONE, NULL);
    const char *id = field_of(m, "id", PROTOBUF_C_TYPE_STRING, PROTOBUF_C_LABEL_NONE, NULL);
    char *const *ids = field_of(m, "ids", PROTOBUF_C_TYPE_STRING, PROTOBUF_C_LABEL_REPEATED, &count);
    if (collection)
        copy_text(traced->collection, SAMKV_TRACED_TEXT, collection);
    if (id && *id)
        copy_text(traced->documents[traced->document_count++], SAMKV_TRACED_TEXT, id);
    for (size_t i = 0; ids && i < count && traced->document_count + i < SAMKV_TRACED_DOCUMENTS; i++)
        copy_text(traced->documents[traced->document_count + i], SAMKV_TRACED_TEXT, ids[i]);
    traced->document_count += ids ? count : 0;
}

void samkv_traces_describe(struct samkv_traces *t, struct samkv_traced *traced, const ProtobufCMessage *m)
{
    const ProtobufCMessage *fetch = field_of(m, "fetch", PROTOBUF_C_TYPE_MESSAGE, PROTOBUF_C_LABEL_NONE, NULL);
    pthread_mutex_lock(&t->lock);
    traced->document_count = 0;
    describe(traced, fetch ? fetch : m);
    pthread_mutex_unlock(&t->lock);
}

/* ------------------------------------------------------------------ the end, and a look at all of them */

void samkv_traces_end(struct samkv_traces *t, struct samkv_traced *traced, enum samkv_status status, const char *error)
{
    pthread_mutex_lock(&t->lock);
    traced->running = false;
    traced->ended_ms = samkv_now_ms();
    traced->status = status;
    copy_text(traced->error, sizeof traced->error, error);
    *traced->link = traced->next;
    if (traced->next)
        traced->next->link = traced->link;
    t->ring[t->ended++ % SAMKV_TRACES] = *traced;
    pthread_mutex_unlock(&t->lock);
}

static bool wanted(const struct samkv_traced *traced, uint64_t id, int64_t uid)
{
    return (!id || traced->id == id) && (uid < 0 || (int64_t)traced->peer.uid == uid);
}

/* What of a running request does not change any more. */
static void copy_running(struct samkv_traced *out, const struct samkv_traced *from)
{
    *out = (struct samkv_traced){.id = from->id,
                                 .client_id = from->client_id,
                                 .type = from->type,
                                 .peer = from->peer,
                                 .accepted_ms = from->accepted_ms,
                                 .accepted_unix_ms = from->accepted_unix_ms,
                                 .document_count = from->document_count,
                                 .request_bytes = from->request_bytes,
                                 .running = true,
                                 .ended_ms = samkv_now_ms()};
    memcpy(out->agent, from->agent, sizeof out->agent);
    memcpy(out->collection, from->collection, sizeof out->collection);
    memcpy(out->documents, from->documents, sizeof out->documents);
}

size_t samkv_traces_copy(struct samkv_traces *t, uint64_t id, int64_t uid, struct samkv_traced *out, size_t room)
{
    size_t n = 0;
    pthread_mutex_lock(&t->lock);
    for (const struct samkv_traced *r = t->running; r && n < room; r = r->next)
        if (wanted(r, id, uid))
            copy_running(&out[n++], r);
    uint64_t kept = t->ended < SAMKV_TRACES ? t->ended : SAMKV_TRACES;
    for (uint64_t i = 1; i <= kept && n < room; i++) {
        const struct samkv_traced *r = &t->ring[(t->ended - i) % SAMKV_TRACES];
        if (wanted(r, id, uid))
            out[n++] = *r;
    }
    pthread_mutex_unlock(&t->lock);
    return n;
}
