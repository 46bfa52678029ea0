#pragma once
/*
 * LMDB's data format (version 1, 64-bit, little-endian) as far as the checks before mapping need it, and the check of
 * its trees. LMDB follows page numbers and offsets without looking: a damaged one would end the process.
 */
#include <stdint.h>

#include "proto/status.h"

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

_Static_assert(sizeof(struct samkv_page_header) == SAMKV_PAGE_HEADER_BYTES, "LMDB's page header");
_Static_assert(sizeof(struct samkv_meta_page) == 152, "LMDB's meta page");

/*
 * Follows both trees of a meta page and all databases through branch and leaf pages: every page within the file and
 * what it should be, every node within its page, no page used twice, the free list free of pages in use. Reads
 * these pages once, values not at all. CORRUPT without text, NO_MEMORY, IO. Time: about one read for a hundred records.
 */
enum samkv_status samkv_pages_check(int fd, uint64_t file_bytes, const struct samkv_meta_page *) SAMKV_MUST_USE;
