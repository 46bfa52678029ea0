/*
 * What libsamkv makes of a daemon's bytes: a stream of frames that answers one request of every operation, and memory
 * with those that announce it. A client believes nothing: all requests end, caches lie inside their memory, no
 * descriptor is left.
 */
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client/client_internal.h"
#include "tests/fuzz/fuzz.h"

#define MEMORY_BYTES  8192
#define FIRST         SAMKV_OPERATION_PING
#define LAST          SAMKV_OPERATION_TRACE
#define MAX_IN_FLIGHT 64

static int sealed_memory(void)
{
    static uint8_t zeros[MEMORY_BYTES];
    int fd = memfd_create("cache", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    FUZZ_REQUIRE(fd >= 0 && write(fd, zeros, sizeof zeros) == sizeof zeros, "no memory file");
    FUZZ_REQUIRE(!fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE), "no seals");
    return fd;
}

/* Sends all frames; those that say so get descriptors, as many as their request id's second byte says. */
static void send_frames(int socket, const uint8_t *data, size_t size)
{
    while (size) {
        struct samkv_frame frame = {0};
        struct samkv_fds fds = {.count = 0};
        size_t bytes = size;
        if (size >= SAMKV_FRAME_HEADER_BYTES && !samkv_frame_decode(data, &frame)) {
            bytes = SAMKV_FRAME_HEADER_BYTES + (size_t)frame.payload_bytes;
            bytes = bytes < size ? bytes : size;
            if (frame.flags & SAMKV_FLAG_FD)
                for (int n = 1 + data[9] % SAMKV_MAX_FDS; fds.count < n;)
                    fds.fd[fds.count++] = sealed_memory();
        }
        ssize_t n = samkv_socket_send(socket, data, bytes, fds.count ? &fds : NULL);
        samkv_fds_close(&fds);
        if (n <= 0)
            return;
        data += n, size -= (size_t)n;
    }
}

static void check_cache(const struct samkv_cache *cache)
{
    if (!cache)
        return;
    size_t bytes = cache->rows * cache->row_stride_bytes;
    for (uint32_t l = 0; l < cache->layers; l++) {
        fuzz_touch(samkv_cache_k(cache, l), bytes);
        fuzz_touch(samkv_cache_v(cache, l), bytes);
    }
    fuzz_touch(cache->tokens, cache->rows * sizeof *cache->tokens);
    fuzz_touch(cache->doc, cache->rows * sizeof *cache->doc);
    fuzz_touch(cache->index, cache->rows * sizeof *cache->index);
    fuzz_touch(cache->position, cache->rows * sizeof *cache->position);
    if (cache->logits)
        fuzz_touch(cache->logits, cache->vocab * sizeof *cache->logits);
}

static struct samkv_client *new_client(int socket)
{
    struct samkv_client *client = calloc(1, sizeof *client);
    FUZZ_REQUIRE(client, "no memory");
    samkv_wire_init(&client->wire, socket);
    client->max_frame_bytes = SAMKV_MAX_FRAME_BYTES;
    client->max_in_flight = MAX_IN_FLIGHT;
    client->done_tail = &client->done_head;
    return client;
}

/* Request ids count from 1: the n-th is of operation FIRST + n - 1. */
static void submit_all(struct samkv_client *client, bool device)
{
    struct samkv_error err;
    for (int operation = FIRST; operation <= LAST; operation++) {
        Samkv__FetchRequest message = SAMKV__FETCH_REQUEST__INIT;
        uint64_t request;
        message.placement = device ? SAMKV__PLACEMENT__DEVICE : SAMKV__PLACEMENT__HOST;
        FUZZ_REQUIRE(!samkv_client_submit(client, (enum samkv_operation)operation, &message.base, &request, &err), "%s",
                     err.text);
    }
}

static int next_fd(void)
{
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    close(fd);
    return fd;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int pair[2], free_fd = next_fd();
    if (!size)
        return 0;
    heap_begin();
    FUZZ_REQUIRE(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), "no socket");
    struct samkv_client *client = new_client(pair[0]);
    submit_all(client, data[0] & 1);
    send_frames(pair[1], data + 1, size - 1);
    close(pair[1]);
    struct samkv_error err = {0};
    enum samkv_status status = samkv_client_process(client, &err);
    FUZZ_REQUIRE(status, "a connection that ended and goes on");
    FUZZ_REQUIRE(client->pending_count == 0, "%zu requests without an end", client->pending_count);
    struct samkv_reply reply;
    while (samkv_client_next(client, &reply)) {
        if (reply.status)
            FUZZ_REQUIRE(reply.error.text[0] && !strchr(reply.error.text, '\n'), "'%s'", reply.error.text);
        check_cache(reply.cache);
        samkv_reply_deinit(&reply);
    }
    samkv_client_close(client);
    FUZZ_REQUIRE(next_fd() == free_fd, "descriptors are left open");
    return 0;
}
