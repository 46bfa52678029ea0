#pragma once
/*
 * A client's descriptor, as a stream of bytes. It is hostile: whatever it is, and whatever its other end does, a worker
 * waits for it only for bounded times, between which it looks whether anybody still wants the result.
 *
 * Taken are regular files, pipes and stream sockets. Files are read and written at a place of our own, from where the
 * descriptor stood. Pipes are moved to and from with splice over a pipe of our own, since a client's O_NONBLOCK is not
 * ours to change, and sockets with MSG_DONTWAIT. What a client does to the bytes meanwhile concerns only the client:
 * they are copied before they are looked at. On a worker; one thread at a time.
 */
#include <stdbool.h>
#include <stdint.h>

#include "proto/status.h"

#define SAMKV_DESCRIPTOR_STALL_MS    60000       /* without as many bytes as the next line, nobody is there */
#define SAMKV_DESCRIPTOR_STALL_BYTES (64u << 10) /* so that one byte a minute does not count as progress */

enum samkv_descriptor_kind { SAMKV_DESCRIPTOR_FILE, SAMKV_DESCRIPTOR_PIPE, SAMKV_DESCRIPTOR_SOCKET };

struct samkv_descriptor {
    int fd; /* owned */
    enum samkv_descriptor_kind kind;
    bool writes;
    int staging[2]; /* of a pipe: ours */
    uint64_t place; /* of a file: where the next byte goes or comes from */
    /* Looked at between waits: OK, or why to end. */
    enum samkv_status (*still_wanted)(void *arg, struct samkv_error *);
    void *arg;
    double stall_ms;  /* SAMKV_DESCRIPTOR_STALL_MS, but for tests */
    double waited_ms; /* for the other end, and what moved meanwhile */
    uint64_t moved;
};

/* Takes fd over, also on failure. INVALID when it is none of the three kinds, or not open for writing (or reading). */
enum samkv_status samkv_descriptor_init(struct samkv_descriptor *, int fd, bool writes,
                                        enum samkv_status (*still_wanted)(void *arg, struct samkv_error *), void *arg,
                                        struct samkv_error *) SAMKV_MUST_USE;
/* A file's descriptor is left standing behind what was read or written. */
void samkv_descriptor_deinit(struct samkv_descriptor *);

/* As the functions of struct samkv_bundle_stream; arg is the descriptor. IO: the reader is gone,
 * nothing moved for too long, or the system says so. FULL. */
enum samkv_status samkv_descriptor_write(void *arg, const void *bytes, size_t count,
                                         struct samkv_error *) SAMKV_MUST_USE;
enum samkv_status samkv_descriptor_read(void *arg, void *bytes, size_t count, size_t *got,
                                        struct samkv_error *) SAMKV_MUST_USE;
/* A file's only. */
enum samkv_status samkv_descriptor_skip(void *arg, uint64_t count, struct samkv_error *) SAMKV_MUST_USE;

/* A file's only: what is behind `place` goes, and writing goes on there. */
enum samkv_status samkv_descriptor_cut(struct samkv_descriptor *, uint64_t place, struct samkv_error *) SAMKV_MUST_USE;
