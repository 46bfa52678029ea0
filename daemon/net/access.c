#include "daemon/net/access.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/net/handlers.h"

#define NAME_BYTES (SAMKV_ID_MAX_BYTES + 1)

/* ------------------------------------------------------------------ who it is */

static enum samkv_status read_groups(struct samkv_caller *c, int fd, struct samkv_error *err)
{
    socklen_t bytes = 0;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, NULL, &bytes) == 0)
        return SAMKV_OK;
    if (errno != ERANGE)
        return samkv_fail_errno(err, errno, "cannot find out a client's groups");
    c->groups = malloc(bytes);
    if (!c->groups)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory for a client's groups");
    if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, c->groups, &bytes) != 0) /* they are those of connect: no race */
        return samkv_fail_errno(err, errno, "cannot find out a client's groups");
    c->group_count = bytes / sizeof *c->groups;
    return SAMKV_OK;
}

enum samkv_status samkv_caller_init(struct samkv_caller *c, int fd, const struct samkv_access *access,
                                    struct samkv_error *err)
{
    struct ucred who;
    socklen_t size = sizeof who;
    *c = (struct samkv_caller){.peer = {.pid = -1, .uid = (uid_t)-1, .gid = (gid_t)-1}};
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &size) != 0)
        return samkv_fail_errno(err, errno, "cannot find out who a client is");
    c->peer = (struct samkv_peer){who.pid, who.uid, who.gid};
    enum samkv_status st = read_groups(c, fd, err);
    if (st != SAMKV_OK) {
        samkv_caller_deinit(c);
        return st;
    }
    bool is_daemon = who.uid == 0 || who.uid == geteuid();
    c->owner = is_daemon ? SAMKV_OWNER_DAEMON : who.uid;
    c->admin = is_daemon || (access->has_admin_group && samkv_caller_is_in(c, access->admin_group));
    return SAMKV_OK;
}

void samkv_caller_deinit(struct samkv_caller *c)
{
    free(c->groups);
    c->groups = NULL;
    c->group_count = 0;
}

bool samkv_caller_is_in(const struct samkv_caller *c, gid_t group)
{
    bool is_in = c->peer.gid == group;
    for (size_t i = 0; !is_in && i < c->group_count; i++)
        is_in = c->groups[i] == group;
    return is_in;
}

bool samkv_caller_may(const struct samkv_caller *c, const struct samkv_ownership *o, enum samkv_right right)
{
    if (c->admin || c->owner == o->owner)
        return true;
    gid_t group = o->group == SAMKV_OWNER_DAEMON ? getegid() : o->group;
    uint32_t bits = samkv_caller_is_in(c, group) ? o->mode >> 3 : o->mode;
    return right == SAMKV_RIGHT_READ ? bits & 4 : right == SAMKV_RIGHT_WRITE && (bits & 6) == 6;
}

/* ------------------------------------------------------------------ names */

/* A name of the form ~UID/NAME: the user, as collections name owners, and what stands behind. */
static bool parse_owner(const char *said, uint32_t *owner, const char **rest)
{
    char *end;
    if (said[0] != '~' || said[1] < '0' || said[1] > '9')
        return false;
    errno = 0;
    unsigned long long uid = strtoull(said + 1, &end, 10);
    if (errno || uid >= UINT32_MAX || *end != '/' || !end[1])
        return false;
    *owner = uid == geteuid() ? SAMKV_OWNER_DAEMON : (uint32_t)uid;
    *rest = end + 1;
    return true;
}

/* False: too long. */
static bool stored_name(uint32_t owner, const char *name, char out[NAME_BYTES])
{
    int n = owner == SAMKV_OWNER_DAEMON ? snprintf(out, NAME_BYTES, "%s", name)
                                        : snprintf(out, NAME_BYTES, "~%u/%s", owner, name);
    return n >= 0 && n < NAME_BYTES;
}

/* One text for what is not there and what is not for this client. */
static enum samkv_status not_found(const char *said, struct samkv_error *err)
{
    return samkv_fail(err, SAMKV_NOT_FOUND,
                      "there is no collection '%s': ingest something into it, or see samkvctl ls --collections", said);
}

/* The names that `said` may stand for, in order; how many. Absent ones are looked for like others: that takes the time
 * of a look into a hash table, whether they are there or not. */
static int candidates(const struct samkv_caller *c, const char *said, char out[2][NAME_BYTES])
{
    uint32_t owner;
    const char *rest;
    int n = 0;
    if (parse_owner(said, &owner, &rest))
        return stored_name(owner, rest, out[0]);
    if (c->owner != SAMKV_OWNER_DAEMON)
        n += stored_name(c->owner, said, out[n]);
    n += stored_name(SAMKV_OWNER_DAEMON, said, out[n]);
    return n;
}

/* The first of them that may be read. */
static bool resolve(const struct samkv_request *r, const char *said, char out[NAME_BYTES], struct samkv_ownership *o)
{
    char names[2][NAME_BYTES];
    int n = candidates(r->caller, said, names), found = -1;
    for (int i = 0; i < n; i++) {
        struct samkv_ownership there;
        if (samkv_store_ownership(r->service->store, names[i], &there) &&
            samkv_caller_may(r->caller, &there, SAMKV_RIGHT_READ) && found < 0) {
            found = i;
            *o = there;
        }
    }
    if (found >= 0)
        memcpy(out, names[found], NAME_BYTES);
    return found >= 0;
}

static const char *or_default(const char *said)
{
    return said && *said ? said : SAMKV_DEFAULT_COLLECTION;
}

static enum samkv_status check_right(const struct samkv_request *r, const struct samkv_ownership *o,
                                     enum samkv_right right, const char *name, struct samkv_error *err)
{
    if (samkv_caller_may(r->caller, o, right))
        return SAMKV_OK;
    if (right == SAMKV_RIGHT_OWN)
        return samkv_fail(err, SAMKV_DENIED, "collection '%s' is another user's: only its owner may do this", name);
    return samkv_fail(
        err, SAMKV_DENIED,
        "collection '%s' is another user's and may only be read: write into one of your own, like ~%u/%.100s", name,
        r->caller->peer.uid, name);
}

enum samkv_status samkv_access_find(const struct samkv_request *r, const char *said, enum samkv_right right,
                                    char out[NAME_BYTES], struct samkv_error *err)
{
    struct samkv_ownership o;
    said = or_default(said);
    return resolve(r, said, out, &o) ? check_right(r, &o, right, out, err) : not_found(said, err);
}

enum samkv_status samkv_access_find_or_make(const struct samkv_request *r, const char *said, uint32_t mode,
                                            char out[NAME_BYTES], struct samkv_ownership *o, struct samkv_error *err)
{
    const struct samkv_caller *c = r->caller;
    uint32_t owner = c->owner;
    const char *name = said = or_default(said);
    if (resolve(r, said, out, o)) {
        if (mode && mode != (o->mode ? o->mode : SAMKV_MODE_DEFAULT))
            return samkv_fail(err, SAMKV_MISMATCH, "collection '%s' has mode %04o: change it with samkvctl set --mode",
                              out, o->mode);
        return check_right(r, o, SAMKV_RIGHT_WRITE, out, err);
    }
    bool named = parse_owner(said, &owner, &name);
    if (owner != c->owner && !c->admin)
        return not_found(said, err);
    if (!named && said[0] == '~')
        return samkv_fail(err, SAMKV_INVALID, "a collection's name begins with ~ only as ~UID/NAME, a user's number");
    if (!stored_name(owner, name, out))
        return samkv_fail(err, SAMKV_INVALID,
                          "the collection's name is too long behind its user: at most %d bytes together",
                          SAMKV_ID_MAX_BYTES);
    struct samkv_ownership other; /* one with such a name from before names had users in them */
    if (samkv_store_ownership(r->service->store, out, &other))
        return samkv_fail(err, SAMKV_DENIED, "the name '%s' is taken: choose another", out);
    uint32_t by_default = r->service->access.mode ? r->service->access.mode : SAMKV_MODE_DEFAULT;
    *o = (struct samkv_ownership){.owner = owner, .mode = mode ? mode : by_default};
    o->group = owner == c->owner && owner != SAMKV_OWNER_DAEMON ? c->peer.gid : SAMKV_OWNER_DAEMON;
    return SAMKV_OK;
}

enum samkv_status samkv_access_check_admin(const struct samkv_request *r, const char *what, struct samkv_error *err)
{
    return r->caller->admin
               ? SAMKV_OK
               : samkv_fail(err, SAMKV_DENIED,
                            "only root, samkvd's own user and its --admin-group may %s: ask one of them", what);
}
