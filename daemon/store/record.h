#pragma once
/*
 * Records: every value in the database is one, small ones too. A header of 40 bytes, little-endian, then the payload:
 *
 *   0 u32 magic "SKR1"   4 u8 version (1)   5 u8 kind   6 u8 codec   7 u8 dtype   8 u32 pieces   12 u32 zero
 *   16 u64 raw bytes     24 u64 payload bytes           32 u64 xxh3-64 over key, header up to here, and payload
 *
 * The key stands in the checksum, so that a record that turns up under another key is noticed. A record is checked
 * as a whole before a byte of its payload is used. Pure functions; any thread.
 */
#include <stddef.h>
#include <stdint.h>

#include "proto/status.h"
#include "daemon/store/codec.h"

#define SAMKV_RECORD_HEADER_BYTES 40

/* Values are pinned: they stand on disk. */
enum samkv_record_kind {
    SAMKV_RECORD_SCHEMA = 0,
    SAMKV_RECORD_COLLECTION = 1,
    SAMKV_RECORD_NAME = 2,
    SAMKV_RECORD_DOCUMENT = 3,
    SAMKV_RECORD_TOKENS = 4,
    SAMKV_RECORD_INDEX = 5,
    SAMKV_RECORD_BLOCK = 6,
    SAMKV_RECORD_PENDING = 7,
    SAMKV_RECORD_NOTE = 8,
};

struct samkv_bytes {
    const void *data;
    size_t size;
};

/* A record that was checked; payload points into the bytes it was opened from. */
struct samkv_record {
    enum samkv_codec codec;
    uint8_t dtype; /* 0 for a record of fields */
    uint32_t pieces;
    uint64_t raw_bytes;
    const uint8_t *payload;
    size_t payload_bytes;
};

/* Fills the header in front of a payload that already lies at to + SAMKV_RECORD_HEADER_BYTES; head->payload is not
 * used. */
void samkv_record_seal(uint8_t *to, enum samkv_record_kind, struct samkv_bytes key, const struct samkv_record *head);

/* CORRUPT unless `value` is a whole, unharmed record of this kind under this key. */
enum samkv_status samkv_record_open(struct samkv_bytes value, enum samkv_record_kind, struct samkv_bytes key,
                                    struct samkv_record *out) SAMKV_MUST_USE;

/* Encodes and seals. *out is on the heap, of *out_bytes; the caller frees it. */
enum samkv_status samkv_record_encode(enum samkv_record_kind, struct samkv_bytes key, enum samkv_codec, int zstd_level,
                                      const struct samkv_layout *, const void *const *src, struct samkv_scratch_pool *,
                                      uint8_t **out, size_t *out_bytes) SAMKV_MUST_USE;

/* Opens and decodes to `dst`; CORRUPT also when the record is whole but not of this layout. */
enum samkv_status samkv_record_decode(struct samkv_bytes value, enum samkv_record_kind, struct samkv_bytes key,
                                      const struct samkv_layout *, struct samkv_scratch_pool *,
                                      void *const *dst) SAMKV_MUST_USE;
/* The same, telling what is in place already; what it told of may turn out to be CORRUPT at the end. */
enum samkv_status samkv_record_decode_watched(struct samkv_bytes value, enum samkv_record_kind, struct samkv_bytes key,
                                              const struct samkv_layout *, struct samkv_scratch_pool *,
                                              void *const *dst, const struct samkv_decode_watch *) SAMKV_MUST_USE;
