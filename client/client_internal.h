#pragma once
/*
 * What libsamkv's files share. From the socket upwards:
 *   wire    bytes: whole frames out of a non-blocking socket, a queue of frames into it
 *   client  requests: numbers, deadlines, the hand-shake, completions
 *   submit  options → messages          reply, cache  messages → answers
 *   device  memory of a GPU, mapped     save          caches → files
 *   calls   the blocking calls, over all of this
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/frame.h"
#include "proto/samkv.pb-c.h"
#include "samkv/samkv.h"

/* ------------------------------------------------------------------ wire */

/* Memory that K and V lie in, mapped for reading and writing. Zeroed: none. */
struct samkv_device_memory {
    uint8_t *base; /* a device's pointer, or SHARED: the host's */
    size_t bytes;
    bool is_cuda;
    int ordinal; /* CUDA: of the GPU; else -1 */
    int device;  /* CUDA: the driver's handle of it */
    int lease;
};

/* A whole frame; who takes it frees payload and closes fds. */
struct samkv_incoming {
    struct samkv_frame frame;
    uint8_t *payload;
    struct samkv_fds fds;
    /* Of the request that it answers; set by who knows that: */
    bool device_asked;
    struct samkv_device_memory *announced; /* what was mapped for it, to be moved from here; NULL: nothing can be */
};

struct samkv_wire_item;

struct samkv_wire {
    int socket;
    struct samkv_wire_item *head, **tail;
    uint8_t header[SAMKV_FRAME_HEADER_BYTES];
    size_t header_got, payload_got;
    struct samkv_incoming incoming;
};

/* Takes the socket, which becomes non-blocking. */
void samkv_wire_init(struct samkv_wire *, int socket);
void samkv_wire_deinit(struct samkv_wire *);

/* Appends a frame with this message to what is to be sent, with a copy of fd (-1: none). TOO_LARGE when its payload
 * exceeds max_bytes. */
enum samkv_status samkv_wire_queue(struct samkv_wire *, struct samkv_frame, const ProtobufCMessage *, int fd,
                                   uint64_t max_bytes, struct samkv_error *) SAMKV_MUST_USE;
bool samkv_wire_pending(const struct samkv_wire *);

/* Sends what the socket takes now. */
enum samkv_status samkv_wire_flush(struct samkv_wire *, struct samkv_error *) SAMKV_MUST_USE;

/* OK: one frame is in *out. BUSY: not all of it is here yet. CLOSED, PROTOCOL, IO, NO_MEMORY: the connection is over.
 */
enum samkv_status samkv_wire_receive(struct samkv_wire *, struct samkv_incoming *out,
                                     struct samkv_error *) SAMKV_MUST_USE;

/* Descriptors that nobody took are given back as samkv_device_refuse does. */
void samkv_incoming_deinit(struct samkv_incoming *);

/* ------------------------------------------------------------------ client */

struct samkv_done {
    struct samkv_done *next;
    struct samkv_reply reply;
};

struct samkv_pending {
    uint64_t id;
    enum samkv_operation operation;
    bool device_asked;                    /* fetch: for K and V in device memory */
    struct samkv_device_memory announced; /* such memory, mapped before the answer is complete; base NULL: none */
    struct samkv_error announce_failure;  /* status not OK: it could not be mapped */
    bool abandoned;                       /* nobody waits for the answer any more; its place is taken until it comes */
    int timeout_ms;                       /* 0: none */
    int64_t deadline_ms;
    struct samkv_done *done; /* made with the request, so that its end needs no memory */
};

struct samkv_client {
    struct samkv_wire wire;
    char server[64];
    uint64_t max_frame_bytes;
    uint32_t max_in_flight;
    int timeout_ms;
    uint64_t last_id;
    struct samkv_pending pending[SAMKV_MAX_IN_FLIGHT];
    size_t pending_count;
    struct samkv_done *done_head, **done_tail;
    struct samkv_error failure; /* status OK while the connection lives */
};

enum samkv_status samkv_client_submit(struct samkv_client *, enum samkv_operation, const ProtobufCMessage *,
                                      uint64_t *request, struct samkv_error *) SAMKV_MUST_USE;
/* The same with a descriptor, of which a copy goes along; -1: none. */
enum samkv_status samkv_client_submit_with(struct samkv_client *, enum samkv_operation, const ProtobufCMessage *,
                                           int fd, uint64_t *request, struct samkv_error *) SAMKV_MUST_USE;

/* Waits for the next answer or piece of this request. */
void samkv_client_wait(struct samkv_client *, uint64_t request, struct samkv_reply *out);

/* poll until the wire can move or timeout_ms has passed (-1: no limit). */
void samkv_client_poll(struct samkv_client *, int timeout_ms);

int64_t samkv_client_now_ms(void);

/* ------------------------------------------------------------------ answers */

struct samkv_reply_memory {
    ProtobufCMessage *message; /* strings of the answer point into it */
    void *arrays[8];
};

/* Fills an answer, failed ones included, from a frame whose fd and payload it uses up. out->status tells how it went.
 */
void samkv_reply_decode(struct samkv_reply *out, struct samkv_incoming *);

/* Of client_quality.c, for answers that have such parts; strings and lists stay the message's. */
struct samkv_quality_info samkv_quality_info(const Samkv__Quality *);
struct samkv_calibration_info samkv_calibration_info(const Samkv__Calibration *);
enum samkv_status samkv_fill_calibrate(struct samkv_reply *, const ProtobufCMessage *,
                                       struct samkv_error *) SAMKV_MUST_USE;

/* Makes it a failed answer. */
void samkv_reply_fail(struct samkv_reply *, const struct samkv_error *);

/* An Error message's payload → status and a printable line. */
void samkv_reply_error(const uint8_t *payload, size_t bytes, struct samkv_error *out);

/* keep: [message->n_keep], to be filled. PROTOCOL when the lists disagree about the number of documents. */
enum samkv_status samkv_figures_fill(struct samkv_figures *out, const Samkv__FetchReply *message,
                                     struct samkv_blocks_kept *keep, struct samkv_error *) SAMKV_MUST_USE;

/* Maps a fetched cache. Takes message, fds and what was announced, also on failure. device_asked: a cache in device
 * memory may come. */
enum samkv_status samkv_cache_new(Samkv__FetchReply *message, struct samkv_fds *fds, bool device_asked,
                                  struct samkv_device_memory *announced, struct samkv_cache **out,
                                  struct samkv_error *) SAMKV_MUST_USE;

/* Copies K or V of a cache in device memory to the host; `from` is what samkv_cache_k or _v gave, and what follows. */
enum samkv_status samkv_cache_read(const struct samkv_cache *, const void *from, void *out, size_t bytes,
                                   struct samkv_error *) SAMKV_MUST_USE;

/* ------------------------------------------------------------------ device memory */

/* The descriptors of a reply with device memory, in their order. */
enum { SAMKV_FD_FILE, SAMKV_FD_DEVICE, SAMKV_FD_LEASE, SAMKV_DEVICE_FDS };
#define SAMKV_ANNOUNCED_FDS 2 /* an announcement has the last two of them */

/*
 * Maps it. The descriptors of memory and lease are taken out of fds on success only. PROTOCOL when it is not what the
 * daemon says; UNSUPPORTED without a CUDA driver or without that GPU; DEVICE or NO_MEMORY when the driver refuses.
 */
enum samkv_status samkv_device_map(const Samkv__DeviceMemory *, struct samkv_fds *fds, struct samkv_device_memory *out,
                                   struct samkv_error *) SAMKV_MUST_USE;

/* The same for an announcement, whose two descriptors are memory and lease. They are taken in every case. */
enum samkv_status samkv_device_map_announced(const Samkv__DeviceMemory *, struct samkv_fds *fds,
                                             struct samkv_device_memory *out, struct samkv_error *) SAMKV_MUST_USE;

/* Unmaps it and gives the lease back. */
void samkv_device_unmap(struct samkv_device_memory *);

/* Copies bytes at an offset to the host. */
enum samkv_status samkv_device_read(const struct samkv_device_memory *, uint64_t offset, void *out, size_t bytes,
                                    struct samkv_error *) SAMKV_MUST_USE;

/* Closes descriptors of a reply or announcement that were not mapped; a lease among them is given back. */
void samkv_device_refuse(struct samkv_fds *fds);
