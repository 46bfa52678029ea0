#include "daemon/store/pages.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NO_PAGE         UINT64_MAX
#define MAX_DEPTH       32u /* LMDB's own limit of a cursor */
#define NODE_BYTES      8u
#define KEY_MAX_BYTES   511u
#define FREE_LIST_FLAGS 0x08u   /* integer keys */
#define NO_DIRECTORY    0x4000u /* how the file was opened when it was made: LMDB keeps it with the free list's flags */
#define FIRST_DATA_PAGE 2u
#define PAGE_MAX        32768u

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

bool samkv_page_node(const uint8_t *page, uint32_t page_bytes, const struct samkv_page_header *h, uint32_t i,
                     struct samkv_page_node *out)
{
    uint16_t at, part[4];
    memcpy(&at, page + SAMKV_PAGE_HEADER_BYTES + 2 * i, sizeof at);
    if (at < h->upper || at % 2 || at > page_bytes - NODE_BYTES)
        return false;
    memcpy(part, page + at, sizeof part); /* low and high half of a size, flags, key size */
    uint32_t key_bytes = part[3], left = page_bytes - at - NODE_BYTES;
    if (key_bytes > KEY_MAX_BYTES || key_bytes > left)
        return false;
    *out = (struct samkv_page_node){.key = page + at + NODE_BYTES,
                                    .value = page + at + NODE_BYTES + key_bytes,
                                    .key_bytes = key_bytes,
                                    .value_bytes = (uint32_t)part[0] | (uint32_t)part[1] << 16,
                                    .flags = part[2]};
    out->child = (uint64_t)out->value_bytes | (uint64_t)part[2] << 32;
    if (h->flags == SAMKV_PAGE_IS_BRANCH)
        return true;
    uint32_t inline_bytes = out->flags & SAMKV_NODE_IS_BIG ? (uint32_t)sizeof(uint64_t) : out->value_bytes;
    return inline_bytes <= left - key_bytes;
}

bool samkv_page_is(const struct samkv_page_header *h, uint64_t page, uint32_t page_bytes, uint16_t flags)
{
    return h->number == page && h->flags == flags && h->lower >= SAMKV_PAGE_HEADER_BYTES && h->lower % 2 == 0 &&
           h->lower <= h->upper && h->upper <= page_bytes;
}

static enum samkv_status walk_tree(struct walk *w, const struct samkv_tree_root *tree, enum tree_kind kind);

/* One entry of the free list: a count, then that many page numbers. None of them may be in use. */
static enum samkv_status check_free(struct walk *w, const struct samkv_page_node *n)
{
    uint64_t count;
    if (n->value_bytes < sizeof count || n->value_bytes % sizeof count)
        return SAMKV_CORRUPT;
    uint64_t *ids = realloc(w->free_ids, n->value_bytes);
    if (!ids)
        return SAMKV_NO_MEMORY;
    w->free_ids = ids;
    if (n->flags & SAMKV_NODE_IS_BIG) {
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

static enum samkv_status check_leaf_node(struct walk *w, const struct samkv_page_node *n, enum tree_kind kind)
{
    uint64_t first;
    if (n->flags & ~(kind == DATABASES ? SAMKV_NODE_IS_BIG | SAMKV_NODE_IS_TREE : SAMKV_NODE_IS_BIG))
        return SAMKV_CORRUPT;
    if (n->flags & SAMKV_NODE_IS_BIG) {
        memcpy(&first, n->value, sizeof first);
        if (!take_extent(w, first, n->value_bytes))
            return SAMKV_CORRUPT;
    }
    if (kind == FREE_LIST)
        return check_free(w, n);
    if (!(n->flags & SAMKV_NODE_IS_TREE))
        return SAMKV_OK;
    struct samkv_tree_root tree;
    if (n->flags != SAMKV_NODE_IS_TREE || n->value_bytes != sizeof tree)
        return SAMKV_CORRUPT;
    memcpy(&tree, n->value, sizeof tree);
    return walk_tree(w, &tree, RECORDS);
}

static bool header_is_sane(const struct walk *w, const struct samkv_page_header *h, uint64_t page, bool leaf,
                           enum tree_kind kind)
{
    uint32_t nodes = samkv_page_nodes(h);
    uint32_t least = kind == FREE_LIST ? 0 : leaf ? 1 : 2; /* LMDB may leave pages of its free list nearly empty */
    return samkv_page_is(h, page, w->page_bytes, leaf ? SAMKV_PAGE_IS_LEAF : SAMKV_PAGE_IS_BRANCH) && nodes >= least &&
           (leaf || nodes >= 1);
}

/* Keys are ordered by their bytes, a shorter one before those it begins; and a page's keys lie between the keys that
 * lead to it and to its neighbour in the page above. A node that has lost its place is one that LMDB does not find. */
static bool is_before(const struct samkv_bytes *a, const struct samkv_bytes *b)
{
    int order = memcmp(a->data, b->data, a->size < b->size ? a->size : b->size);
    return order < 0 || (order == 0 && a->size < b->size);
}

/* What a page's keys lie between: from `first` on (NULL: any), before `end` (NULL: any). */
struct range {
    const struct samkv_bytes *first, *end;
};

static struct samkv_bytes key_of(const struct samkv_page_node *n)
{
    return (struct samkv_bytes){n->key, n->key_bytes};
}

/* LMDB packs a page's nodes to its end without gaps. Nodes that overlap, or leave some of it out, are of a wrong size
 * or at a wrong place, and deleting one would move what belongs to others. */
static bool nodes_are_packed(const struct walk *w, const uint8_t *page, const struct samkv_page_header *h)
{
    uint8_t taken[PAGE_MAX / 2] = {0}; /* a byte for two of the page's */
    size_t sum = 0;
    for (uint32_t i = 0; i < samkv_page_nodes(h); i++) {
        struct samkv_page_node n;
        if (!samkv_page_node(page, w->page_bytes, h, i, &n))
            return false;
        size_t at = (size_t)(n.key - page) - NODE_BYTES, bytes = NODE_BYTES + n.key_bytes;
        if (h->flags == SAMKV_PAGE_IS_LEAF)
            bytes += n.flags & SAMKV_NODE_IS_BIG ? sizeof(uint64_t) : n.value_bytes;
        bytes += bytes % 2;
        if (bytes > w->page_bytes - at || memchr(taken + at / 2, 1, bytes / 2))
            return false;
        memset(taken + at / 2, 1, bytes / 2);
        sum += bytes;
    }
    return sum == (size_t)w->page_bytes - h->upper;
}

/* All nodes within their page, and in order. The first key of a branch is not used by LMDB, and empty. */
static bool nodes_are_sane(const struct walk *w, const uint8_t *page, const struct samkv_page_header *h,
                           const struct range *range)
{
    struct samkv_page_node n;
    struct samkv_bytes key, before = {0};
    bool leaf = h->flags == SAMKV_PAGE_IS_LEAF;
    for (uint32_t i = 0; i < samkv_page_nodes(h); i++, before = key) {
        if (!samkv_page_node(page, w->page_bytes, h, i, &n))
            return false;
        key = key_of(&n);
        if (!leaf && i == 0)
            continue;
        if ((i > (leaf ? 0 : 1) && !is_before(&before, &key)) || (range->first && is_before(&key, range->first)) ||
            (range->end && !is_before(&key, range->end)))
            return false;
    }
    return true;
}

static enum samkv_status walk_page(struct walk *w, uint64_t page, uint32_t left, enum tree_kind kind,
                                   const struct range *range, uint64_t *entries);

/* The pages below a branch. */
static enum samkv_status walk_below(struct walk *w, const uint8_t *page, const struct samkv_page_header *h,
                                    uint32_t left, enum tree_kind kind, const struct range *range, uint64_t *entries)
{
    enum samkv_status st = SAMKV_OK;
    uint32_t nodes = samkv_page_nodes(h);
    for (uint32_t i = 0; st == SAMKV_OK && i < nodes; i++) {
        struct samkv_page_node n, next;
        if (!samkv_page_node(page, w->page_bytes, h, i, &n) ||
            (i + 1 < nodes && !samkv_page_node(page, w->page_bytes, h, i + 1, &next)))
            return SAMKV_CORRUPT;
        struct samkv_bytes first = key_of(&n), end = i + 1 < nodes ? key_of(&next) : (struct samkv_bytes){0};
        struct range below = {.first = i ? &first : range->first, .end = i + 1 < nodes ? &end : range->end};
        st = walk_page(w, n.child, left - 1, kind, &below, entries);
    }
    return st;
}

/* The page and all below it; `left` levels are to come, 1 for a leaf. Adds up the leaves' entries. */
static enum samkv_status walk_page(struct walk *w, uint64_t page, uint32_t left, enum tree_kind kind,
                                   const struct range *range, uint64_t *entries)
{
    uint8_t *buffer = w->buffers + (size_t)w->page_bytes * (left - 1 + (kind == RECORDS ? MAX_DEPTH : 0));
    struct samkv_page_header h;
    if (page >= w->in_file || !take_page(w, page))
        return SAMKV_CORRUPT;
    if (!read_at(w, page * w->page_bytes, buffer, w->page_bytes))
        return SAMKV_IO;
    memcpy(&h, buffer, sizeof h);
    if (!header_is_sane(w, &h, page, left == 1, kind) || !nodes_are_packed(w, buffer, &h) ||
        (kind != FREE_LIST && !nodes_are_sane(w, buffer, &h, range)))
        return SAMKV_CORRUPT;
    if (left > 1)
        return walk_below(w, buffer, &h, left, kind, range, entries);
    enum samkv_status st = SAMKV_OK;
    *entries += samkv_page_nodes(&h);
    for (uint32_t i = 0; st == SAMKV_OK && i < samkv_page_nodes(&h); i++) {
        struct samkv_page_node n;
        st = samkv_page_node(buffer, w->page_bytes, &h, i, &n) ? check_leaf_node(w, &n, kind) : SAMKV_CORRUPT;
    }
    return st;
}

static enum samkv_status walk_tree(struct walk *w, const struct samkv_tree_root *tree, enum tree_kind kind)
{
    if (kind == FREE_LIST ? (tree->flags & ~NO_DIRECTORY) != FREE_LIST_FLAGS : tree->flags != 0)
        return SAMKV_CORRUPT;
    if (tree->root == NO_PAGE)
        return tree->depth == 0 && tree->entries == 0 ? SAMKV_OK : SAMKV_CORRUPT;
    if (tree->depth < 1 || tree->depth > MAX_DEPTH)
        return SAMKV_CORRUPT;
    uint64_t entries = 0;
    const struct range any = {0};
    enum samkv_status st = walk_page(w, tree->root, tree->depth, kind, &any, &entries);
    /* A page that is an older one of itself (a write that the disk lost) shows here, if nowhere else. */
    return st == SAMKV_OK && kind != FREE_LIST && entries != tree->entries ? SAMKV_CORRUPT : st;
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
