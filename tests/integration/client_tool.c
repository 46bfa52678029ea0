/*
 * A client that does as it is told, to be killed at any moment; for test_device_clients.py.
 *   client_tool SOCKET COLLECTION
 * stdin: commands, one a line. stdout: one line for each that says something.
 *   connect                                     a new connection; caches stay. "connected"
 *   submit SLOT host|device RATIO SEED ID,ID    a fetch, whose query is tokens by SEED; into slot SLOT, once it is
 * there next                                        waits for one answer. "cache SLOT BYTES" or "failed SLOT STATUS
 * text" fetch …                                     submit and next sum SLOT                                    "sum
 * SLOT HEX", over all bytes of the cache's safetensors file free SLOT                                   "freed SLOT"
 *   receive                                     takes an answer's descriptors off the socket by hand and maps nothing;
 *                                               no further use of the connection. "received COUNT"
 *   pause MICROSECONDS
 *   die MICROSECONDS                            SIGKILL comes so much later, whatever is going on then
 * At the end of stdin it waits for the SIGKILL that `die` announced, else frees all and ends with 0.
 */
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "client/samkv/samkv.h"

#define SLOTS        256
#define MAX_IDS      64
#define QUERY_TOKENS 6
#define MAX_FDS      8
#define MS           1000000

struct slot {
    uint64_t request; /* 0: none */
    struct samkv_cache *cache;
};

struct tool {
    const char *socket, *collection;
    struct samkv_client *client;
    struct slot slots[SLOTS];
    bool doomed;
};

static void die(const char *what, const char *why)
{
    fprintf(stderr, "client_tool: %s: %s\n", what, why);
    exit(1);
}

static struct samkv_client *connected(struct tool *t)
{
    if (!t->client)
        die("a command", "not connected");
    return t->client;
}

/* The slot that the command names first; *line goes behind it. */
static struct slot *take_slot(struct tool *t, char **line)
{
    unsigned long number = strtoul(*line, line, 10);
    if (number >= SLOTS)
        die("a command", "no such slot");
    return &t->slots[number];
}

static int number_of(const struct tool *t, const struct slot *slot)
{
    return (int)(slot - t->slots);
}

/* ------------------------------------------------------------------ commands */

static void do_connect(struct tool *t, char *line)
{
    struct samkv_error err;
    (void)line;
    samkv_client_close(t->client);
    if (samkv_client_connect(t->socket, &t->client, &err))
        die("connect", err.text);
    puts("connected");
}

static void do_submit(struct tool *t, char *line)
{
    struct samkv_fetch_options options;
    struct samkv_error err;
    char placement[16], ids[4096], *rest = NULL;
    const char *list[MAX_IDS];
    int32_t query[QUERY_TOKENS];
    double ratio;
    unsigned seed;
    struct slot *slot = take_slot(t, &line);
    if (slot->cache || slot->request || sscanf(line, "%15s %lf %u %4095s", placement, &ratio, &seed, ids) != 4)
        die("submit", line);
    samkv_fetch_options_init(&options);
    options.collection = t->collection;
    options.ids = list;
    for (char *id = strtok_r(ids, ",", &rest); id && options.id_count < MAX_IDS; id = strtok_r(NULL, ",", &rest))
        list[options.id_count++] = id;
    for (int i = 0; i < QUERY_TOKENS; i++)
        query[i] = 3 + (int32_t)(rand_r(&seed) % 200);
    options.query_tokens = query;
    options.query_token_count = QUERY_TOKENS;
    options.ratio = ratio;
    options.placement = strcmp(placement, "device") ? SAMKV_FETCH_HOST : SAMKV_FETCH_DEVICE;
    if (samkv_client_submit_fetch(connected(t), &options, &slot->request, &err))
        die("submit", err.text);
    (void)!samkv_client_process(t->client, &err); /* off it goes; how it ended, its answer says */
}

static struct slot *slot_of(struct tool *t, uint64_t request)
{
    for (int i = 0; i < SLOTS; i++)
        if (t->slots[i].request == request)
            return &t->slots[i];
    return NULL;
}

/* Until the socket can go on; sends and receives. A connection that ended completes all requests. */
static void go_on(struct samkv_client *client)
{
    struct samkv_error ignored;
    struct pollfd p = {.fd = samkv_client_fd(client), .events = POLLIN};
    if (samkv_client_wants_write(client))
        p.events |= POLLOUT;
    poll(&p, 1, -1);
    (void)!samkv_client_process(client, &ignored);
}

static void do_next(struct tool *t, char *line)
{
    struct samkv_reply reply;
    (void)line;
    while (!samkv_client_next(connected(t), &reply))
        go_on(t->client);
    struct slot *slot = slot_of(t, reply.request);
    if (!slot)
        die("next", "an answer to nothing");
    slot->request = 0;
    if (reply.status) {
        printf("failed %d %s %s\n", number_of(t, slot), samkv_status_name(reply.status), reply.error.text);
    } else {
        slot->cache = reply.cache;
        reply.cache = NULL;
        printf("cache %d %zu\n", number_of(t, slot),
               2 * slot->cache->layers * slot->cache->rows * slot->cache->row_stride_bytes);
    }
    samkv_reply_deinit(&reply);
}

static void do_fetch(struct tool *t, char *line)
{
    do_submit(t, line);
    do_next(t, line);
}

/* FNV-1a over what comes out of the pipe. */
struct reader {
    int fd;
    uint64_t sum;
};

static void *read_sum(void *arg)
{
    struct reader *r = arg;
    static _Thread_local uint8_t bytes[65536];
    ssize_t n;
    r->sum = 0xcbf29ce484222325u;
    while ((n = read(r->fd, bytes, sizeof bytes)) > 0)
        for (ssize_t i = 0; i < n; i++)
            r->sum = (r->sum ^ bytes[i]) * 0x100000001b3u;
    return NULL;
}

/* Saving is the library's own way to read a device's memory. */
static void do_sum(struct tool *t, char *line)
{
    struct slot *slot = take_slot(t, &line);
    struct samkv_error err;
    struct reader reader;
    pthread_t thread;
    char path[64];
    int pipe_fds[2];
    if (!slot->cache || pipe(pipe_fds))
        die("sum", "no cache, or no pipe");
    reader.fd = pipe_fds[0];
    if (pthread_create(&thread, NULL, read_sum, &reader))
        die("sum", "no thread");
    snprintf(path, sizeof path, "/proc/self/fd/%d", pipe_fds[1]);
    enum samkv_status status = samkv_cache_save(slot->cache, path, &err);
    close(pipe_fds[1]);
    pthread_join(thread, NULL);
    close(pipe_fds[0]);
    if (status)
        die("sum", err.text);
    printf("sum %d %016" PRIx64 "\n", number_of(t, slot), reader.sum);
}

static void do_free(struct tool *t, char *line)
{
    struct slot *slot = take_slot(t, &line);
    samkv_cache_free(slot->cache);
    slot->cache = NULL;
    printf("freed %d\n", number_of(t, slot));
}

/* Descriptors come with the first byte of a frame. They stay open here until the process ends. */
static void do_receive(struct tool *t, char *line)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(MAX_FDS * sizeof(int))];
    } control;
    char byte;
    struct iovec part = {&byte, 1};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    struct samkv_error err;
    (void)line;
    while (samkv_client_wants_write(connected(t)))
        if (samkv_client_process(t->client, &err))
            die("receive", err.text);
    struct pollfd p = {.fd = samkv_client_fd(t->client), .events = POLLIN};
    poll(&p, 1, -1);
    if (recvmsg(p.fd, &message, MSG_CMSG_CLOEXEC) != 1)
        die("receive", "the connection ended");
    struct cmsghdr *c = CMSG_FIRSTHDR(&message);
    printf("received %d\n", c ? (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int)) : 0);
}

static struct timespec microseconds(const char *text)
{
    long us = strtol(text, NULL, 10);
    return (struct timespec){.tv_sec = us / MS, .tv_nsec = us % MS * 1000};
}

static void do_pause(struct tool *t, char *line)
{
    struct timespec duration = microseconds(line);
    (void)t;
    nanosleep(&duration, NULL);
}

static void do_die(struct tool *t, char *line)
{
    struct sigevent how = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGKILL};
    struct itimerspec when = {.it_value = microseconds(line)};
    timer_t timer;
    when.it_value.tv_nsec += when.it_value.tv_sec == 0 && when.it_value.tv_nsec == 0; /* 0 would be never */
    if (timer_create(CLOCK_MONOTONIC, &how, &timer) || timer_settime(timer, 0, &when, NULL))
        die("die", "no timer");
    t->doomed = true;
}

static const struct {
    const char *name;
    void (*run)(struct tool *, char *rest);
} commands[] = {
    {"connect", do_connect}, {"submit", do_submit}, {"next", do_next},       {"fetch", do_fetch}, {"sum", do_sum},
    {"free", do_free},       {"pause", do_pause},   {"receive", do_receive}, {"die", do_die},
};

static void obey(struct tool *t, char *line)
{
    char *rest = strchr(line, ' ');
    size_t length = rest ? (size_t)(rest - line) : strcspn(line, "\n");
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        if (strlen(commands[i].name) == length && memcmp(commands[i].name, line, length) == 0) {
            commands[i].run(t, line + length);
            return;
        }
    }
    die("unknown command", line);
}

int main(int argc, char **argv)
{
    static struct tool tool;
    static char line[8192];
    if (argc != 3)
        die("usage", "client_tool SOCKET COLLECTION");
    tool.socket = argv[1];
    tool.collection = argv[2];
    setvbuf(stdout, NULL, _IOLBF, 0);
    while (fgets(line, sizeof line, stdin))
        obey(&tool, line);
    while (tool.doomed)
        pause();
    for (int i = 0; i < SLOTS; i++)
        samkv_cache_free(tool.slots[i].cache);
    samkv_client_close(tool.client);
    return 0;
}
