#include "daemon/store/datafile.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define META_MAGIC      0xbeefc0deu
#define META_VERSION    1
#define PAGE_IS_META    0x08
#define META_PAGE_BYTES 152 /* what of a meta page is used */

/* LMDB's own layout of a meta page on a 64-bit machine (format version 1). */
struct tree_root {
    uint32_t pad; /* of the first tree: the page size */
    uint16_t flags, depth;
    uint64_t branch_pages, leaf_pages, overflow_pages, entries, root;
};

struct meta_page {
    uint64_t page_number;
    uint16_t pad, flags;
    uint32_t bounds;
    uint32_t magic, version;
    uint64_t address, map_bytes;
    struct tree_root trees[2];
    uint64_t last_page, transaction;
};

_Static_assert(sizeof(struct meta_page) == META_PAGE_BYTES, "LMDB's meta page");

static bool read_meta(int fd, off_t at, struct meta_page *out)
{
    return pread(fd, out, sizeof *out, at) == (ssize_t)sizeof *out && (out->flags & PAGE_IS_META) &&
           out->magic == META_MAGIC;
}

static bool page_size_is_sane(uint32_t bytes)
{
    return bytes >= 512 && bytes <= 65536 && (bytes & (bytes - 1)) == 0;
}

static enum samkv_status check_open(int fd, const char *path, struct samkv_datafile *out, struct samkv_error *err)
{
    struct stat st;
    if (fstat(fd, &st) != 0)
        return samkv_fail_errno(err, errno, "%s", path);
    if (!S_ISREG(st.st_mode))
        return samkv_fail(err, SAMKV_CORRUPT, "%s is not a file: name another directory", path);
    out->exists = true;
    out->file_bytes = (uint64_t)st.st_size;
    struct meta_page metas[2];
    if (!read_meta(fd, 0, &metas[0]) || (metas[0].version == META_VERSION && !page_size_is_sane(metas[0].trees[0].pad)))
        return samkv_fail(err, SAMKV_CORRUPT,
                          "%s is empty, damaged or no store of samkvd: restore it, or move it away "
                          "to start a new one",
                          path);
    if (metas[0].version != META_VERSION)
        return samkv_fail(err, SAMKV_MISMATCH, "%s is of LMDB's format %u, this samkvd reads %u", path,
                          metas[0].version, META_VERSION);
    out->page_bytes = metas[0].trees[0].pad;
    if (!read_meta(fd, out->page_bytes, &metas[1]) || metas[1].version != META_VERSION ||
        metas[1].trees[0].pad != out->page_bytes)
        return samkv_fail(err, SAMKV_CORRUPT,
                          "%s has a damaged second page: restore it, or move it away to start a "
                          "new one",
                          path);
    /* LMDB goes on from the newer of the two. */
    const struct meta_page *meta = &metas[metas[1].transaction > metas[0].transaction];
    if (meta->last_page >= UINT64_MAX / out->page_bytes - 1)
        return samkv_fail(err, SAMKV_CORRUPT,
                          "%s has a damaged meta page: restore it, or move it away to start a new "
                          "one",
                          path);
    out->used_bytes = (meta->last_page + 1) * out->page_bytes;
    if (out->used_bytes > out->file_bytes)
        return samkv_fail(err, SAMKV_CORRUPT,
                          "%s is truncated: %llu of %llu bytes are there; restore it, or move it "
                          "away to start a new one",
                          path, (unsigned long long)out->file_bytes, (unsigned long long)out->used_bytes);
    return SAMKV_OK;
}

enum samkv_status samkv_datafile_check(const char *path, struct samkv_datafile *out, struct samkv_error *err)
{
    *out = (struct samkv_datafile){0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? SAMKV_OK : samkv_fail_errno(err, errno, "%s", path);
    enum samkv_status st = check_open(fd, path, out, err);
    close(fd);
    return st;
}
