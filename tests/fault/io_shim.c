/*
 * A disk that fails, for LD_PRELOAD. Calls on data files fail as the environment says:
 *   SAMKV_SHIM_CALLS    of pread, write, sync, truncate, separated by commas (write: pwrite, writev, pwritev)
 *   SAMKV_SHIM_ERRNO    EIO or ENOSPC
 *   SAMKV_SHIM_NTH      the Nth such call fails, counted from 1; and all after it, with
 *   SAMKV_SHIM_STAYS=1  a disk that is gone
 *   SAMKV_SHIM_CHANCE   instead: each call fails with this probability (0 to 1), by a generator that
 *   SAMKV_SHIM_SEED     begins here
 *   SAMKV_SHIM_SHORT=1  a write that fails writes its first half before: the error comes at the next
 * Nothing fails until SAMKV_SHIM_AFTER (a path), when it is set, exists.
 */
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

static atomic_uint_fast64_t calls;

static bool names(const char *list, const char *word)
{
    size_t n = strlen(word);
    for (const char *at = list; at && (at = strstr(at, word)); at += n)
        if ((at == list || at[-1] == ',') && (at[n] == 0 || at[n] == ','))
            return true;
    return false;
}

static bool is_data_file(int fd)
{
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path);
    path[n > 0 && n < (ssize_t)sizeof path ? n : 0] = 0;
    const char *name = strrchr(path, '/'); /* data.mdb, or data.N.mdb after a compaction */
    return name && strncmp(name, "/data.", 6) == 0 && n > 4 && strcmp(path + n - 4, ".mdb") == 0;
}

static double chance(uint64_t call)
{
    const char *seed = getenv("SAMKV_SHIM_SEED");
    uint64_t z = (call + (seed ? strtoull(seed, NULL, 10) : 0) * 1000003) * 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (double)((z ^ z >> 31) >> 11) / 9007199254740992.0;
}

/* True when this call is to fail; errno is set then. */
static bool fails(const char *kind, int fd)
{
    int saved = errno;
    const char *list = getenv("SAMKV_SHIM_CALLS"), *nth = getenv("SAMKV_SHIM_NTH"),
               *probability = getenv("SAMKV_SHIM_CHANCE"), *stays = getenv("SAMKV_SHIM_STAYS"),
               *code = getenv("SAMKV_SHIM_ERRNO"), *after = getenv("SAMKV_SHIM_AFTER");
    bool bad = false;
    if (list && names(list, kind) && is_data_file(fd) && (!after || access(after, F_OK) == 0)) {
        uint64_t call = atomic_fetch_add(&calls, 1) + 1, n = nth ? strtoull(nth, NULL, 10) : 0;
        bad = n ? call == n || (call > n && stays) : probability && chance(call) < strtod(probability, NULL);
    }
    errno = bad ? code && !strcmp(code, "ENOSPC") ? ENOSPC : EIO : saved;
    return bad;
}

static void *next(const char *name)
{
    return dlsym(RTLD_NEXT, name);
}

EXPORT ssize_t pread64(int fd, void *to, size_t bytes, off_t at)
{
    ssize_t (*real)(int, void *, size_t, off_t) = next("pread64");
    return fails("pread", fd) ? -1 : real(fd, to, bytes, at);
}

EXPORT ssize_t pread(int fd, void *to, size_t bytes, off_t at)
{
    return pread64(fd, to, bytes, at);
}

EXPORT ssize_t pwrite64(int fd, const void *from, size_t bytes, off_t at)
{
    ssize_t (*real)(int, const void *, size_t, off_t) = next("pwrite64");
    if (!fails("write", fd))
        return real(fd, from, bytes, at);
    if (getenv("SAMKV_SHIM_SHORT") && bytes > 1)
        return real(fd, from, bytes / 2, at);
    return -1;
}

EXPORT ssize_t pwrite(int fd, const void *from, size_t bytes, off_t at)
{
    return pwrite64(fd, from, bytes, at);
}

EXPORT ssize_t pwritev64(int fd, const struct iovec *from, int count, off_t at)
{
    ssize_t (*real)(int, const struct iovec *, int, off_t) = next("pwritev64");
    if (!fails("write", fd))
        return real(fd, from, count, at);
    if (getenv("SAMKV_SHIM_SHORT") && count > 1)
        return real(fd, from, count / 2, at);
    return -1;
}

EXPORT ssize_t pwritev(int fd, const struct iovec *from, int count, off_t at)
{
    return pwritev64(fd, from, count, at);
}

EXPORT ssize_t writev(int fd, const struct iovec *from, int count)
{
    ssize_t (*real)(int, const struct iovec *, int) = next("writev");
    if (!fails("write", fd))
        return real(fd, from, count);
    if (getenv("SAMKV_SHIM_SHORT") && count > 1)
        return real(fd, from, count / 2);
    return -1;
}

EXPORT int fdatasync(int fd)
{
    int (*real)(int) = next("fdatasync");
    return fails("sync", fd) ? -1 : real(fd);
}

EXPORT int fsync(int fd)
{
    int (*real)(int) = next("fsync");
    return fails("sync", fd) ? -1 : real(fd);
}

EXPORT int ftruncate64(int fd, off_t bytes)
{
    int (*real)(int, off_t) = next("ftruncate64");
    return fails("truncate", fd) ? -1 : real(fd, bytes);
}

EXPORT int ftruncate(int fd, off_t bytes)
{
    return ftruncate64(fd, bytes);
}
