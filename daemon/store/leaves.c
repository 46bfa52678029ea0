#include "daemon/store/leaves.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/store/pages.h"

#define META_MAGIC 0xbeefc0deu
#define MAX_DEPTH  32
#define PAGE_MAX   32768u
#define VALUE_MAX  ((uint64_t)2 << 30) /* more than any record */

struct samkv_leaves {
    int fd;
    uint64_t file_bytes, pages;
    uint32_t page_bytes;
    uint8_t *seen;    /* a bit for each page that was a part of a tree */
    uint8_t *buffers; /* a page for each level of two trees that are open at once, and one more */
    uint8_t *value;
    size_t value_capacity;
    bool sound; /* nothing is missing so far */
    samkv_leaves_fn *fn;
    void *arg;
    enum samkv_status status; /* not OK: ending */
    struct samkv_error *err;
};

static bool read_at(const struct samkv_leaves *l, uint64_t offset, void *to, size_t bytes)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t n = pread(l->fd, (uint8_t *)to + done, bytes - done, (off_t)(offset + done));
        if (n <= 0 && !(n < 0 && errno == EINTR))
            return false;
        done += n > 0 ? (size_t)n : 0;
    }
    return true;
}

static bool page_size_is_sane(uint32_t bytes)
{
    return bytes >= 512 && bytes <= PAGE_MAX && (bytes & (bytes - 1)) == 0;
}

static bool read_meta(const struct samkv_leaves *l, uint64_t at, struct samkv_meta_page *out)
{
    return read_at(l, at, out, sizeof *out) && out->magic == META_MAGIC && page_size_is_sane(out->trees[0].pad);
}

/* From whichever meta page is left; else the one that has a meta page's traces behind it, else the system's. */
static uint32_t find_page_bytes(const struct samkv_leaves *l)
{
    struct samkv_meta_page meta;
    if (read_meta(l, 0, &meta))
        return meta.trees[0].pad;
    for (uint32_t bytes = 512; bytes <= PAGE_MAX; bytes *= 2)
        if (read_meta(l, bytes, &meta) && meta.trees[0].pad == bytes)
            return bytes;
    return (uint32_t)sysconf(_SC_PAGESIZE);
}

enum samkv_status samkv_leaves_open(const char *path, struct samkv_leaves **out, struct samkv_error *err)
{
    struct stat st;
    struct samkv_leaves *l = calloc(1, sizeof *l);
    *out = NULL;
    if (!l)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    l->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (l->fd < 0 || fstat(l->fd, &st) != 0) {
        enum samkv_status failed = samkv_fail_errno(err, errno, "%s", path);
        samkv_leaves_close(l);
        return failed;
    }
    l->file_bytes = (uint64_t)st.st_size;
    l->page_bytes = find_page_bytes(l);
    l->pages = l->file_bytes / l->page_bytes;
    l->seen = calloc(l->pages / 8 + 1, 1);
    l->buffers = malloc((size_t)l->page_bytes * (2 * MAX_DEPTH + 1));
    if (!l->seen || !l->buffers) {
        samkv_leaves_close(l);
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    }
    *out = l;
    return SAMKV_OK;
}

void samkv_leaves_close(struct samkv_leaves *l)
{
    if (!l)
        return;
    if (l->fd >= 0)
        close(l->fd);
    free(l->seen);
    free(l->buffers);
    free(l->value);
    free(l);
}

enum samkv_status samkv_leaves_read(struct samkv_leaves *l, const struct samkv_leaf_record *r, struct samkv_bytes *out)
{
    if (r->bytes > l->value_capacity) {
        free(l->value);
        l->value_capacity = 0;
        l->value = malloc(r->bytes);
        if (!l->value)
            return SAMKV_NO_MEMORY;
        l->value_capacity = r->bytes;
    }
    *out = (struct samkv_bytes){l->value, r->bytes};
    return read_at(l, r->offset, l->value, r->bytes) ? SAMKV_OK : SAMKV_CORRUPT;
}

/* ------------------------------------------------------------------ walking */

/* Where a node's value lies; false when that cannot be. */
static bool locate(const struct samkv_leaves *l, uint64_t page, const uint8_t *bytes, const struct samkv_page_node *n,
                   struct samkv_leaf_record *r)
{
    *r = (struct samkv_leaf_record){.key = {n->key, n->key_bytes}, .bytes = n->value_bytes};
    r->alone = n->flags & SAMKV_NODE_IS_BIG;
    r->offset = page * l->page_bytes + (uint64_t)(n->value - bytes);
    if (r->alone) {
        uint64_t first;
        memcpy(&first, n->value, sizeof first);
        if (first >= l->pages)
            return false;
        r->offset = first * l->page_bytes + SAMKV_PAGE_HEADER_BYTES;
    }
    if (n->value_bytes < sizeof r->head || n->value_bytes > VALUE_MAX || r->offset > l->file_bytes ||
        n->value_bytes > l->file_bytes - r->offset)
        return false;
    return read_at(l, r->offset, r->head, sizeof r->head);
}

static void follow(struct samkv_leaves *l, uint64_t page, uint32_t level, bool of_databases);

static void follow_tree(struct samkv_leaves *l, const struct samkv_page_node *n)
{
    struct samkv_tree_root tree;
    memcpy(&tree, n->value, sizeof tree);
    if (tree.root != UINT64_MAX)
        follow(l, tree.root, 0, false);
}

static void visit_leaf(struct samkv_leaves *l, uint64_t page, const uint8_t *bytes, const struct samkv_page_header *h,
                       bool of_databases)
{
    for (uint32_t i = 0; i < samkv_page_nodes(h) && l->status == SAMKV_OK; i++) {
        struct samkv_page_node n;
        struct samkv_leaf_record r;
        bool sound = true;
        if (!samkv_page_node(bytes, l->page_bytes, h, i, &n))
            sound = false;
        else if (n.flags & SAMKV_NODE_IS_TREE) {
            if (of_databases && n.value_bytes == sizeof(struct samkv_tree_root))
                follow_tree(l, &n);
        } else if (!locate(l, page, bytes, &n, &r))
            sound = false;
        else
            l->status = l->fn(l->arg, l, &r, &sound, l->err);
        l->sound &= sound;
    }
}

/* The page and all below it that can be read. */
static void follow(struct samkv_leaves *l, uint64_t page, uint32_t level, bool of_databases)
{
    struct samkv_page_header h;
    if (page >= l->pages || level >= MAX_DEPTH) {
        l->sound = false;
        return;
    }
    if (l->seen[page / 8] & 1 << page % 8)
        return; /* the older tree shares most pages with the newer */
    uint8_t *bytes = l->buffers + (size_t)l->page_bytes * (level + (of_databases ? 0 : MAX_DEPTH));
    if (!read_at(l, page * l->page_bytes, bytes, l->page_bytes)) {
        l->sound = false;
        return;
    }
    memcpy(&h, bytes, sizeof h);
    bool leaf = samkv_page_is(&h, page, l->page_bytes, SAMKV_PAGE_IS_LEAF);
    if (!leaf && !samkv_page_is(&h, page, l->page_bytes, SAMKV_PAGE_IS_BRANCH)) {
        l->sound = false;
        return;
    }
    l->seen[page / 8] |= (uint8_t)(1 << page % 8);
    if (leaf) {
        visit_leaf(l, page, bytes, &h, of_databases);
        return;
    }
    for (uint32_t i = 0; i < samkv_page_nodes(&h) && l->status == SAMKV_OK; i++) {
        struct samkv_page_node n;
        if (samkv_page_node(bytes, l->page_bytes, &h, i, &n))
            follow(l, n.child & 0xffffffffffff, level + 1, of_databases);
        else
            l->sound = false;
    }
}

static void visit_strays(struct samkv_leaves *l)
{
    uint8_t *bytes = l->buffers + (size_t)l->page_bytes * 2 * MAX_DEPTH;
    for (uint64_t page = 0; page < l->pages && l->status == SAMKV_OK; page++) {
        struct samkv_page_header h;
        if (l->seen[page / 8] & 1 << page % 8 || !read_at(l, page * l->page_bytes, &h, sizeof h) ||
            !samkv_page_is(&h, page, l->page_bytes, SAMKV_PAGE_IS_LEAF) ||
            !read_at(l, page * l->page_bytes, bytes, l->page_bytes))
            continue;
        visit_leaf(l, page, bytes, &h, false);
    }
}

enum samkv_status samkv_leaves_each(struct samkv_leaves *l, samkv_leaves_fn *fn, void *arg, struct samkv_error *err)
{
    struct samkv_meta_page meta[2];
    bool there[2] = {read_meta(l, 0, &meta[0]), read_meta(l, l->page_bytes, &meta[1])};
    int newest = there[1] && (!there[0] || meta[1].transaction > meta[0].transaction);
    l->fn = fn, l->arg = arg, l->err = err, l->status = SAMKV_OK;
    /* Also of an older state, or one that does not fit together, a walk may find nothing amiss. */
    l->sound = there[0] && there[1] && samkv_pages_check(l->fd, l->file_bytes, &meta[newest]) == SAMKV_OK;
    for (int i = 0; i < 2 && l->status == SAMKV_OK; i++) {
        int which = i ? !newest : newest;
        if (i && l->sound)
            return SAMKV_OK;
        if (there[which] && meta[which].trees[1].root != UINT64_MAX)
            follow(l, meta[which].trees[1].root, 0, true);
    }
    if (!l->sound)
        visit_strays(l);
    return l->status;
}
