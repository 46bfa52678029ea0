#include "daemon/store/datafile.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/store/pages.h"

#define META_MAGIC   0xbeefc0deu
#define META_VERSION 1u

static enum samkv_status damaged(struct samkv_error *err, const char *path, const char *how)
{
    return samkv_fail(err, SAMKV_CORRUPT,
                      "%s %s: restore it, bring back what is left with samkvd --salvage NEWDIR, or move it away", path,
                      how);
}

static bool read_meta(int fd, off_t at, struct samkv_meta_page *out)
{
    return pread(fd, out, sizeof *out, at) == (ssize_t)sizeof *out && (out->header.flags & SAMKV_PAGE_IS_META) &&
           out->magic == META_MAGIC;
}

static bool page_size_is_sane(uint32_t bytes)
{
    return bytes >= 512 && bytes <= 32768 && (bytes & (bytes - 1)) == 0;
}

/* The newer of the two meta pages, from which LMDB goes on. */
static enum samkv_status newest_meta(int fd, const char *path, struct samkv_meta_page *out, struct samkv_error *err)
{
    struct samkv_meta_page first, second;
    if (!read_meta(fd, 0, &first))
        return damaged(err, path, "is empty, damaged or no store of samkvd");
    if (first.version != META_VERSION)
        return samkv_fail(err, SAMKV_MISMATCH,
                          "%s is of LMDB's format %u, this samkvd reads %u: use the one that made it", path,
                          first.version, META_VERSION);
    uint32_t page_bytes = first.trees[0].pad;
    if (!page_size_is_sane(page_bytes) || !read_meta(fd, page_bytes, &second) || second.version != META_VERSION ||
        second.trees[0].pad != page_bytes)
        return damaged(err, path, "has a damaged meta page");
    *out = second.transaction > first.transaction ? second : first;
    if (out->last_page < 1 || out->last_page >= (uint64_t)INT64_MAX / page_bytes - 1)
        return damaged(err, path, "has a damaged meta page");
    return SAMKV_OK;
}

static enum samkv_status check_pages(int fd, const char *path, const struct samkv_meta_page *meta,
                                     const struct samkv_datafile *file, struct samkv_error *err)
{
    switch (samkv_pages_check(fd, file->file_bytes, meta)) {
    case SAMKV_OK:
        break;
    case SAMKV_NO_MEMORY:
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory while checking %s", path);
    case SAMKV_IO:
        return samkv_fail(err, SAMKV_IO, "%s cannot be read: check the disk", path);
    default:
        return damaged(err, path, file->used_bytes > file->file_bytes ? "is truncated" : "has damaged pages");
    }
    /* Pages at the end that were handed out and given back in one transaction are never written. */
    if (file->used_bytes > file->file_bytes && ftruncate(fd, (off_t)file->used_bytes) != 0)
        return samkv_fail_errno(err, errno, "cannot extend %s", path);
    return SAMKV_OK;
}

static enum samkv_status check_open(int fd, const char *path, bool deep, struct samkv_datafile *out,
                                    struct samkv_error *err)
{
    struct stat st;
    struct samkv_meta_page meta;
    if (fstat(fd, &st) != 0)
        return samkv_fail_errno(err, errno, "%s", path);
    if (!S_ISREG(st.st_mode))
        return samkv_fail(err, SAMKV_CORRUPT, "%s is not a file: name another directory", path);
    out->exists = true;
    out->file_bytes = (uint64_t)st.st_size;
    enum samkv_status checked = newest_meta(fd, path, &meta, err);
    if (checked != SAMKV_OK)
        return checked;
    out->page_bytes = meta.trees[0].pad;
    out->used_bytes = (meta.last_page + 1) * out->page_bytes;
    if (deep)
        return check_pages(fd, path, &meta, out, err);
    return out->used_bytes > out->file_bytes ? damaged(err, path, "is truncated") : SAMKV_OK;
}

enum samkv_status samkv_datafile_check(const char *path, bool deep, struct samkv_datafile *out, struct samkv_error *err)
{
    *out = (struct samkv_datafile){0};
    int fd = open(path, (deep ? O_RDWR : O_RDONLY) | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? SAMKV_OK : samkv_fail_errno(err, errno, "%s", path);
    enum samkv_status st = check_open(fd, path, deep, out, err);
    close(fd);
    return st;
}
