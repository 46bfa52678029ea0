#include "daemon/store/pages.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NO_PAGE         UINT64_MAX
#define MAX_DEPTH       32u /* LMDB's own limit of a cursor */
#define NODE_BYTES      8u
#define NODE_IS_BIG     0x01u /* the value lies on overflow pages */
#define NODE_IS_TREE    0x02u /* the value is the root of a database */
#define KEY_MAX_BYTES   511u
#define FREE_LIST_FLAGS 0x08u /* integer keys */
#define FIRST_DATA_PAGE 2u

enum tree_kind { FREE_LIST, DATABASES, RECORDS };

struct walk {
    int fd;
    uint32_t page_bytes;
    uint64_t pages;     /* page numbers are below */
    uint64_t in_file;   /* of which the file has that many */
    uint8_t *seen;      /* a bit for each page */
    uint8_t *buffers;   /* a page for each level of the two trees that are open at once */
    uint64_t *free_ids; /* one entry of the free list */
};

/* Of a leaf's node, or of a branch's. */
struct node {
    const uint8_t *value;
    uint64_t child;
    uint32_t value_bytes;
    uint16_t flags;
};

static bool take_page(struct walk *w, uint64_t page)
{
    if (page < FIRST_DATA_PAGE || page >= w->pages || (w->seen[page / 8] & 1 << page % 8))
        return false;
    w->seen[page / 8] |= (uint8_t)(1 << page % 8);
    return true;
}

/* The pages of a value that does not fit into its leaf. */
static bool take_extent(struct walk *w, uint64_t first, uint32_t bytes)
{
    uint64_t count = ((uint64_t)SAMKV_PAGE_HEADER_BYTES + bytes - 1) / w->page_bytes + 1;
    if (first >= w->in_file || count > w->in_file - first)
        return false;
    for (uint64_t i = 0; i < count; i++)
        if (!take_page(w, first + i))
            return false;
    return true;
}

static bool read_at(struct walk *w, uint64_t offset, void *to, size_t bytes)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t n = pread(w->fd, (uint8_t *)to + done, bytes - done, (off_t)(offset + done));
        if (n <= 0)
            return false;
        done += (size_t)n;
    }
    return true;
}

/* Node `i` of a page whose header was checked; all of it within the page. */
static bool read_node(const struct walk *w, const uint8_t *page, const struct samkv_page_header *h, uint32_t i,
                      struct node *out)
{
    uint16_t at, part[4];
    memcpy(&at, page + SAMKV_PAGE_HEADER_BYTES + 2 * i, sizeof at);
    if (at < h->upper || at % 2 || at > w->page_bytes - NODE_BYTES)
        return false;
    memcpy(part, page + at, sizeof part); /* low and high half of a size, flags, key size */
    uint32_t key_bytes = part[3], left = w->page_bytes - at - NODE_BYTES;
    if (key_bytes > KEY_MAX_BYTES || key_bytes > left)
        return false;
    *out = (struct node){.value = page + at + NODE_BYTES + key_bytes,
                         .value_bytes = (uint32_t)part[0] | (uint32_t)part[1] << 16,
                         .flags = part[2]};
    out->child = (uint64_t)out->value_bytes | (uint64_t)part[2] << 32;
    if (h->flags == SAMKV_PAGE_IS_BRANCH)
        return true;
    uint32_t inline_bytes = out->flags & NODE_IS_BIG ? (uint32_t)sizeof(uint64_t) : out->value_bytes;
    return inline_bytes <= left - key_bytes;
}

static enum samkv_status walk_tree(struct walk *w, const struct samkv_tree_root *tree, enum tree_kind kind);

/* One entry of the free list: a count, then that many page numbers. None of them may be in use. */
static enum samkv_status check_free(struct walk *w, const struct node *n)
{
    uint64_t count;
    if (n->value_bytes < sizeof count || n->value_bytes % sizeof count)
        return SAMKV_CORRUPT;
    uint64_t *ids = realloc(w->free_ids, n->value_bytes);
    if (!ids)
        return SAMKV_NO_MEMORY;
    w->free_ids = ids;
    if (n->flags & NODE_IS_BIG) {
        uint64_t first;
        memcpy(&first, n->value, sizeof first);
        if (!read_at(w, first * w->page_bytes + SAMKV_PAGE_HEADER_BYTES, ids, n->value_bytes))
            return SAMKV_CORRUPT;
    } else {
        memcpy(ids, n->value, n->value_bytes);
    }
    memcpy(&count, ids, sizeof count);
    if (count > n->value_bytes / sizeof count - 1)
        return SAMKV_CORRUPT;
    for (uint64_t i = 1; i <= count; i++)
        if (!take_page(w, ids[i]) || (i > 1 && ids[i] >= ids[i - 1]))
            return SAMKV_CORRUPT;
    return SAMKV_OK;
}

static enum samkv_status check_leaf_node(struct walk *w, const struct node *n, enum tree_kind kind)
{
    uint64_t first;
    if (n->flags & ~(kind == DATABASES ? NODE_IS_BIG | NODE_IS_TREE : NODE_IS_BIG))
        return SAMKV_CORRUPT;
    if (n->flags & NODE_IS_BIG) {
        memcpy(&first, n->value, sizeof first);
        if (!take_extent(w, first, n->value_bytes))
            return SAMKV_CORRUPT;
    }
    if (kind == FREE_LIST)
        return check_free(w, n);
    if (!(n->flags & NODE_IS_TREE))
        return SAMKV_OK;
    struct samkv_tree_root tree;
    if (n->flags != NODE_IS_TREE || n->value_bytes != sizeof tree)
        return SAMKV_CORRUPT;
    memcpy(&tree, n->value, sizeof tree);
    return walk_tree(w, &tree, RECORDS);
}

static bool header_is_sane(const struct walk *w, const struct samkv_page_header *h, uint64_t page, bool leaf,
                           enum tree_kind kind)
{
    uint32_t nodes = ((uint32_t)h->lower - SAMKV_PAGE_HEADER_BYTES) / 2;
    uint32_t least = kind == FREE_LIST ? 0 : leaf ? 1 : 2; /* LMDB may leave pages of its free list nearly empty */
    return h->number == page && h->flags == (leaf ? SAMKV_PAGE_IS_LEAF : SAMKV_PAGE_IS_BRANCH) &&
           h->lower >= SAMKV_PAGE_HEADER_BYTES && h->lower % 2 == 0 && h->lower <= h->upper &&
           h->upper <= w->page_bytes && nodes >= least && (leaf || nodes >= 1);
}

/* The page and all below it; `left` levels are to come, 1 for a leaf. */
static enum samkv_status walk_page(struct walk *w, uint64_t page, uint32_t left, enum tree_kind kind)
{
    uint8_t *buffer = w->buffers + (size_t)w->page_bytes * (left - 1 + (kind == RECORDS ? MAX_DEPTH : 0));
    struct samkv_page_header h;
    if (page >= w->in_file || !take_page(w, page))
        return SAMKV_CORRUPT;
    if (!read_at(w, page * w->page_bytes, buffer, w->page_bytes))
        return SAMKV_IO;
    memcpy(&h, buffer, sizeof h);
    if (!header_is_sane(w, &h, page, left == 1, kind))
        return SAMKV_CORRUPT;
    uint32_t nodes = ((uint32_t)h.lower - SAMKV_PAGE_HEADER_BYTES) / 2;
    enum samkv_status st = SAMKV_OK;
    for (uint32_t i = 0; st == SAMKV_OK && i < nodes; i++) {
        struct node n;
        if (!read_node(w, buffer, &h, i, &n))
            return SAMKV_CORRUPT;
        st = left == 1 ? check_leaf_node(w, &n, kind) : walk_page(w, n.child, left - 1, kind);
    }
    return st;
}

static enum samkv_status walk_tree(struct walk *w, const struct samkv_tree_root *tree, enum tree_kind kind)
{
    if (kind == FREE_LIST ? tree->flags != FREE_LIST_FLAGS : tree->flags != 0)
        return SAMKV_CORRUPT;
    if (tree->root == NO_PAGE)
        return tree->depth == 0 ? SAMKV_OK : SAMKV_CORRUPT;
    if (tree->depth < 1 || tree->depth > MAX_DEPTH)
        return SAMKV_CORRUPT;
    return walk_page(w, tree->root, tree->depth, kind);
}

enum samkv_status samkv_pages_check(int fd, uint64_t file_bytes, const struct samkv_meta_page *meta)
{
    struct walk w = {.fd = fd, .page_bytes = meta->trees[0].pad, .pages = meta->last_page + 1};
    w.in_file = file_bytes / w.page_bytes;
    /* A meta page cannot make us allocate: pages that were never written are few, and last of all. */
    if (w.pages > w.in_file + w.in_file / 2 + 65536)
        return SAMKV_CORRUPT;
    w.seen = calloc(w.pages / 8 + 1, 1);
    w.buffers = malloc((size_t)w.page_bytes * 2 * MAX_DEPTH);
    enum samkv_status st = w.seen && w.buffers ? SAMKV_OK : SAMKV_NO_MEMORY;
    if (st == SAMKV_OK)
        st = walk_tree(&w, &meta->trees[1], DATABASES);
    if (st == SAMKV_OK) /* last, when all that is in use is known */
        st = walk_tree(&w, &meta->trees[0], FREE_LIST);
    free(w.seen);
    free(w.buffers);
    free(w.free_ids);
    return st;
}
