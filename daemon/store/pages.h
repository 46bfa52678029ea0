#pragma once
/*
 * LMDB's data format (version 1, 64-bit, little-endian) as far as the checks before mapping need it, and the check of
 * its trees. LMDB follows page numbers and offsets without looking: a damaged one would end the process.
 */
#include <stdbool.h>
#include <stdint.h>

#include "proto/status.h"
#include "daemon/store/record.h"

#define SAMKV_PAGE_HEADER_BYTES 16u
#define SAMKV_PAGE_IS_BRANCH    0x01u
#define SAMKV_PAGE_IS_LEAF      0x02u
#define SAMKV_PAGE_IS_OVERFLOW  0x04u
#define SAMKV_PAGE_IS_META      0x08u

struct samkv_page_header {
    uint64_t number;
    uint16_t pad, flags;
    uint16_t lower, upper; /* ends of the offset table and of the free space; on overflow pages a u32 of pages */
};

struct samkv_tree_root {
    uint32_t pad; /* of the free list: the page size */
    uint16_t flags, depth;
    uint64_t branch_pages, leaf_pages, overflow_pages, entries, root;
};

struct samkv_meta_page {
    struct samkv_page_header header;
    uint32_t magic, version;
    uint64_t address, map_bytes;
    struct samkv_tree_root trees[2]; /* the free list, the database of databases */
    uint64_t last_page, transaction;
};

/* Of a leaf, or of a branch. */
struct samkv_page_node {
    const uint8_t *key, *value;
    uint64_t child; /* of a branch: the page below */
    uint32_t key_bytes, value_bytes;
    uint16_t flags;
};

#define SAMKV_NODE_IS_BIG  0x01u /* the value is the number of the first of its own pages */
#define SAMKV_NODE_IS_TREE 0x02u /* the value is a struct samkv_tree_root */

static inline uint32_t samkv_page_nodes(const struct samkv_page_header *h)
{
    return ((uint32_t)h->lower - SAMKV_PAGE_HEADER_BYTES) / 2;
}

/* Node `i` of a page whose header's bounds were checked; false unless all of it lies within the page. */
bool samkv_page_node(const uint8_t *page, uint32_t page_bytes, const struct samkv_page_header *, uint32_t i,
                     struct samkv_page_node *out);

/* Leaf or branch, as `flags` says, at its place, with bounds that nodes can be read by. */
bool samkv_page_is(const struct samkv_page_header *, uint64_t page, uint32_t page_bytes, uint16_t flags);

_Static_assert(sizeof(struct samkv_page_header) == SAMKV_PAGE_HEADER_BYTES, "LMDB's page header");
_Static_assert(sizeof(struct samkv_meta_page) == 152, "LMDB's meta page");

/*
 * Follows both trees of a meta page and all databases through branch and leaf pages: every page within the file and
 * what it should be, the nodes packed and in the order of keys, as many as the tree's root says, no page used
 * twice, the free list free of pages in use. Reads
 * these pages once, values not at all. CORRUPT without text, NO_MEMORY, IO. Time: about one read for a hundred records.
 */
enum samkv_status samkv_pages_check(int fd, uint64_t file_bytes, const struct samkv_meta_page *) SAMKV_MUST_USE;
