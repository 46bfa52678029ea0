#include "daemon/store/store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "daemon/base/clock.h"
#include "daemon/base/log.h"
#include "daemon/store/change.h"
#include "daemon/store/datafile.h"
#include "daemon/store/generation.h"
#include "daemon/store/guard.h"
#include "daemon/store/usage.h"

#define FOLLOW_TRIES    8
#define LIMIT_MIN_BYTES ((uint64_t)1 << 20)

/* Sanitizers leave little address space; elsewhere a map costs nothing but addresses. */
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define MAP_MAX_BYTES ((uint64_t)64 << 30)
#else
#define MAP_MAX_BYTES ((uint64_t)16 << 40)
#endif

/* Takes the directory for this process. The lock file also says that the store was made once: it is not empty then. */
static enum samkv_status take_directory(struct samkv_store *s, bool *made_before, struct samkv_error *err)
{
    char path[SAMKV_PATH_BYTES];
    int n = snprintf(path, sizeof path, "%s/samkv.lock", s->path);
    if (n < 0 || (size_t)n >= sizeof path)
        return samkv_fail(err, SAMKV_INVALID, "the store's path is too long: choose a shorter one");
    if (mkdir(s->path, 0700) != 0 && errno != EEXIST)
        return samkv_fail_errno(err, errno, "cannot create the store's directory %s", s->path);
    s->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (s->lock_fd < 0)
        return samkv_fail_errno(err, errno, "cannot open %s", path);
    if (flock(s->lock_fd, LOCK_EX | LOCK_NB) != 0)
        return errno == EWOULDBLOCK
                   ? samkv_fail(err, SAMKV_BUSY, "another samkvd uses the store %s: stop it or name another directory",
                                s->path)
                   : samkv_fail_errno(err, errno, "cannot lock %s", path);
    struct stat st_lock;
    *made_before = fstat(s->lock_fd, &st_lock) == 0 && st_lock.st_size > 0;
    return SAMKV_OK;
}

static enum samkv_status note_made(struct samkv_store *s, struct samkv_error *err)
{
    static const char text[] = "samkvd store; locked while a daemon uses it\n";
    if (pwrite(s->lock_fd, text, sizeof text - 1, 0) != (ssize_t)(sizeof text - 1) || fsync(s->lock_fd) != 0)
        return samkv_fail_errno(err, errno, "cannot write %s/samkv.lock", s->path);
    return SAMKV_OK;
}

/* The data files as they are, before LMDB touches it; and the size of the map. */
static enum samkv_status choose_map(struct samkv_store *s, const struct samkv_generations *g, uint64_t max_bytes,
                                    bool made_before, struct samkv_error *err)
{
    char path[SAMKV_PATH_BYTES];
    struct samkv_datafile file;
    enum samkv_status st = SAMKV_OK;
    for (unsigned i = g->count == 2 ? 2 : 1;
         st == SAMKV_OK && i-- > 0;) { /* the newest last: its path and size count */
        st = samkv_generation_path(s, i ? g->old : g->newest, false, path, err);
        if (st == SAMKV_OK)
            st = samkv_datafile_check(path, !s->read_only, &file, err);
    }
    /* A start that was cut short before anything was stored: the meta pages, or a part of them. */
    if (st == SAMKV_CORRUPT && !made_before && file.exists && file.file_bytes <= 2 * (uint64_t)sysconf(_SC_PAGESIZE))
        st = truncate(path, 0) == 0 ? SAMKV_OK : samkv_fail_errno(err, errno, "cannot begin %s anew", path);
    if (st != SAMKV_OK)
        return st;
    if (!file.exists && s->read_only)
        return samkv_fail(err, SAMKV_NOT_FOUND, "there is no store in %s: name the directory of one", s->path);
    if (!file.exists && made_before)
        return samkv_fail(err, SAMKV_CORRUPT, "%s is gone: restore it, or remove %s/samkv.lock to start a new store",
                          path, s->path);
    uint64_t bytes = max_bytes;
    if (!bytes) {
        /* Never full before the disk is; sparse, so only addresses are spent. */
        struct statvfs disk;
        if (statvfs(s->path, &disk) != 0)
            return samkv_fail_errno(err, errno, "%s", s->path);
        bytes = (uint64_t)disk.f_blocks * disk.f_frsize;
    }
    if (bytes > MAP_MAX_BYTES)
        bytes = MAP_MAX_BYTES;
    if (bytes < LIMIT_MIN_BYTES)
        bytes = LIMIT_MIN_BYTES;
    if (bytes < file.used_bytes) /* a limit that was lowered: nothing new fits, all that is there stays */
        bytes = file.used_bytes;
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    s->limit_bytes = bytes / page * page;
    return SAMKV_OK;
}

/* What follows from the size of the map that there was room for. */
static void settle_limit(struct samkv_store *s)
{
    s->limit_bytes = s->now->map_bytes;
    /* A deletion touches a handful of pages of each tree; a step of removal a thousand leaves at most. */
    s->reserve_bytes = s->limit_bytes / 16;
    uint64_t least = 32 * s->page_bytes, most = 4096 * s->page_bytes;
    s->reserve_bytes = s->reserve_bytes < least ? least : s->reserve_bytes > most ? most : s->reserve_bytes;
}

static enum samkv_status open_one(struct samkv_store *s, uint64_t generation, bool may_shrink,
                                  struct samkv_environment **out, bool *moved, struct samkv_error *err)
{
    enum samkv_status st = samkv_generation_open(s, generation, may_shrink, out, err);
    if (st != SAMKV_OK)
        return st;
    st = samkv_generation_databases(s, *out, moved, err);
    if (st != SAMKV_OK)
        samkv_environment_release(s, *out);
    return st;
}

/* A newer file beside one that was not moved: its making was cut short. */
static void drop_leftover(struct samkv_store *s, uint64_t generation)
{
    struct samkv_environment leftover = {.generation = generation};
    char path[SAMKV_PATH_BYTES];
    if (s->read_only || samkv_generation_path(s, generation, false, path, NULL) != SAMKV_OK)
        return;
    leftover.path = path;
    samkv_generation_unlink(s, &leftover);
}

/* The newest whose predecessor (if it is there) says that it was moved. */
static enum samkv_status open_generations(struct samkv_store *s, const struct samkv_generations *g, bool may_shrink,
                                          struct samkv_error *err)
{
    struct samkv_environment *first, *second;
    bool moved;
    enum samkv_status st = open_one(s, g->count == 2 ? g->old : g->newest, may_shrink, &first, &moved, err);
    if (st != SAMKV_OK)
        return st;
    samkv_generations_publish(s, first, NULL);
    settle_limit(s);
    if (!moved) {
        if (g->count == 2)
            drop_leftover(s, g->newest);
        return SAMKV_OK;
    }
    if (g->count < 2)
        return samkv_fail(err, SAMKV_CORRUPT, "the newest data file of the store in %s is gone: restore it", s->path);
    st = open_one(s, g->newest, false, &second, &moved, err);
    if (st != SAMKV_OK)
        return st;
    samkv_generations_publish(s, second, first);
    s->compaction.database = 0; /* goes on where it was */
    return moved ? samkv_fail(err, SAMKV_BUSY, "the store in %s has just been compacted: try again", s->path)
                 : SAMKV_OK;
}

/* Of a read-only store: those that are there now. An environment that is open stays so: LMDB wants a file opened once
 * by a process. */
static enum samkv_status open_newer(struct samkv_store *s, struct samkv_error *err)
{
    struct samkv_generations g;
    struct samkv_environment *now, *old = NULL;
    bool moved;
    enum samkv_status st = samkv_generations_find(s, &g, err);
    if (st != SAMKV_OK)
        return st;
    if (g.count == 0 || g.newest <= s->now->generation)
        return SAMKV_OK;
    st = open_one(s, g.newest, false, &now, &moved, err);
    if (st != SAMKV_OK)
        return st;
    if (g.count == 2 && g.old == s->now->generation)
        old = s->now;
    else if (g.count == 2)
        st = open_one(s, g.old, false, &old, &moved, err);
    if (st == SAMKV_OK)
        samkv_generations_publish(s, now, old);
    else
        samkv_environment_release(s, now);
    return st;
}

enum samkv_status samkv_generations_follow(struct samkv_store *s, struct samkv_error *err)
{
    pthread_mutex_lock(&s->following);
    enum samkv_status st = open_newer(s, err);
    pthread_mutex_unlock(&s->following);
    return st;
}

/* Checks and opens. For a reader beside a daemon files may go and come meanwhile: it looks again then. */
static enum samkv_status open_files(struct samkv_store *s, const struct samkv_store_options *o, bool made_before,
                                    struct samkv_error *err)
{
    struct samkv_generations g, next;
    enum samkv_status st = samkv_generations_find(s, &g, err);
    for (int tries = 0; st == SAMKV_OK; tries++) {
        st = choose_map(s, &g, o->max_bytes, made_before, err);
        if (st == SAMKV_OK)
            st = open_generations(s, &g, o->max_bytes == 0, err);
        if (st == SAMKV_OK || !s->read_only || tries == FOLLOW_TRIES)
            break;
        if (samkv_generations_find(s, &next, NULL) != SAMKV_OK || (next.count == g.count && next.newest == g.newest))
            break;
        g = next;
        samkv_generations_publish(s, NULL, NULL);
        st = SAMKV_OK;
    }
    return st;
}

static enum samkv_status prepare(struct samkv_store *s, const struct samkv_store_options *o, struct samkv_error *err)
{
    bool made_before = false;
    enum samkv_status st = s->read_only ? SAMKV_OK : take_directory(s, &made_before, err);
    if (st == SAMKV_OK && !s->read_only)
        samkv_generations_tidy(s);
    if (st == SAMKV_OK)
        st = open_files(s, o, made_before, err);
    if (st != SAMKV_OK || s->read_only)
        return st;
    if (!made_before)
        st = note_made(s, err);
    if (st == SAMKV_OK)
        st = samkv_recover(s, err);
    if (st == SAMKV_OK)
        st = samkv_ledger_load(s, err);
    if (st == SAMKV_OK) {
        samkv_usage_load(s);
        s->usage_saved_ms = samkv_now_ms();
        samkv_space_count(s, s->now);
        if (s->old)
            samkv_space_count(s, s->old);
        st = samkv_queue_start(s, err);
    }
    return st;
}

enum samkv_status samkv_store_open(const struct samkv_store_options *o, struct samkv_store **out,
                                   struct samkv_error *err)
{
    *out = NULL;
    if (!o->path || !*o->path || !samkv_codec_is_known(o->codec) || o->zstd_level < 0 || o->zstd_level > 22)
        return samkv_fail(err, SAMKV_INVALID,
                          "a store needs a path, a codec that is known and a zstd level of 0 to 22");
    struct samkv_store *s = calloc(1, sizeof *s);
    if (!s || !(s->path = strdup(o->path))) {
        free(s);
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory while opening the store");
    }
    s->lock_fd = -1;
    s->direct = o->direct;
    s->read_only = o->read_only;
    s->codec = o->codec;
    s->zstd_level = o->zstd_level;
    s->compact = o->compact;
    s->compaction.database = -1;
    samkv_guard_install();
    s->evict = o->evict;
    s->quota_refuses = o->quota_refuses;
    s->user_quota = o->user_quota;
    s->user_quota_arg = o->user_quota_arg;
    s->now_s = o->now_s;
    s->now_arg = o->now_arg;
    samkv_scratch_pool_init(&s->scratch);
    samkv_ledger_init(&s->ledger);
    pthread_mutex_init(&s->reading.lock, NULL);
    samkv_held_pool_init(&s->rooms);
    samkv_queue_init(&s->queue);
    pthread_mutex_init(&s->environments_lock, NULL);
    pthread_mutex_init(&s->following, NULL);
    enum samkv_status st = SAMKV_OK;
    if (o->host_cache_bytes)
        st = samkv_host_cache_new(o->host_cache_bytes, &s->host_cache, err);
    if (st == SAMKV_OK)
        st = prepare(s, o, err);
    if (st != SAMKV_OK) {
        samkv_store_close(s);
        return st;
    }
    *out = s;
    return SAMKV_OK;
}

void samkv_store_close(struct samkv_store *s)
{
    if (!s)
        return;
    bool wrote = s->queue.started;
    struct samkv_error err = {0};
    samkv_queue_deinit(s);
    if (wrote && samkv_usage_save(s, &err) != SAMKV_OK)
        samkv_log(SAMKV_LOG_WARNING, "store: %s", err.text);
    samkv_environment_release(s, s->old);
    samkv_environment_release(s, s->now);
    if (s->lock_fd >= 0)
        close(s->lock_fd); /* the lock goes with it */
    samkv_scratch_pool_deinit(&s->scratch);
    samkv_held_pool_deinit(&s->rooms);
    samkv_host_cache_free(s->host_cache);
    samkv_ledger_deinit(&s->ledger);
    pthread_mutex_destroy(&s->reading.lock);
    pthread_mutex_destroy(&s->environments_lock);
    pthread_mutex_destroy(&s->following);
    free(s->path);
    free(s);
}

struct samkv_host_cache *samkv_store_host_cache(struct samkv_store *s)
{
    return s->host_cache;
}
