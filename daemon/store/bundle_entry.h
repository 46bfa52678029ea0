#pragma once
/*
 * The entries that a bundle is made of; proto/BUNDLE.md has the normative text. 16 bytes of start, then entries, each a
 * head of 32 bytes and a payload:
 *   0 "SKB"   3 u8 kind   4 u32 number   8 u64 payload bytes   16 u64 xxh3-64 of the payload   24 u64 xxh3-64 of 0…23
 *
 *   COLLECTION  (DOCUMENT TOKENS INDEX* BLOCK* END)?  (NAME (DOCUMENT TOKENS INDEX* BLOCK* END)?)*  TRAILER
 *
 * Private to this folder. Pure; any thread.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/status.h"

#define SAMKV_BUNDLE_START_BYTES 16
#define SAMKV_BUNDLE_VERSION     1
#define SAMKV_BUNDLE_HEAD_BYTES  32

/* Values are pinned. */
enum samkv_bundle_kind {
    SAMKV_BUNDLE_NONE = 0,
    SAMKV_BUNDLE_COLLECTION = 1, /* u32 name's bytes, u32 0, u64 names that follow, name, record */
    SAMKV_BUNDLE_NAME = 2,       /* u32 id's bytes, u32 flags, id, record */
    SAMKV_BUNDLE_DOCUMENT = 3,   /* key, record */
    SAMKV_BUNDLE_TOKENS = 4,     /* record */
    SAMKV_BUNDLE_INDEX = 5,      /* record; number: layer */
    SAMKV_BUNDLE_BLOCK = 6,      /* record; number: block */
    SAMKV_BUNDLE_END = 7,        /* key, u64 digest of the heads since DOCUMENT */
    SAMKV_BUNDLE_TRAILER = 8,    /* u64 names, u64 documents, u64 bytes before it, u64 digest */
};

/* Flags of a NAME: its document follows; else it came before, or is not in the bundle. */
#define SAMKV_BUNDLE_CARRIES 1u

#define SAMKV_BUNDLE_END_BYTES     24
#define SAMKV_BUNDLE_TRAILER_BYTES 32

struct samkv_bundle_head {
    enum samkv_bundle_kind kind;
    uint32_t number;
    uint64_t bytes, sum;
};

void samkv_bundle_start_encode(uint8_t out[SAMKV_BUNDLE_START_BYTES]);
/* INVALID, or UNSUPPORTED for a later version. */
enum samkv_status samkv_bundle_start_check(const uint8_t in[SAMKV_BUNDLE_START_BYTES],
                                           struct samkv_error *) SAMKV_MUST_USE;

void samkv_bundle_head_encode(const struct samkv_bundle_head *, uint8_t out[SAMKV_BUNDLE_HEAD_BYTES]);
/* CORRUPT. The kind may be one that is not known. */
enum samkv_status samkv_bundle_head_decode(const uint8_t in[SAMKV_BUNDLE_HEAD_BYTES],
                                           struct samkv_bundle_head *out) SAMKV_MUST_USE;

uint64_t samkv_bundle_sum(const void *bytes, size_t count);

/* The digest after one more entry: heads hold their payloads' checksums, so a digest of heads is one of all. */
uint64_t samkv_bundle_digest(uint64_t digest, const uint8_t head[SAMKV_BUNDLE_HEAD_BYTES]);

/* Whether an entry stands between a DOCUMENT and its END: those are in the document's digest, all others in the
 * bundle's. */
static inline bool samkv_bundle_is_part(enum samkv_bundle_kind kind)
{
    return kind == SAMKV_BUNDLE_TOKENS || kind == SAMKV_BUNDLE_INDEX || kind == SAMKV_BUNDLE_BLOCK;
}
