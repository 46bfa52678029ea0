#pragma once
/*
 * Who may do what, in the manner of files.
 *
 * Names: a plain NAME is the daemon's (and root's) collection; "~UID/NAME" is a user's. Whoever says a plain name means
 * the own collection of that name or, where there is none, the daemon's if it may be read. So nobody's names are in
 * anybody's way, and nothing is learned from making one.
 *
 * Rights: the owner may do everything with a collection; its group and others read, or read and write, as its mode
 * says. Administrators (root, the daemon's user, members of --admin-group) may do everything with all of them, and what
 * concerns the whole store. A collection that may not be read answers as one that is not there, to every request.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "proto/status.h"
#include "daemon/net/traces.h" /* struct samkv_peer */
#include "daemon/store/store.h"

/* Who is at the other end of a connection, with what it may do. */
struct samkv_caller {
    struct samkv_peer peer;
    uint32_t owner; /* as collections name it */
    bool admin;
    gid_t *groups; /* beside peer.gid; owned */
    size_t group_count;
};

struct samkv_access {
    bool has_admin_group;
    gid_t admin_group;
    uint32_t mode; /* of new collections; 0: SAMKV_MODE_DEFAULT */
};

/* As the kernel says, from when the client connected. IO, NO_MEMORY. */
enum samkv_status samkv_caller_init(struct samkv_caller *, int fd, const struct samkv_access *,
                                    struct samkv_error *) SAMKV_MUST_USE;
void samkv_caller_deinit(struct samkv_caller *);

enum samkv_right { SAMKV_RIGHT_READ, SAMKV_RIGHT_WRITE, SAMKV_RIGHT_OWN };

bool samkv_caller_may(const struct samkv_caller *, const struct samkv_ownership *, enum samkv_right);
bool samkv_caller_is_in(const struct samkv_caller *, gid_t group);

struct samkv_request;

/* The store's name of the collection that the request's client means with `said` ("": the default). NOT_FOUND: there is
 * none that it may read. DENIED: it may read it, and no more. */
enum samkv_status samkv_access_find(const struct samkv_request *, const char *said, enum samkv_right,
                                    char out[SAMKV_ID_MAX_BYTES + 1], struct samkv_error *) SAMKV_MUST_USE;

/* The same for writing, or the name of one that the client may make, and whose it will be. mode 0: as the daemon has
 * it. */
enum samkv_status samkv_access_find_or_make(const struct samkv_request *, const char *said, uint32_t mode,
                                            char out[SAMKV_ID_MAX_BYTES + 1], struct samkv_ownership *,
                                            struct samkv_error *) SAMKV_MUST_USE;

/* DENIED unless the client is an administrator. `what` it wants to do, for the text. */
enum samkv_status samkv_access_check_admin(const struct samkv_request *, const char *what,
                                           struct samkv_error *) SAMKV_MUST_USE;
