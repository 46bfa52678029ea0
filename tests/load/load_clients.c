/*
 * Many clients of one user, each a thread with a connection of its own, for load.py:
 *   load_clients SOCKET CLIENTS SECONDS PAUSE_MS SEED HIDDEN
 * Each does one thing after the other: small fetches from the shared collection `load` (of which nobody removes
 * anything) and from a collection of its own, ingests, removals, lists, whatever must be refused, requests that it does
 * not wait for, garbage, halves of frames. It knows which of its documents are there, so every answer is either the one
 * that must come, or BUSY, or counted as wrong and told on stderr. HIDDEN: a collection of somebody else's, "" for
 * none. stdout: one JSON object with counts and latencies.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "client/samkv/samkv.h"

#define SHARED           "load"
#define SHARED_DOCUMENTS 16
#define OWN_DOCUMENTS    4
#define MAX_TOKENS       160
#define MOST_LATENCIES   (1u << 16) /* of a client; beyond it they are only counted */
#define WRONG_TOLD       5

enum what { FETCH, FETCH_OWN, INGEST, REMOVE, LIST, REFUSED, DROP, GARBAGE, HALF, WHAT_COUNT };
static const char *const what_names[] = {"fetch",   "fetch_own", "ingest",  "remove", "list",
                                         "refused", "drop",      "garbage", "half"};
static const unsigned weights[] = {60, 8, 10, 6, 4, 4, 4, 2, 2}; /* of 100 */

enum presence { ABSENT, THERE, UNKNOWN }; /* unknown: nobody waited for the answer */

struct settings {
    const char *socket, *hidden;
    double end_s;
    unsigned pause_ms;
};

struct client {
    const struct settings *settings;
    pthread_t thread;
    unsigned number;
    uint64_t random;
    struct samkv_client *client;
    char collection[32];
    enum presence own[OWN_DOCUMENTS];
    uint64_t done[WHAT_COUNT], busy[WHAT_COUNT], wrong, connects, connects_busy;
    float *latency_ms; /* of fetches from the shared collection that gave a cache */
    size_t latencies;
};

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* splitmix64 */
static uint64_t draw(struct client *c, uint64_t below)
{
    uint64_t z = c->random += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return (z ^ z >> 31) % below;
}

static void fill_tokens(struct client *c, int32_t *tokens, size_t count)
{
    for (size_t i = 0; i < count; i++)
        tokens[i] = 3 + (int32_t)draw(c, 250);
}

/* ------------------------------------------------------------------ answers */

static void tell_wrong(struct client *c, enum what what, const char *text)
{
    if (c->wrong++ < WRONG_TOLD)
        fprintf(stderr, "client %u: %s: %s\n", c->number, what_names[what], text);
}

/* Counts an answer that must have status `expected`. True: it did, and was not BUSY. */
static bool judge(struct client *c, enum what what, enum samkv_status st, enum samkv_status expected,
                  const struct samkv_error *err)
{
    if (st == expected) {
        c->done[what]++;
        return true;
    }
    if (st == SAMKV_BUSY)
        c->busy[what]++;
    else
        tell_wrong(c, what, st == SAMKV_OK ? "it should have been refused" : err->text);
    return false;
}

/* ------------------------------------------------------------------ connections */

/* NULL: BUSY, or wrong. */
static struct samkv_client *connected(struct client *c)
{
    struct samkv_error err;
    if (c->client)
        return c->client;
    enum samkv_status st = samkv_client_connect(c->settings->socket, &c->client, &err);
    if (st == SAMKV_OK)
        c->connects++;
    else if (st == SAMKV_BUSY)
        c->connects_busy++;
    else
        tell_wrong(c, DROP, err.text);
    if (st != SAMKV_OK)
        c->client = NULL;
    else
        samkv_client_set_timeout_ms(c->client, 120000);
    return c->client;
}

static void disconnect(struct client *c)
{
    samkv_client_close(c->client);
    c->client = NULL;
}

/* Bytes on a connection of their own, of which an answer is read if one comes, then the end. */
static void send_bytes(struct client *c, const void *bytes, size_t count, bool wait)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval patience = {.tv_sec = 60};
    char answer[512];
    strcpy(address.sun_path, c->settings->socket);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(fd, (const struct sockaddr *)&address, sizeof address) != 0) {
        tell_wrong(c, GARBAGE, "cannot connect");
        close(fd);
        return;
    }
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    ssize_t n = send(fd, bytes, count, MSG_NOSIGNAL); /* it may have been closed already */
    while (wait && (n = recv(fd, answer, sizeof answer, 0)) > 0)
        continue;
    if (wait && n < 0 && errno != ECONNRESET)
        tell_wrong(c, GARBAGE, "the daemon did not end the connection");
    close(fd);
}

/* ------------------------------------------------------------------ what is done */

static void fetch_options(struct client *c, struct samkv_fetch_options *o, const char *collection,
                          const char *const *ids, size_t count, int32_t query[4])
{
    fill_tokens(c, query, 4);
    samkv_fetch_options_init(o);
    o->collection = collection;
    o->ids = ids;
    o->id_count = count;
    o->query_tokens = query;
    o->query_token_count = 4;
    o->ratio = 0.5;
}

static enum samkv_status fetch(struct client *c, const char *collection, const char *const *ids, size_t count,
                               struct samkv_error *err)
{
    struct samkv_fetch_options o;
    struct samkv_cache *cache = NULL;
    int32_t query[4];
    fetch_options(c, &o, collection, ids, count, query);
    enum samkv_status st = samkv_client_fetch(c->client, &o, &cache, err);
    if (st == SAMKV_OK && (!cache->rows || !samkv_cache_k(cache, 0)))
        tell_wrong(c, FETCH, "an empty cache");
    samkv_cache_free(cache);
    return st;
}

static void do_fetch(struct client *c)
{
    char names[2][16];
    const char *ids[] = {names[0], names[1]};
    struct samkv_error err;
    for (int i = 0; i < 2; i++)
        snprintf(names[i], sizeof names[i], "s%u", (unsigned)draw(c, SHARED_DOCUMENTS));
    double start = now_s();
    enum samkv_status st = fetch(c, SHARED, ids, 2, &err);
    if (judge(c, FETCH, st, SAMKV_OK, &err) && c->latencies < MOST_LATENCIES)
        c->latency_ms[c->latencies++] = (float)(1e3 * (now_s() - start));
}

/* An id of the client's own. */
static unsigned pick_own(struct client *c, char id[16])
{
    unsigned which = (unsigned)draw(c, OWN_DOCUMENTS);
    snprintf(id, 16, "o%u", which);
    return which;
}

static void do_fetch_own(struct client *c)
{
    char id[16];
    const char *ids[] = {id};
    struct samkv_error err;
    unsigned which = pick_own(c, id);
    enum samkv_status st = fetch(c, c->collection, ids, 1, &err);
    if (c->own[which] == UNKNOWN && (st == SAMKV_OK || st == SAMKV_NOT_FOUND))
        c->done[FETCH_OWN]++;
    else
        judge(c, FETCH_OWN, st, c->own[which] == THERE ? SAMKV_OK : SAMKV_NOT_FOUND, &err);
}

static void document_of(struct client *c, struct samkv_document *d, const char *id, int32_t tokens[MAX_TOKENS])
{
    samkv_document_init(d);
    d->collection = c->collection;
    d->id = id;
    d->tokens = tokens;
    d->token_count = 20 + draw(c, MAX_TOKENS - 20);
    fill_tokens(c, tokens, d->token_count);
}

static void do_ingest(struct client *c)
{
    char id[16];
    int32_t tokens[MAX_TOKENS];
    struct samkv_document d;
    struct samkv_reply reply;
    struct samkv_error err;
    unsigned which = pick_own(c, id);
    document_of(c, &d, id, tokens);
    enum samkv_status st = samkv_client_ingest(c->client, &d, &reply, &err);
    if (judge(c, INGEST, st, SAMKV_OK, &err))
        c->own[which] = THERE;
    samkv_reply_deinit(&reply);
}

static void do_remove(struct client *c)
{
    char id[16];
    const char *ids[] = {id};
    struct samkv_reply reply;
    struct samkv_error err;
    unsigned which = pick_own(c, id);
    enum samkv_status st = samkv_client_remove(c->client, c->collection, ids, 1, &reply, &err);
    bool was_there = st == SAMKV_OK && reply.answer.remove.removed == 1;
    samkv_reply_deinit(&reply);
    if (!judge(c, REMOVE, st, SAMKV_OK, &err))
        return;
    if (c->own[which] != UNKNOWN && was_there != (c->own[which] == THERE))
        tell_wrong(c, REMOVE, was_there ? "it was there" : "it was not there");
    c->own[which] = ABSENT;
}

static void do_list(struct client *c)
{
    struct samkv_reply reply;
    struct samkv_error err;
    enum samkv_status st = samkv_client_list(c->client, SHARED, "", 0, &reply, &err);
    size_t count = st == SAMKV_OK ? reply.answer.list.document_count : 0;
    samkv_reply_deinit(&reply);
    if (judge(c, LIST, st, SAMKV_OK, &err) && count != SHARED_DOCUMENTS)
        tell_wrong(c, LIST, "documents are missing");
}

/* What must be refused, with the status that it must have. */
static void do_refused(struct client *c)
{
    static const char *const nothing[] = {"no such"};
    struct samkv_error err;
    struct samkv_document d;
    struct samkv_reply reply;
    int32_t tokens[MAX_TOKENS];
    enum samkv_status st, expected = SAMKV_NOT_FOUND;
    if (draw(c, 2) && *c->settings->hidden) {
        const char *ids[] = {"s0"};
        st = fetch(c, c->settings->hidden, ids, 1, &err);
    } else if (draw(c, 2)) {
        st = fetch(c, SHARED, nothing, 1, &err);
    } else {
        document_of(c, &d, "bad\nid", tokens);
        st = samkv_client_ingest(c->client, &d, &reply, &err);
        samkv_reply_deinit(&reply);
        expected = SAMKV_INVALID;
    }
    judge(c, REFUSED, st, expected, &err);
}

/* Asks and hangs up. */
static void do_drop(struct client *c)
{
    char id[16];
    const char *shared[] = {"s0", "s1"};
    int32_t tokens[MAX_TOKENS], query[4];
    struct samkv_document d;
    struct samkv_fetch_options o;
    struct samkv_error err;
    uint64_t request;
    enum samkv_status st;
    if (draw(c, 2)) {
        fetch_options(c, &o, SHARED, shared, 2, query);
        st = samkv_client_submit_fetch(c->client, &o, &request, &err);
    } else {
        unsigned which = pick_own(c, id);
        document_of(c, &d, id, tokens);
        st = samkv_client_submit_ingest(c->client, &d, &request, &err);
        c->own[which] = UNKNOWN;
    }
    judge(c, DROP, st, SAMKV_OK, &err);
    usleep((useconds_t)draw(c, 3000));
    disconnect(c);
}

static void do_garbage(struct client *c)
{
    uint8_t bytes[300];
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)draw(c, 256);
    bytes[6] = 0xff; /* flags that there are not */
    send_bytes(c, bytes, 16 + draw(c, sizeof bytes - 16), true);
    c->done[GARBAGE]++;
}

/* The beginning of a conversation, cut off anywhere. */
static void do_half(struct client *c)
{
    static const uint8_t hello[] = {0x09, 0, 0,   0,   1,   0,   0,   0,    0, 0,   0, 0, 0, 0, 0, 0, /* header */
                                    0x0a, 5, 's', 'a', 'm', 'k', 'v', 0x10, 1, 100, 0, 0, 0, 4, 0, 0, 0};
    send_bytes(c, hello, 1 + draw(c, sizeof hello), false);
    c->done[HALF]++;
}

static void (*const actions[])(struct client *) = {do_fetch,   do_fetch_own, do_ingest,  do_remove, do_list,
                                                   do_refused, do_drop,      do_garbage, do_half};

static enum what choose(struct client *c)
{
    unsigned at = (unsigned)draw(c, 100);
    enum what what = 0;
    while (at >= weights[what])
        at -= weights[what++];
    return what;
}

static void *run(void *arg)
{
    struct client *c = arg;
    double gather_s = (c->settings->end_s - now_s()) / 10; /* they do not all come in the same instant */
    usleep((useconds_t)draw(c, 1 + (uint64_t)(1e6 * (gather_s < 5 ? gather_s : 5))));
    while (now_s() < c->settings->end_s) {
        enum what what = choose(c);
        if (what >= GARBAGE || connected(c))
            actions[what](c);
        if (c->settings->pause_ms)
            usleep((useconds_t)draw(c, 2000 * (uint64_t)c->settings->pause_ms));
    }
    disconnect(c);
    return NULL;
}

/* ------------------------------------------------------------------ what the machine adds */

/* How much too long sleeps of a millisecond last: what any wait for a processor adds to any latency here. */
struct probe {
    const struct settings *settings;
    pthread_t thread;
    float late_ms[MOST_LATENCIES];
    size_t count;
};

static void *run_probe(void *arg)
{
    struct probe *p = arg;
    const struct timespec millisecond = {.tv_nsec = 1000000};
    while (now_s() < p->settings->end_s && p->count < MOST_LATENCIES) {
        double start = now_s();
        nanosleep(&millisecond, NULL);
        p->late_ms[p->count++] = (float)(1e3 * (now_s() - start) - 1);
    }
    return NULL;
}

/* ------------------------------------------------------------------ the whole */

static void print_numbers(const float *values, size_t count)
{
    for (size_t i = 0; i < count; i++)
        printf("%.3f,", (double)values[i]);
}

static void print(const struct client *clients, unsigned count, const struct probe *probe)
{
    uint64_t done[WHAT_COUNT] = {0}, busy[WHAT_COUNT] = {0}, wrong = 0, connects = 0, connects_busy = 0;
    for (unsigned i = 0; i < count; i++) {
        for (int w = 0; w < WHAT_COUNT; w++) {
            done[w] += clients[i].done[w];
            busy[w] += clients[i].busy[w];
        }
        wrong += clients[i].wrong;
        connects += clients[i].connects;
        connects_busy += clients[i].connects_busy;
    }
    printf("{\"wrong\": %llu, \"connects\": %llu, \"connects_busy\": %llu", (unsigned long long)wrong,
           (unsigned long long)connects, (unsigned long long)connects_busy);
    for (int w = 0; w < WHAT_COUNT; w++)
        printf(", \"%s\": [%llu, %llu]", what_names[w], (unsigned long long)done[w], (unsigned long long)busy[w]);
    printf(", \"late_ms\": ["); /* each list ends with a number that is none */
    print_numbers(probe->late_ms, probe->count);
    printf("-1], \"fetch_ms\": [");
    for (unsigned i = 0; i < count; i++)
        print_numbers(clients[i].latency_ms, clients[i].latencies);
    printf("-1]}\n");
}

int main(int argc, char **argv)
{
    if (argc != 7) {
        fprintf(stderr, "load_clients SOCKET CLIENTS SECONDS PAUSE_MS SEED HIDDEN\n");
        return 2;
    }
    unsigned count = (unsigned)atoi(argv[2]);
    const struct settings settings = {
        .socket = argv[1], .hidden = argv[6], .end_s = now_s() + atof(argv[3]), .pause_ms = (unsigned)atoi(argv[4])};
    struct probe *probe = calloc(1, sizeof *probe);
    probe->settings = &settings;
    pthread_create(&probe->thread, NULL, run_probe, probe);
    struct client *clients = calloc(count, sizeof *clients);
    for (unsigned i = 0; i < count; i++) {
        clients[i] =
            (struct client){.settings = &settings, .number = i, .random = strtoull(argv[5], NULL, 10) + 977 * i};
        clients[i].latency_ms = malloc(MOST_LATENCIES * sizeof(float));
        snprintf(clients[i].collection, sizeof clients[i].collection, "own-%s-%u", argv[5], i);
        if (pthread_create(&clients[i].thread, NULL, run, &clients[i]) != 0) {
            fprintf(stderr, "cannot start thread %u\n", i);
            return 1;
        }
    }
    for (unsigned i = 0; i < count; i++)
        pthread_join(clients[i].thread, NULL);
    pthread_join(probe->thread, NULL);
    print(clients, count, probe);
    free(probe);
    for (unsigned i = 0; i < count; i++)
        free(clients[i].latency_ms);
    free(clients);
    return 0;
}
