#include <stdlib.h>
#include <string.h>

#include "daemon/net/handlers.h"

/* One request's row, with what protobuf-c wants in its own form. */
struct trace_row {
    Samkv__TracedRequest message;
    Samkv__Span spans[SAMKV_TRACE_SPANS], *span_pointers[SAMKV_TRACE_SPANS];
    char *documents[SAMKV_TRACED_DOCUMENTS];
};

struct trace_rows {
    struct samkv_traced *traced; /* [SAMKV_TRACES] */
    struct trace_row *rows;
    Samkv__TracedRequest **pointers;
};

static void trace_rows_deinit(struct trace_rows *t)
{
    free(t->traced);
    free(t->rows);
    free(t->pointers);
}

static int by_start(const void *a, const void *b)
{
    const Samkv__Span *x = a, *y = b;
    return (x->start_ms > y->start_ms) - (x->start_ms < y->start_ms);
}

static void fill_spans(const struct samkv_traced *from, struct trace_row *row)
{
    uint32_t count = samkv_trace_count(&from->trace);
    for (uint32_t i = 0; i < count; i++) {
        const struct samkv_span *s = &from->trace.spans[i];
        samkv__span__init(&row->spans[i]);
        row->spans[i].phase = (char *)samkv_phase_name(s->phase);
        row->spans[i].start_ms = s->start_ms - from->accepted_ms;
        row->spans[i].ms = s->end_ms - s->start_ms;
        row->span_pointers[i] = &row->spans[i];
    }
    qsort(row->spans, count, sizeof *row->spans, by_start);
    row->message.spans = row->span_pointers;
    row->message.n_spans = count;
}

static void fill_who(const struct samkv_traced *from, Samkv__TracedRequest *m)
{
    m->id = from->id;
    m->client_id = from->client_id;
    m->type = (char *)samkv_type_name(from->type);
    m->pid = (uint32_t)from->peer.pid;
    m->uid = from->peer.uid;
    m->gid = from->peer.gid;
    m->agent = (char *)from->agent;
    m->accepted_unix_ms = from->accepted_unix_ms;
    m->collection = (char *)from->collection;
}

static void fill_row(const struct samkv_traced *from, struct trace_row *row)
{
    Samkv__TracedRequest *m = &row->message;
    samkv__traced_request__init(m);
    fill_who(from, m);
    for (size_t i = 0; i < SAMKV_TRACED_DOCUMENTS && i < from->document_count; i++, m->n_documents++)
        row->documents[i] = (char *)from->documents[i];
    m->documents = row->documents;
    m->document_count = (uint32_t)from->document_count;
    m->running = from->running;
    m->ms = from->ended_ms - from->accepted_ms;
    m->status = from->status;
    m->error = (char *)from->error;
    m->request_bytes = from->request_bytes;
    m->reply_bytes = from->reply_bytes;
    m->cache_bytes = from->cache_bytes;
    m->read_bytes = from->read_bytes;
    m->tokens = from->tokens;
    m->kept_tokens = from->kept_tokens;
    fill_spans(from, row);
}

/* Administrators look at all, others at their own: names of documents are nobody else's business. */
static int64_t visible_uid(const struct samkv_request *r)
{
    return r->caller->admin ? -1 : (int64_t)r->caller->peer.uid;
}

enum samkv_status samkv_handle_trace(struct samkv_request *r, const ProtobufCMessage *message,
                                     struct samkv_outgoing **reply, struct samkv_error *err)
{
    const Samkv__TraceRequest *m = (const Samkv__TraceRequest *)message;
    size_t room = m->limit && m->limit < SAMKV_TRACES ? m->limit : SAMKV_TRACES;
    Samkv__TraceReply out = SAMKV__TRACE_REPLY__INIT;
    struct trace_rows t = {.traced = malloc(room * sizeof *t.traced),
                           .rows = calloc(room, sizeof *t.rows),
                           .pointers = calloc(room, sizeof *t.pointers)};
    enum samkv_status st = SAMKV_NO_MEMORY;
    if (t.traced && t.rows && t.pointers) {
        out.n_requests = samkv_traces_copy(r->service->telemetry.traces, m->id, visible_uid(r), t.traced, room);
        for (size_t i = 0; i < out.n_requests; i++) {
            fill_row(&t.traced[i], &t.rows[i]);
            t.pointers[i] = &t.rows[i].message;
        }
        out.requests = t.pointers;
        st = m->id && !out.n_requests
                 ? samkv_fail(err, SAMKV_NOT_FOUND,
                              "request %llu is not among the last %d; `samkvctl trace` lists those that are",
                              (unsigned long long)m->id, SAMKV_TRACES)
                 : samkv_request_reply(r, &out.base, NULL, reply, err);
    }
    trace_rows_deinit(&t);
    return st;
}
