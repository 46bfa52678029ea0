#pragma once
/*
 * The store: documents' KV caches in LMDB, compressed, checksummed, and visible only when whole.
 * The only room that sees LMDB and zstd. It knows nothing of models or of SamKV: it keeps records.
 *
 * Glossary
 *   document  the KV cache of T tokens behind a preamble, under a content key; in blocks of B tokens.
 *   block     the unit of reading: all layers' K (before RoPE) and V of up to B tokens, one record.
 *   index     what selection needs of a document, one record a layer.
 *   name      (collection, id) → document key. Several names may share a document; the last one's
 *             removal removes the document.
 *   snapshot  a consistent view for one request. Documents that are replaced or removed meanwhile
 *             stay readable in it.
 *
 * Threads: all functions may be called by any thread except the event loop's; a snapshot or a writer belongs
 * to one thread at a time. Writes are executed by the store's own writer thread, which groups commits; calls
 * return when their transaction is on disk. Bytes on disk are hostile: every record is verified (header
 * bounds, sizes, xxh3 checksum over key, header and payload) before a byte of it is used; damage gives CORRUPT.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stddef.h>

#include "proto/status.h"
#include "proto/tensor.h"

#define SAMKV_KEY_BYTES    16
#define SAMKV_ID_MAX_BYTES 255

struct samkv_key {
    uint8_t bytes[SAMKV_KEY_BYTES];
};

struct samkv_store;
struct samkv_snapshot;
struct samkv_writer;
struct samkv_host_cache;

enum samkv_codec {
    SAMKV_CODEC_RAW = 0,
    SAMKV_CODEC_ZSTD = 1, /* lossless: bytes split in planes, planes that gain nothing stay raw */
    SAMKV_CODEC_RANS = 2, /* lossless: signs and exponents coded by what each channel did before */
    SAMKV_CODEC_Q8 = 3,   /* lossy, some seven bits a number: K in steps by channel, V by token */
    SAMKV_CODEC_Q4 = 4,   /* lossy, some four bits a number */
};
#define SAMKV_CODEC_COUNT   5
#define SAMKV_CODEC_DEFAULT SAMKV_CODEC_RANS

/* "raw", "zstd", "rans", "q8", "q4"; "?" for what is none. */
const char *samkv_codec_name(enum samkv_codec);

/* The reverse; -1 for a name of none. */
int samkv_codec_parse(const char *name);

/* The codec itself, or the one to use instead of a lossy one where numbers must come back as they were. */
enum samkv_codec samkv_codec_lossless(enum samkv_codec);

enum samkv_compact {
    SAMKV_COMPACT_AUTO = 0, /* when the data file is large beside what it holds */
    SAMKV_COMPACT_OFF = 1,  /* only when asked to */
};

struct samkv_store_options {
    const char *path;   /* directory, created when missing (mode 0700) */
    uint64_t max_bytes; /* hard limit of the data file, and of what the disk gives for both while it is compacted; 0:
                           what the file system has */
    enum samkv_codec codec; /* what new collections get that do not choose: samkv_store_codec */
    int zstd_level;         /* 0: 1 */
    enum samkv_compact compact;
    bool read_only;     /* verify and show beside a running daemon */
    bool evict;         /* at max_bytes, or on a full disk: documents go, rather than that a write is FULL */
    bool quota_refuses; /* at a quota: FULL, rather than that others of the collection go */
    uint64_t (*user_quota)(void *arg, uint32_t owner); /* most that a user's collections are charged with; 0: any. NULL:
                                                          nobody has one. Any thread */
    void *user_quota_arg;
    int64_t (*now_s)(void *arg); /* unix seconds that TTLs are judged by; NULL: the system's. Any thread */
    void *now_arg;

    /* Memory for decoded blocks and index records, a hard limit; 0: none are kept. */
    uint64_t host_cache_bytes;
    bool direct; /* read blocks that are not in the page cache past it, where the file system can */
};

/*
 * Opens or creates. Clears stale readers, removes what an interrupted ingest left behind (documents never
 * acknowledged) and documents that nothing refers to. MISMATCH when the schema is of another version or the file is no
 * store, BUSY when another daemon has it, CORRUPT when data.mdb is truncated, gone or its pages do not fit together
 * (they are checked before LMDB follows them; records are checked when they are read). max_bytes is at least 1 MiB; a
 * sixteenth of it (16 MiB at most) is left free for removals. A read-only store may be opened in another process than
 * the daemon's.
 */
enum samkv_status samkv_store_open(const struct samkv_store_options *, struct samkv_store **out,
                                   struct samkv_error *) SAMKV_MUST_USE;

/* The option's. Any thread. */
enum samkv_codec samkv_store_codec(const struct samkv_store *);

/* Finishes queued writes. NULL is allowed. Snapshots must be gone. */
void samkv_store_close(struct samkv_store *);

/* What it keeps in memory, for its counters; NULL when nothing. */
struct samkv_host_cache *samkv_store_host_cache(struct samkv_store *);

/* ------------------------------------------------------------------ collections */

/* As owner or group: whoever runs the daemon, whatever number that has. So a store may be taken elsewhere; and root's
 * are the daemon's, too. */
#define SAMKV_OWNER_DAEMON 0u

/* Whose a collection is, in the manner of files. Who may do what follows from it elsewhere: the store only keeps it.
 * Zeroed: the daemon's, with the default mode. */
struct samkv_ownership {
    uint32_t owner, group; /* numbers of user and group, or SAMKV_OWNER_DAEMON */
    uint32_t mode; /* 06go: the owner reads and writes; g and o, the group and others, are 0, 4 or 6. 0: default */
};
#define SAMKV_MODE_DEFAULT 0640u
#define SAMKV_MODE_WRITERS 0022u /* others than the owner write */

/* INVALID with a text: who may write may read too, and the owner both. */
enum samkv_status samkv_mode_check(uint32_t mode, struct samkv_error *) SAMKV_MUST_USE;

/* What a collection's first ingest sets, once and for all. */
struct samkv_collection {
    char name[SAMKV_ID_MAX_BYTES + 1];
    char model[64];          /* the name the daemon knows the model by, for messages */
    uint8_t fingerprint[16]; /* of the model's config, weights and tokenizer */
    struct samkv_kv_shape shape;
    uint32_t heads; /* query heads: the shape of local queries */
    uint32_t block_tokens, init_tokens, local_tokens;
    int32_t *preamble; /* heap, owned; NULL when empty */
    uint32_t preamble_tokens;
    struct samkv_key preamble_key; /* the document that holds the preamble's own KV; zero when there is none */
    enum samkv_codec codec;        /* of its documents' blocks; the preamble's are never lossy */
    uint64_t quota_bytes;          /* of its documents as stored, at most; 0: no limit of its own */
    uint64_t ttl_s;                /* a name goes so many seconds after it was last put; 0: never */
    struct samkv_ownership ownership;
    /*
     * XORed to the keys of its documents. Those of collections with the same mask are stored once, and whoever ingests
     * one that is there already is quicker: so only those whose readers may know of each other have the same. Zero: the
     * daemon's own. Random, and never shown, where others write or which are others' (samkv_collection_mask).
     */
    struct samkv_key mask;
};

/* Its name without the user in front ("~1000/wiki": "wiki"), within the collection. */
const char *samkv_collection_bare_name(const struct samkv_collection *);

/* For a new collection, by its ownership. IO: the system gives no random bytes. */
enum samkv_status samkv_collection_mask(struct samkv_collection *, struct samkv_error *) SAMKV_MUST_USE;

void samkv_collection_deinit(struct samkv_collection *);

/* Creates it, or compares with the one there: MISMATCH with a text that names the first difference. The preamble's
 * document (if any) must have been written before; the collection holds a reference to it. */
enum samkv_status samkv_store_collection_put(struct samkv_store *, const struct samkv_collection *,
                                             struct samkv_error *) SAMKV_MUST_USE;

/* ------------------------------------------------------------------ reading */

enum samkv_status samkv_snapshot_begin(struct samkv_store *, struct samkv_snapshot **out,
                                       struct samkv_error *) SAMKV_MUST_USE;
void samkv_snapshot_end(struct samkv_snapshot *);

/* From now on index and block read the data file, whatever the store has in memory: for whoever looks for damage. */
void samkv_snapshot_bypass_memory(struct samkv_snapshot *);

/* Bytes of record values (as stored) that this snapshot has read from index and block so far, memory's not counted; any
 * thread that may use it. */
uint64_t samkv_snapshot_bytes_read(const struct samkv_snapshot *);

/* NOT_FOUND without error text when there is none. The caller deinits out. */
enum samkv_status samkv_snapshot_collection(struct samkv_snapshot *, const char *name, struct samkv_collection *out,
                                            struct samkv_error *) SAMKV_MUST_USE;

struct samkv_manifest {
    struct samkv_key key;
    struct samkv_kv_shape shape;
    uint32_t heads;
    uint32_t tokens, block_tokens, blocks; /* blocks = ceil(tokens / block_tokens) */
    uint32_t preamble_tokens;
    uint32_t local_tokens; /* the anchors' size that the stored local query was made with */
    uint64_t bytes_raw;    /* KV before compression */
    uint64_t bytes_stored; /* block and index records as stored */
    uint64_t bytes_index;  /* of which index */
    int64_t created_unix_s;
    enum samkv_codec codec; /* of its blocks; its index is never lossy */
};

struct samkv_name {
    char id[SAMKV_ID_MAX_BYTES + 1];
    char *title; /* heap, owned; NULL when none */
    struct samkv_key key;
    int64_t put_unix_s; /* when it was last pointed at a document; 0: by a schema that did not note it */
    bool pinned;        /* no eviction and no TTL removes it */
    /* Not stored, set by who reads: */
    int64_t expires_unix_s; /* by its collection's TTL; 0: never */
    bool expired;           /* with NOT_FOUND: it has been there, and its time is over */
};

void samkv_name_deinit(struct samkv_name *);

/* The document behind (collection, id). NOT_FOUND without text, also when it has expired. title may be NULL. */
enum samkv_status samkv_snapshot_name(struct samkv_snapshot *, const char *collection, const char *id,
                                      struct samkv_name *out, struct samkv_error *) SAMKV_MUST_USE;
enum samkv_status samkv_snapshot_manifest(struct samkv_snapshot *, const struct samkv_key *, struct samkv_manifest *out,
                                          struct samkv_error *) SAMKV_MUST_USE;

/* Document tokens, `count` must be manifest.tokens. */
enum samkv_status samkv_snapshot_tokens(struct samkv_snapshot *, const struct samkv_key *, int32_t *out, size_t count,
                                        struct samkv_error *) SAMKV_MUST_USE;

/*
 * Index of one layer, f32: block means [blocks][kv_heads][head_dim] then the local query [heads][head_dim], both
 * rotated to document-relative positions. `count` must be blocks * width + heads * head_dim.
 */
enum samkv_status samkv_snapshot_index(struct samkv_snapshot *, const struct samkv_manifest *, uint32_t layer,
                                       float *out, size_t count, struct samkv_error *) SAMKV_MUST_USE;

/*
 * Decodes block `block` into 2 * layers pieces: dst[2*l] gets layer l's K (before RoPE), dst[2*l+1] its V, each
 * (tokens of the block, kv_heads, head_dim) contiguous in the manifest's dtype. All reading functions may run on
 * several threads at once with the same snapshot: only the look-up is serialised, reading the file and decoding are
 * not. CORRUPT when the record is damaged, missing or unreadable (a bad sector); dst may then be half written. What the
 * store has in memory (host_cache.h) is copied from there.
 */
enum samkv_status samkv_snapshot_block(struct samkv_snapshot *, const struct samkv_manifest *, uint32_t block,
                                       void *const *dst, struct samkv_error *) SAMKV_MUST_USE;

/* The same, telling which pieces are in place already (scratch.h); the record may turn out to be damaged at its end. */
struct samkv_decode_watch;
enum samkv_status samkv_snapshot_block_watched(struct samkv_snapshot *, const struct samkv_manifest *, uint32_t block,
                                               void *const *dst, const struct samkv_decode_watch *,
                                               struct samkv_error *) SAMKV_MUST_USE;

/* Calls back for every name of a collection that has not expired, in order of id, from the first one > after ("" for
 * all), until fn returns false. Names whose records are damaged are left out. */
enum samkv_status samkv_snapshot_each_name(struct samkv_snapshot *, const char *collection, const char *after,
                                           bool (*fn)(void *arg, const struct samkv_name *), void *arg,
                                           struct samkv_error *) SAMKV_MUST_USE;

/* Calls back for those: the key (collection, NUL, id), as far as it can be believed. Any collection's. */
enum samkv_status samkv_snapshot_each_damaged_name(struct samkv_snapshot *,
                                                   bool (*fn)(void *arg, const void *key, size_t bytes), void *arg,
                                                   struct samkv_error *err) SAMKV_MUST_USE;
enum samkv_status samkv_snapshot_each_collection(struct samkv_snapshot *,
                                                 bool (*fn)(void *arg, const struct samkv_collection *), void *arg,
                                                 struct samkv_error *) SAMKV_MUST_USE;

/* ------------------------------------------------------------------ writing */

/*
 * A document comes in pieces and shows itself at commit:
 *   begin → put_block for each block, put_index for each layer, in any order → commit | abort.
 * When a whole document with this key is there already, begin returns OK with *out = NULL: nothing to do but naming it.
 * While another writer has the same key, or an earlier copy is being removed, begin waits for that: so a thread must
 * not begin a second writer of a key that it is writing itself. BUSY when an earlier copy cannot be removed (full
 * disk), and with `evict` while others are written that leave it no room. TOO_LARGE with `evict`: it would not fit
 * though everything that may go went. put_* encode on the calling thread and queue; they block while too much is queued
 * (bounded memory) and report what the writer thread met (FULL, IO). A process killed before commit leaves nothing
 * visible; the next open clears it. commit wants every block, and the index of all layers or (a preamble) of none.
 * bytes_* and, when 0, created_unix_s of the manifest are set by the store.
 */
enum samkv_status samkv_writer_begin(struct samkv_store *, const struct samkv_manifest *, const int32_t *tokens,
                                     struct samkv_writer **out, struct samkv_error *) SAMKV_MUST_USE;
enum samkv_status samkv_writer_block(struct samkv_writer *, uint32_t block, const void *const *src,
                                     struct samkv_error *) SAMKV_MUST_USE;
enum samkv_status samkv_writer_index(struct samkv_writer *, uint32_t layer, const float *index, size_t count,
                                     struct samkv_error *) SAMKV_MUST_USE;

/* Optional, right after begin: will the document fit that collection's quota? TOO_LARGE (or FULL, where quotas refuse)
 * when it will not, by the size that is to be expected: abort. commit judges by the real one. */
enum samkv_status samkv_writer_admit(struct samkv_writer *, const char *collection,
                                     struct samkv_error *) SAMKV_MUST_USE;

/*
 * On disk when it returns OK, together with the name (collection, id, title) if `collection` is not NULL. Frees the
 * writer in every case. A document committed without a name (a preamble) is kept while the process lives or until a
 * collection or a name refers to it; the next open removes documents without any reference.
 */
enum samkv_status samkv_writer_commit(struct samkv_writer *, const char *collection, const char *id, const char *title,
                                      struct samkv_error *) SAMKV_MUST_USE;
void samkv_writer_abort(struct samkv_writer *); /* NULL is allowed */

/* Points (collection, id) at a committed document, durably; what it pointed at before loses a reference. NOT_FOUND when
 * the document is gone (removed meanwhile): ingest it again. */
enum samkv_status samkv_store_name_put(struct samkv_store *, const char *collection, const char *id, const char *title,
                                       const struct samkv_key *, struct samkv_error *) SAMKV_MUST_USE;

/* Removes the name, and the document with its last name. NOT_FOUND without text when there is none. */
enum samkv_status samkv_store_name_remove(struct samkv_store *, const char *collection, const char *id,
                                          struct samkv_error *) SAMKV_MUST_USE;

/* Removes names whose records are damaged: where they led cannot be known. Their documents stay. */
enum samkv_status samkv_store_damaged_names_remove(struct samkv_store *, uint64_t *removed,
                                                   struct samkv_error *) SAMKV_MUST_USE;

/* Replaces one damaged block or index record of a visible document (after recomputing it). */
enum samkv_status samkv_store_block_rewrite(struct samkv_store *, const struct samkv_manifest *, uint32_t block,
                                            const void *const *src, struct samkv_error *) SAMKV_MUST_USE;

/* The same for the index record of one layer. */
enum samkv_status samkv_store_index_rewrite(struct samkv_store *, const struct samkv_manifest *, uint32_t layer,
                                            const float *index, size_t count, struct samkv_error *) SAMKV_MUST_USE;

/* ------------------------------------------------------------------ limits */

/* A pinned name survives eviction and TTL, and so does its document. NOT_FOUND without text. */
enum samkv_status samkv_store_pin(struct samkv_store *, const char *collection, const char *id, bool pinned,
                                  struct samkv_error *) SAMKV_MUST_USE;

struct samkv_limits {
    bool set_quota, set_ttl, set_group, set_mode; /* what is to be changed */
    uint64_t quota_bytes, ttl_s;
    uint32_t group, mode;
};

/* Changes a collection's limits, group and mode; a lowered quota evicts before it returns. NOT_FOUND without text. */
enum samkv_status samkv_store_configure(struct samkv_store *, const char *collection, const struct samkv_limits *,
                                        struct samkv_error *) SAMKV_MUST_USE;

/* Removes some hundred names of a collection, pinned ones too, and adds their number to *removed; with the last of them
 * the collection itself. *more: call again. NOT_FOUND without text. */
enum samkv_status samkv_store_collection_remove(struct samkv_store *, const char *collection, uint64_t *removed,
                                                bool *more, struct samkv_error *) SAMKV_MUST_USE;

struct samkv_gc_report {
    uint64_t names_expired, names_orphaned; /* orphaned: of collections that are gone */
    uint64_t documents_unreferenced, documents_unfinished;
    uint64_t bytes_freed; /* as stored */
};

/*
 * Removes what nobody needs, in bounded steps between others' writes. go_on (may be NULL) is called after each; false
 * ends it with CANCELLED. OK: the space is free for new documents.
 */
enum samkv_status samkv_store_gc(struct samkv_store *, struct samkv_gc_report *,
                                 bool (*go_on)(void *arg, const struct samkv_gc_report *), void *arg,
                                 struct samkv_error *) SAMKV_MUST_USE;

/* A fetch reads this document: what is used more is evicted later. Only notes it in memory. */
void samkv_store_use(struct samkv_store *, const struct samkv_key *);

/* By fetches; used_unix_s 0: never. */
void samkv_store_document_usage(struct samkv_store *, const struct samkv_key *, uint64_t *uses, int64_t *used_unix_s);

/* A document under several of its names counts once, and in each collection that has it. */
struct samkv_collection_stats {
    uint64_t documents, names, bytes_raw, bytes_stored;
};
void samkv_store_collection_stats(struct samkv_store *, const char *collection, struct samkv_collection_stats *out);

/* Whose it is, from memory, in a time that does not tell whether it is there. False: it is not. */
bool samkv_store_ownership(struct samkv_store *, const char *collection, struct samkv_ownership *out);

/* What a user's collections are charged with: their documents as stored, preambles too, and some bytes for each name
 * and collection. */
struct samkv_account {
    uint64_t collections, names, bytes_stored, bytes_charged, quota_bytes; /* quota 0: none */
};
void samkv_store_account(struct samkv_store *, uint32_t owner, struct samkv_account *out);

/* FULL when a user may not have `bytes` more. What is written is judged again when it is named. */
enum samkv_status samkv_store_admit_owner(struct samkv_store *, uint32_t owner, uint64_t bytes,
                                          struct samkv_error *) SAMKV_MUST_USE;

/* ------------------------------------------------------------------ care */

struct samkv_verify_report {
    uint64_t documents, blocks, bytes;
    uint64_t damaged; /* records with a wrong checksum, size or that are missing */
};

/* Reads every record of a document and checks it; adds to *report. OK also when damage was found (see report->damaged).
 */
enum samkv_status samkv_snapshot_verify(struct samkv_snapshot *, const struct samkv_key *,
                                        struct samkv_verify_report *report, struct samkv_error *) SAMKV_MUST_USE;

struct samkv_compact_report {
    uint64_t moved_bytes, total_bytes; /* so far, and about how many there are */
};

/*
 * Moves the store to a new data file of just its size, while it is read and written; returns when the old one is gone,
 * for which snapshots that were there before must have ended. progress (may be NULL) is called a few times a second;
 * false stops the waiting, not the compaction: CANCELLED. FULL: the limit or the disk leaves no room to begin.
 */
enum samkv_status samkv_store_compact(struct samkv_store *,
                                      bool (*progress)(void *arg, const struct samkv_compact_report *), void *arg,
                                      struct samkv_error *) SAMKV_MUST_USE;

struct samkv_store_stats {
    uint64_t collections, names, documents;
    uint64_t bytes_file, bytes_used, bytes_limit; /* data file, pages in use, limit */
    uint64_t bytes_allocated;                     /* of the data file: what the disk has given for it */
    uint64_t bytes_free;                          /* of pages that wait to be used again */
    uint64_t bytes_punched, bytes_moved;          /* given back to the disk, written by compaction; since the start */
    uint64_t compactions;                         /* that have come to their end since the start */
    uint64_t bytes_raw, bytes_stored;             /* over all documents */
    uint64_t readers, commits;
    uint64_t bytes_reclaimable; /* pages of the data file that hold nothing */
    uint64_t bytes_disk_free;
    uint64_t oldest_reader_s;                       /* how long the oldest snapshot of this process has been open */
    uint64_t evictions, evicted_bytes, expirations; /* since the store was opened */
    uint64_t damaged; /* times that reading met a damaged record since the store was opened */
};

enum samkv_status samkv_store_stats(struct samkv_store *, struct samkv_store_stats *out,
                                    struct samkv_error *) SAMKV_MUST_USE;

/* The content key: model fingerprint, dtype, preamble tokens, block size, local_tokens, document tokens. Pure. */
void samkv_document_key(const uint8_t fingerprint[16], enum samkv_dtype dtype, const int32_t *preamble,
                        size_t preamble_count, uint32_t block_tokens, uint32_t local_tokens, const int32_t *tokens,
                        size_t count, struct samkv_key *out);

/*
 * Makes a document's key that of its lossy copy. What is read from a document follows from its key: lossless codecs
 * give the same numbers, so collections with different ones share a document (stored as the first of them wanted), and
 * their keys stay as they are; what a lossy codec leaves is another document, of which each such codec has its own.
 * Pure.
 */
void samkv_document_key_of_codec(struct samkv_key *, enum samkv_codec);

/* To a masked key and back. Pure. */
void samkv_document_key_mask(struct samkv_key *, const struct samkv_key *mask);

/* The key of a document of this collection, or of its preamble (of which tokens and count are the collection's). Pure.
 */
void samkv_collection_document_key(const struct samkv_collection *, bool preamble, const int32_t *tokens, size_t count,
                                   struct samkv_key *out);
