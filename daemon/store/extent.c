#include "daemon/store/extent.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daemon/base/log.h"
#include "daemon/store/environment.h"
#include "daemon/store/pages.h"

#define IDLE_MAX     32
#define KEEP_MAX     ((size_t)16 << 20) /* a room that one giant record needed is not kept for ever */
#define ROOM_STEP    ((size_t)64 << 10)
#define PAGE_ALIGNED 4096
#define PAGE_MAX     32768

void samkv_held_pool_init(struct samkv_held_pool *pool)
{
    *pool = (struct samkv_held_pool){0};
    pthread_mutex_init(&pool->lock, NULL);
}

static void room_free(struct samkv_held_room *room)
{
    free(room->memory);
    free(room);
}

void samkv_held_pool_deinit(struct samkv_held_pool *pool)
{
    while (pool->idle) {
        struct samkv_held_room *room = pool->idle;
        pool->idle = room->next;
        room_free(room);
    }
    pthread_mutex_destroy(&pool->lock);
}

static struct samkv_held_room *take_idle(struct samkv_held_pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    struct samkv_held_room *room = pool->idle;
    if (room) {
        pool->idle = room->next;
        pool->idle_count--;
    }
    pthread_mutex_unlock(&pool->lock);
    return room;
}

enum samkv_status samkv_held_reserve(struct samkv_store *s, struct samkv_held *held, size_t bytes,
                                     struct samkv_error *err)
{
    if (!held->room)
        held->room = take_idle(&s->rooms);
    if (!held->room)
        held->room = calloc(1, sizeof *held->room);
    if (held->room && held->room->capacity < bytes) {
        free(held->room->memory);
        held->room->capacity = (bytes + ROOM_STEP - 1) / ROOM_STEP * ROOM_STEP;
        held->room->memory = aligned_alloc(PAGE_ALIGNED, held->room->capacity);
        if (!held->room->memory)
            held->room->capacity = 0;
    }
    if (held->room && held->room->capacity >= bytes) {
        held->bytes = (struct samkv_bytes){held->room->memory, 0};
        return SAMKV_OK;
    }
    samkv_held_release(s, held);
    return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory while reading a record of %zu bytes", bytes);
}

void samkv_held_release(struct samkv_store *s, struct samkv_held *held)
{
    struct samkv_held_room *room = held->room;
    *held = (struct samkv_held){0};
    if (!room)
        return;
    pthread_mutex_lock(&s->rooms.lock);
    if (s->rooms.idle_count < IDLE_MAX && room->capacity <= KEEP_MAX) {
        room->next = s->rooms.idle;
        s->rooms.idle = room;
        s->rooms.idle_count++;
        room = NULL;
    }
    pthread_mutex_unlock(&s->rooms.lock);
    if (room)
        room_free(room);
}

/* ------------------------------------------------------------------ the file */

enum samkv_status samkv_extent_read_at(const struct samkv_environment *e, uint64_t offset, void *to, size_t bytes,
                                       struct samkv_error *err)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t n = pread(e->fd, (uint8_t *)to + done, bytes - done, (off_t)(offset + done));
        if (n > 0) {
            done += (size_t)n;
        } else if (n == 0) {
            return samkv_fail(err, SAMKV_CORRUPT, "%s is shorter than it was: restore it", e->path);
        } else if (errno == EIO) {
            return samkv_fail(err, SAMKV_CORRUPT, "a part of %s cannot be read: check the disk", e->path);
        } else if (errno != EINTR) {
            return samkv_fail_errno(err, errno, "reading %s", e->path);
        }
    }
    return SAMKV_OK;
}

/* Whether the page cache has all of a range, asked through the map without touching it: a read that must not wait
 * (RWF_NOWAIT) would make the kernel begin to read ahead, and the disk deliver everything twice. */
static bool is_cached(const struct samkv_environment *e, uint64_t offset, size_t bytes)
{
    unsigned char in[512];
    uint64_t from = offset / PAGE_ALIGNED * PAGE_ALIGNED, end = offset + bytes;
    while (from < end) {
        size_t pages = (size_t)((end - from + PAGE_ALIGNED - 1) / PAGE_ALIGNED);
        pages = pages < sizeof in ? pages : sizeof in;
        if (mincore((void *)(e->map + from), pages * PAGE_ALIGNED, in) != 0)
            return false;
        for (size_t i = 0; i < pages; i++)
            if (!(in[i] & 1))
                return false;
        from += pages * PAGE_ALIGNED;
    }
    return true;
}

/* Past the page cache, in whole pages; the value then lies at *at within the room. False: try the other way, which says
 * what is wrong. */
static bool read_direct(const struct samkv_environment *e, uint64_t offset, uint8_t *to, size_t bytes, size_t *at)
{
    uint64_t from = offset / PAGE_ALIGNED * PAGE_ALIGNED;
    size_t want = (size_t)(offset - from) + bytes, all = (want + PAGE_ALIGNED - 1) / PAGE_ALIGNED * PAGE_ALIGNED;
    *at = (size_t)(offset - from);
    for (size_t done = 0; done < want;) {
        ssize_t n = pread(e->direct_fd, to + done, all - done, (off_t)(from + done));
        if (n <= 0 || n % PAGE_ALIGNED)
            return n > 0 && done + (size_t)n >= want;
        done += (size_t)n;
    }
    return true;
}

bool samkv_extent_is(const struct samkv_store *s, const struct samkv_environment *e, struct samkv_bytes in_map)
{
    /* Behind the header of any other page stands the table of its nodes, so no value can begin there. */
    return ((uintptr_t)in_map.data - (uintptr_t)e->map) % s->page_bytes == SAMKV_PAGE_HEADER_BYTES;
}

enum samkv_status samkv_extent_read(struct samkv_store *s, const struct samkv_environment *e, struct samkv_bytes in_map,
                                    struct samkv_held *held, struct samkv_error *err)
{
    uintptr_t offset = (uintptr_t)in_map.data - (uintptr_t)e->map;
    /* Nodes were checked when the store was opened, but may have been damaged since. */
    if (offset >= e->map_bytes || in_map.size > e->map_bytes - offset)
        return samkv_fail(err, SAMKV_CORRUPT, "a page of %s is damaged: restart the daemon to check it", e->path);
    enum samkv_status st = samkv_held_reserve(s, held, in_map.size + (size_t)2 * PAGE_ALIGNED, err);
    size_t at = 0;
    bool direct = st == SAMKV_OK && e->direct_fd >= 0 && !is_cached(e, offset, in_map.size) &&
                  read_direct(e, offset, held->room->memory, in_map.size, &at);
    if (st == SAMKV_OK && !direct)
        st = samkv_extent_read_at(e, offset, held->room->memory + (at = 0), in_map.size, err);
    if (st == SAMKV_OK)
        held->bytes = (struct samkv_bytes){held->room->memory + at, in_map.size};
    return st;
}

/* ------------------------------------------------------------------ the map */

/* Whether the page at `page` is the one in the file that its own number says; *map is then where the map begins. */
static bool page_is_ours(const struct samkv_store *s, struct samkv_environment *e, const uint8_t *page,
                         const uint8_t **map)
{
    uint8_t same[PAGE_MAX];
    struct samkv_page_header h;
    memcpy(&h, page, sizeof h);
    if (h.number >= e->map_bytes / s->page_bytes || s->page_bytes > sizeof same ||
        samkv_extent_read_at(e, h.number * s->page_bytes, same, s->page_bytes, NULL) != SAMKV_OK ||
        memcmp(same, page, sizeof h) != 0 || memcmp(same, page, s->page_bytes) != 0)
        return false;
    *map = page - h.number * s->page_bytes;
    return true;
}

enum samkv_status samkv_extent_locate(struct samkv_store *s, struct samkv_environment *e, struct samkv_error *err)
{
    MDB_txn *txn;
    MDB_val k = {6, "schema"}, v;
    int rc = mdb_txn_begin(e->env, NULL, MDB_RDONLY, &txn);
    if (rc)
        return samkv_fail_lmdb(err, rc, e->path);
    rc = mdb_get(txn, s->dbi[SAMKV_DB_META], &k, &v);
    /* LMDB tells the map's address only where it was asked for one. A page knows its number, which gives it too. A map
     * begins at a page of the system's, which may be smaller than the file's. */
    bool found = false;
    uintptr_t at = (uintptr_t)v.mv_data, system_page = (uintptr_t)sysconf(_SC_PAGESIZE);
    for (uintptr_t shift = 0; rc == 0 && !found && shift < s->page_bytes; shift += system_page)
        found = page_is_ours(s, e, (const uint8_t *)((at - shift) / s->page_bytes * s->page_bytes + shift), &e->map);
    mdb_txn_abort(txn);
    if (rc || !found)
        return samkv_fail(err, SAMKV_IO, "%s cannot be read: check the disk", e->path);
    if (s->direct && e->direct_fd < 0) {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", e->fd);
        e->direct_fd = open(link, O_RDONLY | O_DIRECT | O_CLOEXEC); /* some file systems cannot: then as without */
        if (e->direct_fd < 0)
            samkv_log(SAMKV_LOG_WARNING, "store: %s cannot be read past the page cache: %s", e->path, strerror(errno));
    }
    /* Records are read whole and in no order: what the kernel would read beside them is not wanted. */
    posix_fadvise(e->fd, 0, 0, POSIX_FADV_RANDOM);
    return SAMKV_OK;
}
