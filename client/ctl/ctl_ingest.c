/*
 * Ingest keeps documents in flight, enough that the daemon can prefill many in one pass while it writes others; memory
 * is bounded however large the corpus is. Ctrl-C sends nothing more and waits for what is in flight.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/ctl/ctl.h"
#include "client/ctl/ctl_progress.h"
#include "client/ctl/ctl_source.h"
#include "client/ctl/ctl_text.h"

/*
 * Documents in flight: enough that a GPU finds a whole pass waiting while the last one is written. It takes so many
 * only from a daemon that answers quickly, since Ctrl-C waits for what is in flight.
 */
#define FLYING_FIRST     8
#define FLYING_MAX       48
#define QUICK_S          2.0
#define SHOWN_FAILURES   50
#define BUSY_WAIT_S      0.2
#define PROGRESS_WAIT_MS 200

struct ingest_args {
    struct ctl_common common;
    const char *model, *collection, *preamble, *codec;
    struct ctl_tokens preamble_tokens;
    int64_t block_size, init_tokens, local_tokens, chunk_tokens, quota_bytes, ttl_s, mode;
};

static enum samkv_status apply_quota(void *args, const char *value, struct samkv_error *err)
{
    return ctl_parse_bytes(value, &((struct ingest_args *)args)->quota_bytes, err);
}

static enum samkv_status apply_ttl(void *args, const char *value, struct samkv_error *err)
{
    return ctl_parse_duration(value, &((struct ingest_args *)args)->ttl_s, err);
}

static enum samkv_status apply_mode(void *args, const char *value, struct samkv_error *err)
{
    return ctl_parse_mode(value, &((struct ingest_args *)args)->mode, err);
}

static const struct ctl_option options[] = {
    {"collection", "NAME", CTL_TEXT, offsetof(struct ingest_args, collection), "where they go [default]"},
    {"model", "NAME", CTL_TEXT, offsetof(struct ingest_args, model), "of a new collection [the daemon's first]"},
    {"preamble", "TEXT", CTL_TEXT, offsetof(struct ingest_args, preamble), "what stands before all documents"},
    {"preamble-tokens", "1,2,..", CTL_TOKENS, offsetof(struct ingest_args, preamble_tokens), "the same, as token ids"},
    {"block-size", "N", CTL_INTEGER, offsetof(struct ingest_args, block_size), "tokens of a block [16]", .min = 1,
     .max = UINT32_MAX},
    {"init-tokens", "N", CTL_INTEGER, offsetof(struct ingest_args, init_tokens), "anchors at documents' starts [16]",
     .min = 0, .max = UINT32_MAX},
    {"local-tokens", "N", CTL_INTEGER, offsetof(struct ingest_args, local_tokens), "anchors at documents' ends [16]",
     .min = 0, .max = UINT32_MAX},
    {.name = "quota",
     .value = "SIZE",
     .kind = CTL_CUSTOM,
     .apply = apply_quota,
     .help = "of a new collection's documents, like 10G [none]"},
    {.name = "ttl",
     .value = "TIME",
     .kind = CTL_CUSTOM,
     .apply = apply_ttl,
     .help = "after which a new collection's ids go, like 7d [never]"},
    {.name = "mode",
     .value = "MODE",
     .kind = CTL_CUSTOM,
     .apply = apply_mode,
     .help = "of a new collection, as samkvctl set has it [the daemon's]"},
    {"codec", "NAME", CTL_TEXT, offsetof(struct ingest_args, codec),
     "of a new collection: rans, zstd, raw (lossless), q8 or q4 [the daemon's]"},
    {"chunk-tokens", "N", CTL_INTEGER, offsetof(struct ingest_args, chunk_tokens),
     "split longer documents into ID#1, ID#2, ..", .min = 1, .max = UINT32_MAX},
    {"json", NULL, CTL_FLAG, offsetof(struct ctl_common, json), "print one JSON object"},
    {0},
};

static void defaults(void *args)
{
    struct ingest_args *a = args;
    a->block_size = a->init_tokens = a->local_tokens = a->quota_bytes = a->ttl_s = -1;
}

/* A document on its way. Kept until it is answered: a busy daemon gets it again. */
struct flight {
    bool used, waiting; /* waiting: to be sent again at again_s */
    double again_s;
    double sent_s;
    uint64_t request, ordinal;
    struct ctl_document document;
};

struct ingest {
    struct ctl *ctl;
    const struct ingest_args *args;
    struct ctl_source source;
    struct ctl_source_size size;
    struct flight flights[FLYING_MAX];
    int flying, window; /* documents in flight, and how many there may be */
    bool source_ended;
    bool hopeless; /* what failed will fail for all that follow */
    bool interrupt_told;
    enum samkv_status connection; /* not OK: it is over */
    struct samkv_error connection_error;
    struct ctl_progress progress;
    double start_s;
    uint64_t ordinal, ingested, skipped, failed, ignored, answered, tokens, bytes_raw, bytes_stored, source_bytes;
    double prefill_ms; /* of the device */
    json_t *ids;       /* with --json: [ordinal, [ids]] pairs, in the order of the answers */
};

/* ------------------------------------------------------------------ Ctrl-C */

static volatile sig_atomic_t interrupted;

static void on_interrupt(int number)
{
    (void)number;
    if (interrupted++)
        _exit(CTL_FAILED);
}

static void catch_interrupt(void)
{
    /* Without SA_RESTART: a read of standard input must end too. */
    struct sigaction action = {.sa_handler = on_interrupt};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

/* ------------------------------------------------------------------ telling */

static void show_progress(struct ingest *in)
{
    char text[256];
    size_t at = 0;
    struct ctl_buffer a, b;
    double seconds = ctl_now_s() - in->start_s;
    at += (size_t)snprintf(text, sizeof text, "%s", ctl_count(&a, in->answered));
    if (in->size.documents >= 0)
        at += (size_t)snprintf(text + at, sizeof text - at, "/%s", ctl_count(&a, (uint64_t)in->size.documents));
    at += (size_t)snprintf(text + at, sizeof text - at, " documents  %s", ctl_bytes(&a, in->source_bytes));
    if (in->size.bytes >= 0)
        at += (size_t)snprintf(text + at, sizeof text - at, "/%s", ctl_bytes(&b, (uint64_t)in->size.bytes));
    if (seconds > 0)
        at += (size_t)snprintf(text + at, sizeof text - at, "  %s tokens/s",
                               ctl_count(&a, (uint64_t)((double)in->tokens / seconds)));
    double share = in->size.bytes > 0 ? (double)in->source_bytes / (double)in->size.bytes : -1;
    /* What fails or is skipped says nothing about the rest. */
    if (share > 0 && share <= 1 && in->tokens)
        at +=
            (size_t)snprintf(text + at, sizeof text - at, "  ETA %s", ctl_duration(&a, seconds * (1 - share) / share));
    ctl_progress_show(&in->progress, share, text);
}

static void tell(struct ingest *in, const char *where, const char *what)
{
    ctl_progress_clear(&in->progress);
    fputs("samkvctl: ", stderr);
    ctl_put(stderr, where ? where : "?", strlen(where ? where : "?"), -1, false);
    fputs(": ", stderr);
    ctl_put(stderr, what, strlen(what), -1, false);
    fputc('\n', stderr);
}

static void tell_interrupt(struct ingest *in)
{
    if (!interrupted || in->interrupt_told)
        return;
    in->interrupt_told = true;
    ctl_progress_clear(&in->progress);
    ctl_error("waiting for the %d documents in flight; Ctrl-C again leaves at once", in->flying);
}

static void count_failure(struct ingest *in, const char *where, const char *what)
{
    if (in->failed++ < SHOWN_FAILURES)
        tell(in, where, what);
    if (in->failed == SHOWN_FAILURES)
        ctl_error("further failures are only counted");
}

/* ------------------------------------------------------------------ one document */

static void land(struct ingest *in, struct flight *flight)
{
    in->source_bytes += flight->document.source_bytes;
    in->answered++;
    in->flying--;
    ctl_document_deinit(&flight->document);
    *flight = (struct flight){0};
}

static void postpone(struct flight *flight)
{
    flight->waiting = true;
    flight->again_s = ctl_now_s() + BUSY_WAIT_S;
}

static void send_document(struct ingest *in, struct flight *flight)
{
    flight->sent_s = ctl_now_s();
    const struct ingest_args *args = in->args;
    const struct ctl_document *from = &flight->document;
    struct samkv_document d;
    struct samkv_error err;
    samkv_document_init(&d);
    d.collection = args->collection;
    d.id = from->id;
    d.title = from->title;
    d.text = from->text;
    d.text_bytes = from->text_bytes;
    d.tokens = from->tokens;
    d.token_count = from->token_count;
    d.chunk_tokens = (uint32_t)args->chunk_tokens;
    d.spec = (struct samkv_collection_options){
        .model = args->model,
        .codec = args->codec,
        .has_preamble = args->preamble || args->preamble_tokens.given,
        .preamble = args->preamble,
        .preamble_bytes = args->preamble ? strlen(args->preamble) : 0,
        .preamble_tokens = args->preamble_tokens.ids,
        .preamble_token_count = args->preamble_tokens.count,
        .block_tokens = args->block_size,
        .init_tokens = args->init_tokens,
        .local_tokens = args->local_tokens,
        .quota_bytes = args->quota_bytes,
        .ttl_s = args->ttl_s,
        .mode = (uint32_t)args->mode,
    };
    flight->waiting = false;
    if (!samkv_client_submit_ingest(in->ctl->client, &d, &flight->request, &err))
        return;
    if (err.status == SAMKV_BUSY) {
        postpone(flight);
    } else if (samkv_client_fd(in->ctl->client) >= 0) {
        count_failure(in, from->where, err.text);
        land(in, flight);
    } /* else the connection is over: that shows in process, for all documents in flight at once */
}

static void on_ingested(struct ingest *in, const struct flight *flight, const struct samkv_ingest_answer *answer)
{
    json_t *ids = in->ids ? json_array() : NULL;
    in->prefill_ms += answer->prefill_ms;
    for (size_t i = 0; i < answer->count; i++) {
        const struct samkv_ingested_document *d = &answer->documents[i];
        if (ids)
            json_array_append_new(ids, ctl_json_text(d->id));
        if (d->skipped) {
            in->skipped++;
            continue;
        }
        in->ingested++;
        in->tokens += d->tokens;
        in->bytes_raw += d->bytes_raw;
        in->bytes_stored += d->bytes_stored;
    }
    if (ids) {
        json_t *pair = json_array();
        json_array_append_new(pair, json_integer((json_int_t)flight->ordinal));
        json_array_append_new(pair, ids);
        json_array_append_new(in->ids, pair);
    }
}

static void on_reply(struct ingest *in, const struct samkv_reply *reply)
{
    struct flight *flight = NULL;
    for (int i = 0; i < FLYING_MAX; i++)
        if (in->flights[i].used && !in->flights[i].waiting && in->flights[i].request == reply->request)
            flight = &in->flights[i];
    if (!flight)
        return;
    if (reply->status == SAMKV_BUSY) {
        postpone(flight);
        return;
    }
    if (in->window < FLYING_MAX && ctl_now_s() - flight->sent_s < QUICK_S)
        in->window++;
    if (!reply->status)
        on_ingested(in, flight, &reply->answer.ingest);
    else
        count_failure(in, flight->document.where, reply->error.text);
    /* What the collection or the disk refuses, it will refuse for all others. */
    if (reply->status == SAMKV_MISMATCH || reply->status == SAMKV_FULL || reply->status == SAMKV_DENIED)
        in->hopeless = true;
    land(in, flight);
}

/* ------------------------------------------------------------------ the loop */

static bool is_over(const struct ingest *in)
{
    return in->source_ended || interrupted || in->hopeless;
}

static void take_next(struct ingest *in)
{
    struct ctl_document document;
    struct samkv_error err;
    switch (ctl_source_next(&in->source, &document, &err)) {
    case CTL_SOURCE_END:
        in->source_ended = true;
        return;
    case CTL_SOURCE_FAILED:
        count_failure(in, document.where, err.text);
        break;
    case CTL_SOURCE_IGNORED:
        in->ignored++;
        if (in->ignored <= SHOWN_FAILURES)
            tell(in, document.where, err.text);
        break;
    case CTL_SOURCE_DOCUMENT:
        for (int i = 0; i < FLYING_MAX; i++) {
            struct flight *flight = &in->flights[i];
            if (flight->used)
                continue;
            *flight = (struct flight){.used = true, .ordinal = in->ordinal++, .document = document};
            in->flying++;
            send_document(in, flight);
            return;
        }
    }
    in->source_bytes += document.source_bytes;
    in->answered++;
    ctl_document_deinit(&document);
}

/* Sends again what the daemon was too busy for; gives up on it once nothing more is to be sent. */
static void send_again(struct ingest *in)
{
    for (int i = 0; i < FLYING_MAX; i++) {
        struct flight *flight = &in->flights[i];
        if (!flight->used || !flight->waiting)
            continue;
        if (interrupted) {
            count_failure(in, flight->document.where, "not sent any more");
            land(in, flight);
        } else if (ctl_now_s() >= flight->again_s) {
            send_document(in, flight);
        }
    }
}

static void take_replies(struct ingest *in)
{
    struct samkv_reply reply;
    enum samkv_status status = samkv_client_process(in->ctl->client, &in->connection_error);
    while (samkv_client_next(in->ctl->client, &reply)) {
        /* What ends with the connection is told once, not for each document. */
        if (!status || !reply.status || reply.status != status)
            on_reply(in, &reply);
        samkv_reply_deinit(&reply);
    }
    in->connection = status;
}

static void wait_for_replies(struct ingest *in)
{
    struct samkv_client *client = in->ctl->client;
    int wait_ms = samkv_client_wait_ms(client);
    struct pollfd p = {.fd = samkv_client_fd(client), .events = POLLIN};
    if (samkv_client_wants_write(client))
        p.events |= POLLOUT;
    poll(&p, 1, wait_ms >= 0 && wait_ms < PROGRESS_WAIT_MS ? wait_ms : PROGRESS_WAIT_MS);
}

static void transfer(struct ingest *in)
{
    while (!in->connection) {
        while (in->flying < in->window && !in->connection && !is_over(in)) {
            take_next(in);
            take_replies(in);
            show_progress(in);
        }
        if (!in->flying || in->connection)
            return;
        tell_interrupt(in);
        wait_for_replies(in);
        take_replies(in);
        send_again(in);
        show_progress(in);
    }
}

/* ------------------------------------------------------------------ the end */

static int by_ordinal(const void *a, const void *b)
{
    json_int_t x = json_integer_value(json_array_get(*(json_t *const *)a, 0));
    json_int_t y = json_integer_value(json_array_get(*(json_t *const *)b, 0));
    return (x > y) - (x < y);
}

/* The ids in the order of the input; answers come in any. */
static json_t *ids_in_order(json_t *pairs)
{
    size_t count = json_array_size(pairs);
    json_t *all = json_array(), **sorted = malloc((count ? count : 1) * sizeof(json_t *));
    if (!sorted)
        return all;
    for (size_t i = 0; i < count; i++)
        sorted[i] = json_array_get(pairs, i);
    qsort(sorted, count, sizeof *sorted, by_ordinal);
    for (size_t i = 0; i < count; i++)
        json_array_extend(all, json_array_get(sorted[i], 1));
    free(sorted);
    return all;
}

static int print_json(struct ingest *in, double seconds)
{
    const struct {
        const char *name;
        uint64_t value;
    } numbers[] = {
        {"ingested", in->ingested},         {"skipped", in->skipped}, {"failed", in->failed},
        {"ignored", in->ignored},           {"tokens", in->tokens},   {"bytes_raw", in->bytes_raw},
        {"bytes_stored", in->bytes_stored},
    };
    json_t *o = json_object();
    json_object_set_new(o, "ids", ids_in_order(in->ids));
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        json_object_set_new(o, numbers[i].name, json_integer((json_int_t)numbers[i].value));
    json_object_set_new(o, "seconds", ctl_json_real(seconds));
    json_object_set_new(o, "prefill_ms", ctl_json_real(in->prefill_ms));
    json_object_set_new(o, "interrupted", json_boolean(interrupted));
    return ctl_json_print(o);
}

static void print_summary(const struct ingest *in, double seconds)
{
    struct ctl_buffer ingested, tokens, took, rate, raw, stored, share;
    printf("%s ingested", ctl_count(&ingested, in->ingested));
    if (in->skipped)
        printf(", %llu there already", (unsigned long long)in->skipped);
    if (in->failed)
        printf(", %llu failed", (unsigned long long)in->failed);
    if (in->ignored)
        printf(", %llu ignored", (unsigned long long)in->ignored);
    printf(": %s tokens in %s", ctl_count(&tokens, in->tokens), ctl_duration(&took, seconds));
    if (in->tokens && seconds > 0)
        printf(" (%s tokens/s), KV of %s stored in %s (%s)", ctl_count(&rate, (uint64_t)((double)in->tokens / seconds)),
               ctl_bytes(&raw, in->bytes_raw), ctl_bytes(&stored, in->bytes_stored),
               ctl_percent(&share, (double)in->bytes_stored, (double)in->bytes_raw));
    putchar('\n');
}

static int finish(struct ingest *in)
{
    double seconds = ctl_now_s() - in->start_s;
    int code = in->failed || interrupted ? CTL_FAILED : CTL_DONE;
    ctl_progress_clear(&in->progress);
    if (in->connection) {
        in->failed += (uint64_t)in->flying;
        ctl_error("%s; %llu documents are safely stored, %d in flight are not: run it again, it skips what is there",
                  in->connection_error.text, (unsigned long long)(in->ingested + in->skipped), in->flying);
        code = CTL_NO_DAEMON;
    } else if (interrupted) {
        ctl_error("interrupted: what is finished is stored, run it again for the rest");
    } else if (in->hopeless) {
        ctl_error("the rest was not sent: it would fail alike");
    }
    if (in->ctl->common->json) {
        int printed = print_json(in, seconds);
        return code ? code : printed;
    }
    print_summary(in, seconds);
    return code;
}

static int run(struct ctl *ctl)
{
    const struct ingest_args *args = ctl->args;
    if (args->preamble && args->preamble_tokens.given) {
        ctl_error("give one of --preamble and --preamble-tokens");
        return CTL_USAGE;
    }
    int code = ctl_connect(ctl);
    if (code)
        return code;
    struct ingest in = {.ctl = ctl, .args = args, .window = FLYING_FIRST, .start_s = ctl_now_s()};
    in.ids = ctl->common->json ? json_array() : NULL;
    in.size = ctl_source_measure(ctl->words, ctl->word_count);
    ctl_progress_init(&in.progress);
    catch_interrupt();
    ctl_source_init(&in.source, ctl->words, ctl->word_count, samkv_client_max_request_bytes(ctl->client), &interrupted);
    transfer(&in);
    code = finish(&in);
    ctl_source_deinit(&in.source);
    for (int i = 0; i < FLYING_MAX; i++)
        ctl_document_deinit(&in.flights[i].document);
    json_decref(in.ids);
    return code;
}

const struct ctl_command ctl_command_ingest = {
    .name = "ingest",
    .arguments = "PATH|- ..",
    .summary = "Takes documents in: text files, directories, JSON Lines",
    .details =
        "A .jsonl file, or - for standard input, has a document a line: {\"id\", \"text\" or \"tokens\", \"title\"?}.\n"
        "The id of a text file is its path below the given directory, or its name. Hidden files are passed over.\n"
        "What is there already is skipped; the same id with other content replaces it. Ctrl-C keeps what is\n"
        "finished. Model, preamble, block size, anchors, quota and TTL belong to the collection: its first ingest\n"
        "sets them; samkvctl set changes the last two.",
    .options = {options},
    .args_bytes = sizeof(struct ingest_args),
    .defaults = defaults,
    .min_words = 1,
    .max_words = -1,
    .run = run,
};
