#include "daemon/store/usage.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "daemon/store/fields.h"

#define MAGIC       0x31554b53u /* "SKU1" */
#define HEAD_BYTES  24u
#define ENTRY_BYTES (SAMKV_KEY_BYTES + 24u)
#define TAIL_BYTES  8u
#define COUNT_MAX   ((uint64_t)1 << 24)
#define PATH_BYTES  4096

/* ------------------------------------------------------------------ loading */

/* The whole file on the heap, NULL when it cannot be one. */
static uint8_t *read_file(const char *path, size_t *bytes)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    uint8_t *all = NULL;
    if (fd < 0)
        return NULL;
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size >= (off_t)(HEAD_BYTES + TAIL_BYTES) &&
        (uint64_t)st.st_size <= HEAD_BYTES + COUNT_MAX * ENTRY_BYTES + TAIL_BYTES) {
        *bytes = (size_t)st.st_size;
        all = malloc(*bytes);
    }
    for (size_t at = 0; all && at < *bytes;) {
        ssize_t n = read(fd, all + at, *bytes - at);
        if (n <= 0 && errno != EINTR) {
            free(all);
            all = NULL;
        } else if (n > 0) {
            at += (size_t)n;
        }
    }
    close(fd);
    return all;
}

static void take_entry(struct samkv_ledger *l, struct samkv_fields *f)
{
    struct samkv_key key;
    struct samkv_usage u;
    memcpy(key.bytes, samkv_get_bytes(f, sizeof key.bytes), sizeof key.bytes);
    uint32_t weight = samkv_get_u32(f);
    memcpy(&u.weight, &weight, sizeof u.weight);
    u.uses = samkv_get_u32(f);
    u.tick = samkv_get_u64(f);
    u.used_unix_s = (int64_t)samkv_get_u64(f);
    struct samkv_ledger_document *d = samkv_ledger_find_document(l, &key);
    if (d && d->facts.present && u.weight >= 0 && u.weight < 1e30f && u.tick <= l->tick)
        d->facts.usage = u;
}

static bool take_all(struct samkv_ledger *l, const uint8_t *all, size_t bytes)
{
    struct samkv_fields f;
    samkv_fields_read(&f, all, bytes);
    uint32_t magic = samkv_get_u32(&f), zero = samkv_get_u32(&f);
    uint64_t tick = samkv_get_u64(&f), count = samkv_get_u64(&f), sum;
    if (magic != MAGIC || zero != 0 || count > COUNT_MAX || bytes != HEAD_BYTES + count * ENTRY_BYTES + TAIL_BYTES)
        return false;
    struct samkv_fields tail;
    samkv_fields_read(&tail, all + bytes - TAIL_BYTES, TAIL_BYTES);
    sum = samkv_get_u64(&tail);
    if (sum != XXH3_64bits(all, bytes - TAIL_BYTES))
        return false;
    pthread_mutex_lock(&l->lock);
    l->tick = tick;
    for (uint64_t i = 0; i < count; i++)
        take_entry(l, &f);
    pthread_mutex_unlock(&l->lock);
    return true;
}

bool samkv_usage_load(struct samkv_store *s)
{
    char path[PATH_BYTES];
    size_t bytes = 0;
    if (snprintf(path, sizeof path, "%s/usage", s->path) >= (int)sizeof path)
        return false;
    uint8_t *all = read_file(path, &bytes);
    bool good = all && take_all(&s->ledger, all, bytes);
    free(all);
    return good;
}

/* ------------------------------------------------------------------ saving */

static void put_entry(void *arg, struct samkv_ledger_document *d)
{
    struct samkv_fields *f = arg;
    const struct samkv_usage *u = &d->facts.usage;
    uint32_t weight;
    if (!d->facts.present)
        return;
    memcpy(&weight, &u->weight, sizeof weight);
    samkv_put_bytes(f, d->key.bytes, sizeof d->key.bytes);
    samkv_put_u32(f, weight);
    samkv_put_u32(f, u->uses);
    samkv_put_u64(f, u->tick);
    samkv_put_u64(f, (uint64_t)u->used_unix_s);
}

/* The file's bytes on the heap; NULL: no memory, or more documents than it can tell of. */
static uint8_t *make_file(struct samkv_ledger *l, size_t *bytes)
{
    pthread_mutex_lock(&l->lock);
    uint64_t count = l->present;
    *bytes = HEAD_BYTES + count * ENTRY_BYTES + TAIL_BYTES;
    uint8_t *all = count <= COUNT_MAX ? malloc(*bytes) : NULL;
    struct samkv_fields f;
    if (all) {
        samkv_fields_write(&f, all, *bytes);
        samkv_put_u32(&f, MAGIC);
        samkv_put_u32(&f, 0);
        samkv_put_u64(&f, l->tick);
        samkv_put_u64(&f, count);
        samkv_ledger_each(l, put_entry, &f);
        samkv_put_u64(&f, XXH3_64bits(all, *bytes - TAIL_BYTES));
        l->used_since_saved = false;
    }
    pthread_mutex_unlock(&l->lock);
    return all;
}

static int write_all(const char *path, const uint8_t *all, size_t bytes)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600), rc = 0;
    if (fd < 0)
        return errno;
    for (size_t at = 0; rc == 0 && at < bytes;) {
        ssize_t n = write(fd, all + at, bytes - at);
        if (n > 0)
            at += (size_t)n;
        else if (n == 0 || errno != EINTR)
            rc = n == 0 ? EIO : errno;
    }
    if (rc == 0 && fsync(fd) != 0)
        rc = errno;
    if (close(fd) != 0 && rc == 0)
        rc = errno;
    return rc;
}

static void sync_directory(const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return;
    fsync(fd); /* else an old file may be there after a crash, which is a good one too */
    close(fd);
}

enum samkv_status samkv_usage_save(struct samkv_store *s, struct samkv_error *err)
{
    char path[PATH_BYTES], fresh[PATH_BYTES];
    size_t bytes;
    pthread_mutex_lock(&s->ledger.lock);
    bool needed = s->ledger.used_since_saved;
    pthread_mutex_unlock(&s->ledger.lock);
    if (!needed)
        return SAMKV_OK;
    if (snprintf(path, sizeof path, "%s/usage", s->path) >= (int)sizeof path ||
        snprintf(fresh, sizeof fresh, "%s/usage.new", s->path) >= (int)sizeof fresh)
        return samkv_fail(err, SAMKV_INVALID, "the store's path is too long: choose a shorter one");
    uint8_t *all = make_file(&s->ledger, &bytes);
    if (!all)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory while noting what was used");
    int rc = write_all(fresh, all, bytes);
    free(all);
    if (rc == 0 && rename(fresh, path) != 0)
        rc = errno;
    if (rc) {
        unlink(fresh);
        pthread_mutex_lock(&s->ledger.lock);
        s->ledger.used_since_saved = true; /* to be tried again */
        pthread_mutex_unlock(&s->ledger.lock);
        return samkv_fail_errno(err, rc, "cannot write %s", path);
    }
    sync_directory(s->path);
    return SAMKV_OK;
}
