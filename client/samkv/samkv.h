#pragma once
/*
 * libsamkv: sparse KV caches from a samkvd daemon, for inference engines.
 *
 * A document goes in once, as text or tokens; the daemon prefills it and keeps its KV cache on disk. For a query over
 * some documents it hands out a small, ready-to-use KV cache of the tokens that the query needs, as memory that is
 * mapped here.
 *
 *   struct samkv_client *client;
 *   struct samkv_cache *cache;
 *   struct samkv_error err;
 *   const char *ids[] = {"alan-turing", "enigma"};
 *   struct samkv_fetch_options options;
 *   samkv_fetch_options_init(&options);
 *   options.ids = ids, options.id_count = 2;
 *   options.query = "Who broke the code?", options.query_bytes = strlen(options.query);
 *   if (samkv_client_connect(NULL, &client, &err) || samkv_client_fetch(client, &options, &cache, &err))
 *       return fprintf(stderr, "%s\n", err.text), 1;
 *   for (uint32_t l = 0; l < cache->layers; l++)
 *       engine_load(l, samkv_cache_k(cache, l), samkv_cache_v(cache, l), cache->rows, cache->position);
 *   samkv_cache_free(cache);
 *   samkv_client_close(client);
 *
 * Glossary
 *   collection  documents that share a model, a preamble, a block size and anchor sizes. NULL or "" means "default".
 *   preamble    tokens in front of all documents (BOS, system prompt), fixed for a collection.
 *   block       block_tokens tokens of a document, counted from its start; the last one may be short.
 *   anchors     whole blocks at both ends of a document, always kept.
 *   row         one token of a cache: preamble rows first, then kept document tokens, then the query's (with_query).
 *
 * Errors. Functions return an enum samkv_status; err (NULL is allowed) then holds one line that says what to do.
 * NO_DAEMON: nobody listens. CLOSED: the connection ended; connect again (caches stay valid). PROTOCOL: the daemon said
 * something impossible. TIMEOUT: see samkv_client_set_timeout_ms. TOO_LARGE: the request does not fit a frame. All
 * others come from the daemon and concern one request only. Values that a newer daemon sends may be unknown to this
 * header.
 *
 * Ownership. What a call takes is borrowed until it returns, strings included. A struct samkv_reply is deinitialised
 * with samkv_reply_deinit and owns everything it points to; a struct samkv_cache is freed with samkv_cache_free and
 * needs neither client nor daemon any more.
 *
 * Threads. A client belongs to one thread at a time; different clients are independent. A cache is read-only: any
 * number of threads may read it, one frees it. No signals: SIGPIPE is never raised. No global state but the CUDA
 * driver, which the first cache in a GPU's memory loads (libcuda.so.1); the library is not linked against it.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "samkv/status.h"
#include "samkv/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

struct samkv_client;

/* "0.1.0": the library's own version. */
SAMKV_API const char *samkv_client_version(void);

/* Bytes of a public structure, by its name ("samkv_cache"), as the library was built with it; 0: not known. For
 * bindings that mirror the structures without reading this header. */
SAMKV_API size_t samkv_client_struct_bytes(const char *name);

/* ------------------------------------------------------------------ connection */

/*
 * Connects and shakes hands; waits at most 10 seconds. path NULL: $SAMKV_SOCKET, else $XDG_RUNTIME_DIR/samkv.sock if it
 * is there, else /run/samkv/samkv.sock. NO_DAEMON, DENIED, INVALID (path too long), TIMEOUT, PROTOCOL, UNSUPPORTED
 * (version).
 */
SAMKV_API enum samkv_status samkv_client_connect(const char *path, struct samkv_client **out,
                                                 struct samkv_error *err) SAMKV_MUST_USE;

/* The same over a connected stream socket (socketpair, systemd), which it owns from here on, also when it fails. */
SAMKV_API enum samkv_status samkv_client_attach(int fd, struct samkv_client **out,
                                                struct samkv_error *err) SAMKV_MUST_USE;

/* The path that connect would use for this argument. out: at least 108 bytes. INVALID when it does not fit a socket
 * address. */
SAMKV_API enum samkv_status samkv_client_path(const char *path, char *out, size_t bytes,
                                              struct samkv_error *err) SAMKV_MUST_USE;

/* Requests in flight are given up; the daemon stops working on them. NULL is allowed. */
SAMKV_API void samkv_client_close(struct samkv_client *);

/* The daemon's name and version ("samkvd/0.1.0"); lives as long as the client. */
SAMKV_API const char *samkv_client_server(const struct samkv_client *);

/* The largest request that the daemon takes. */
SAMKV_API uint64_t samkv_client_max_request_bytes(const struct samkv_client *);

/*
 * For requests made from now on: how long they may stay without any answer (a piece of a streamed reply counts as one)
 * before they end with TIMEOUT. 0 (the default): forever. A reply that comes too late is dropped.
 */
SAMKV_API void samkv_client_set_timeout_ms(struct samkv_client *, int timeout_ms);

/* ------------------------------------------------------------------ what is asked */

/* What a collection is made of. Only its first ingest needs it; whatever a later one sets must agree, or MISMATCH. */
struct samkv_collection_options {
    const char *model;    /* NULL: what is stored, else the daemon's first model */
    bool has_preamble;    /* says that one of the next two is meant, even an empty one */
    const char *preamble; /* text, UTF-8 */
    size_t preamble_bytes;
    const int32_t *preamble_tokens; /* instead of text */
    size_t preamble_token_count;
    int64_t block_tokens, init_tokens, local_tokens; /* -1: as stored, else 16, 16, 16 */
    int64_t quota_bytes, ttl_s; /* of stored bytes; seconds that an id lives. -1: as stored, else 0: none */
    const char *codec;          /* "raw", "zstd", "rans", "q8", "q4"; NULL: as stored, else the daemon's default */
    uint32_t mode;              /* who may use it, like 0640; 0: as stored, else the daemon's default */
};

/* One document. samkv_document_init gives the defaults. */
struct samkv_document {
    const char *collection;
    const char *id;    /* 1 to 255 bytes of UTF-8 without control characters */
    const char *title; /* or NULL */
    const char *text;  /* UTF-8, or NULL when tokens are given */
    size_t text_bytes;
    const int32_t *tokens; /* instead of text */
    size_t token_count;
    uint32_t chunk_tokens; /* split a longer document into id#1, id#2, …; 0: refuse what exceeds the model's context */
    struct samkv_collection_options spec;
    uint64_t reserved[3];
};
SAMKV_API void samkv_document_init(struct samkv_document *);

enum samkv_fetch_selection { SAMKV_FETCH_DYNAMIC = 0, SAMKV_FETCH_FIXED = 1 };
enum samkv_fetch_update {
    SAMKV_FETCH_OVERWRITE = 0,
    SAMKV_FETCH_COSINE = 1,
    SAMKV_FETCH_THETA = 2,
    SAMKV_FETCH_DELTA = 3, /* what the other documents change is added; recomputes twice */
};
/* How blocks are scored: MEAN as the paper has it; TOKENS: each token of the query against the blocks' means; EXACT and
 * LAST: each token, or the last one, against every stored key, all of which are read for it; ATTEND: as EXACT, and the
 * query sees all that is stored while it makes its own. */
enum samkv_fetch_scoring {
    SAMKV_FETCH_MEAN = 0,
    SAMKV_FETCH_TOKENS = 1,
    SAMKV_FETCH_EXACT = 2,
    SAMKV_FETCH_LAST = 3,
    SAMKV_FETCH_ATTEND = 4,
};
/* What a chosen block brings along, within the same budget: the one on its left, or those on both sides. */
enum samkv_fetch_neighbours { SAMKV_FETCH_ALONE = 0, SAMKV_FETCH_LEFT = 1, SAMKV_FETCH_BOTH = 2 };
enum samkv_fetch_positions { SAMKV_FETCH_ORIGINAL = 0, SAMKV_FETCH_COMPACT = 1 };
enum samkv_fetch_placement { SAMKV_FETCH_HOST = 0, SAMKV_FETCH_DEVICE = 1 };

/* samkv_fetch_options_init gives the defaults; ids and a query are needed besides. */
struct samkv_fetch_options {
    const char *collection;
    const char *const *ids; /* in the order of the prompt */
    size_t id_count;
    const char *query; /* UTF-8, or NULL when tokens are given */
    size_t query_bytes;
    const int32_t *query_tokens; /* instead of text */
    size_t query_token_count;
    double ratio;                         /* of the documents' tokens to keep, (0, 1]; -1: the model's calibrated one,
                                             else 0.15 */
    enum samkv_fetch_selection selection; /* DYNAMIC: the budget is a bound; FIXED: it is filled */
    const uint32_t *stable_layers;        /* NULL: the model's calibrated ones, else its default */
    size_t stable_layer_count;
    int64_t init_tokens, local_tokens; /* -1: the collection's */
    enum samkv_fetch_update update;    /* how recomputed K and V meet the cached ones */
    double theta;                      /* [0, 1], for THETA: theta * new + (1 - theta) * old */
    bool no_recompute;
    enum samkv_fetch_positions positions; /* ORIGINAL: joint positions, with gaps; COMPACT: 0, 1, 2, … */
    bool with_query;                      /* the query's rows and logits come along */
    /* Where K and V are to be. DEVICE: in the memory of the daemon's GPU, mapped into this process without a copy;
     * UNSUPPORTED when the daemon has none, or this process has no CUDA driver or cannot see that GPU; BUSY when caches
     * that are held use up what the daemon set aside: free some. An older daemon answers with host memory: see
     * samkv_cache.where. For samkv_ask_options it means nothing. */
    enum samkv_fetch_placement placement;
    /* After so long, waiting included, the reply is of no use; 0: as long as the daemon allows. With it, the daemon
     * recomputes everything where that is done sooner than the sparse way, and ends with TIMEOUT at once what it knows
     * to take longer, with CANCELLED what does. For samkv_ask_options only the last of this holds. */
    uint32_t deadline_ms;
    enum samkv_fetch_scoring scoring;
    enum samkv_fetch_neighbours neighbours;
    uint64_t reserved[3];
};
SAMKV_API void samkv_fetch_options_init(struct samkv_fetch_options *);

enum samkv_method { SAMKV_METHOD_SAMKV = 0, SAMKV_METHOD_FULL = 1, SAMKV_METHOD_REUSE = 2 };

/* samkv_ask_options_init gives the defaults. The daemon's own model answers, greedily. */
struct samkv_ask_options {
    struct samkv_fetch_options fetch; /* its query is ignored */
    const char *question;             /* UTF-8 */
    size_t question_bytes;
    enum samkv_method method; /* over the sparse, the fully recomputed, or the naively reused cache */
    uint32_t max_tokens;      /* 0: 64 */
    bool raw;                 /* the question is the whole query: no chat template around it */
    uint64_t reserved[4];
};
SAMKV_API void samkv_ask_options_init(struct samkv_ask_options *);

enum samkv_evaluated_method {
    SAMKV_EVALUATED_FULL = 0,       /* the documents prefilled jointly */
    SAMKV_EVALUATED_REUSE = 1,      /* what is stored, as it is */
    SAMKV_EVALUATED_CACHEBLEND = 2, /* of that, the tokens recomputed whose K and V differ most in layer 1 */
    SAMKV_EVALUATED_EPIC = 3,       /* of that, each document's first tokens recomputed */
    SAMKV_EVALUATED_SAMKV = 4,      /* what a fetch gives */
};
enum samkv_evaluated_cut { SAMKV_CUT_NONE = 0, SAMKV_CUT_FIRST = 1, SAMKV_CUT_RANDOM = 2 };

/* One way to make a cache, to be compared with others. samkv_evaluated_variant_init gives the defaults. */
struct samkv_evaluated_variant {
    enum samkv_evaluated_method method;
    enum samkv_evaluated_cut cut; /* not SAMKV: keep only the first blocks, or random ones, as many as SAMKV would */
    double share;                 /* CACHEBLEND: of the kept tokens, (0, 1]; 0.15 */
    uint32_t first_tokens;        /* EPIC; 16 */
    struct samkv_fetch_options fetch; /* ratio and how SAMKV chooses; collection, ids and query are ignored */
    uint64_t reserved[4];
};
SAMKV_API void samkv_evaluated_variant_init(struct samkv_evaluated_variant *);

/* One question, answered greedily by the daemon's own model from each variant's cache. */
struct samkv_evaluate_options {
    const char *collection;
    const char *const *ids;
    size_t id_count;
    const char *question; /* UTF-8, put to the model as samkv_ask_options has it; or query_tokens */
    size_t question_bytes;
    bool raw;
    const int32_t *query_tokens;
    size_t query_token_count;
    const char *gold; /* the right answer, or gold_tokens, or neither: its likelihood under each variant is told */
    size_t gold_bytes;
    const int32_t *gold_tokens;
    size_t gold_token_count;
    uint32_t max_tokens; /* of an answer; 0: 32 */
    uint64_t seed;       /* of SAMKV_CUT_RANDOM */
    const struct samkv_evaluated_variant *variants;
    size_t variant_count; /* at most 256 */
    uint64_t reserved[4];
};

/* ------------------------------------------------------------------ what is answered */

struct samkv_timing {
    double total, index, query, select, read, recompute, reply, queue; /* milliseconds */
};

struct samkv_blocks_kept {
    const uint32_t *blocks; /* [count] block numbers, ascending */
    size_t count;
};

/* What was done, and why. RAISED: sparse, but at a higher ratio, since the collection's quality needs it. FULL_QUALITY,
 * FULL_CHEAPER: everything was recomputed, for the quality or for the deadline. */
enum samkv_fetch_decision {
    SAMKV_FETCH_SPARSE = 0,
    SAMKV_FETCH_RAISED = 1,
    SAMKV_FETCH_FULL_QUALITY = 2,
    SAMKV_FETCH_FULL_CHEAPER = 3,
};

/* What a fetch did. Arrays have one element a document, in the order of the request. */
struct samkv_figures {
    uint32_t documents;
    uint32_t preamble_tokens;
    uint32_t kept_tokens;   /* document tokens in the cache */
    uint32_t total_tokens;  /* document tokens in all */
    uint32_t next_position; /* where the query, or what follows it, goes on */
    uint32_t block_tokens;  /* 0: the daemon does not say */
    double sequence_ratio;  /* kept / total */
    double recompute_ratio; /* recomputed (token, layer) pairs of all */
    const double *top_p;
    const uint32_t *document_tokens;
    const struct samkv_blocks_kept *keep;
    const uint32_t *stable_layers; /* [stable_layer_count] */
    size_t stable_layer_count;
    uint64_t bytes_read;        /* of the store: index and blocks */
    uint64_t bytes_stored;      /* what reading these documents whole would have cost */
    bool anchors_exceed_budget; /* the anchors alone are more than the ratio allows */
    const char *backend;
    struct samkv_timing timing_ms;
    uint64_t request; /* the daemon's number of this request, in its log and for samkv_client_trace; 0: it has none */
    enum samkv_fetch_decision decision;
    double ratio;              /* that was used; 0: the daemon does not say */
    double sparse_ms, full_ms; /* with a deadline: what either way was expected to take; negative: not known */
};

/*
 * A fetched cache: sealed memory, mapped read-only. It stays valid until samkv_cache_free, also when the daemon is dead
 * or the client closed. All that the daemon says about it was checked against the real size of the memory. The members
 * are the library's: read them only. The memory is a valid safetensors file.
 *
 * With where == SAMKV_FETCH_DEVICE, K and V are not in that memory but on the GPU `device`, in memory that this process
 * shares with the daemon until samkv_cache_free:
 *   - samkv_cache_k and _v give device pointers. They are good in every context and stream of that GPU in this process
 *     (its primary context, the runtime API's, is kept alive meanwhile), never on the host. On a daemon that only plays
 *     a GPU, for tests, `device` is -1 and they are host pointers.
 *   - It is mapped when the daemon says where K and V will be, which may be before they are computed: by
 *     samkv_client_process or by the call that waits, so that mapping costs no time of its own. Such memory belongs to
 *     the request in flight; whatever ends that without a cache unmaps it.
 *   - The memory is mapped for reading and writing, so that an engine can change a cache in place. What it writes is
 * its own business, between the tensors too, but only until samkv_cache_free: afterwards the memory is another reply's.
 *   - samkv_cache_free unmaps it and tells the daemon, which then uses it again. All work on the GPU that touches it
 *     must be done by then. When this process dies instead, the daemon gives the memory up; it returns to the GPU when
 *     nobody maps it.
 *   - When the daemon dies, the memory stays what it was until samkv_cache_free.
 */
struct samkv_cache {
    uint32_t layers, rows, kv_heads, head_dim;
    enum samkv_dtype dtype;           /* of K and V: f32, f16 or bf16 */
    enum samkv_fetch_placement where; /* whether samkv_cache_k and _v give host or device pointers */
    int device;                       /* DEVICE: the GPU's ordinal in this process, as CUDA counts; else -1 */
    /* Of K and of V alike: from one layer to the next; kv_heads * head_dim elements; head_dim elements. */
    size_t layer_stride_bytes, row_stride_bytes, head_stride_bytes;
    const int32_t *tokens;   /* [rows] */
    const int32_t *doc;      /* [rows] number of the document in the request, -1 preamble, -2 query */
    const int32_t *index;    /* [rows] place in its document (preamble, query) */
    const int32_t *position; /* [rows] that K was rotated to; ascending, with gaps unless COMPACT */
    const float *logits;     /* [vocab] after the query's last token; NULL without with_query */
    uint32_t vocab;
    struct samkv_figures figures;
    const void *memory;
    size_t memory_bytes;
    struct samkv_cache_memory *owner;
};

/* K of a layer after RoPE, and V: (rows, kv_heads, head_dim) contiguous in the cache's dtype, aligned to it; a device
 * pointer with where == SAMKV_FETCH_DEVICE. NULL: no such layer. */
SAMKV_API const void *samkv_cache_k(const struct samkv_cache *, uint32_t layer);
SAMKV_API const void *samkv_cache_v(const struct samkv_cache *, uint32_t layer);

/* The sealed memory's descriptor, to map or to pass on; it stays the cache's. Without K and V when those are on a
 * device. */
SAMKV_API int samkv_cache_fd(const struct samkv_cache *);

/* Writes the cache to a safetensors file that appears whole or not at all (a device or pipe is written to directly). K
 * and V on a GPU are copied from it: DEVICE or NO_MEMORY when that fails. */
SAMKV_API enum samkv_status samkv_cache_save(const struct samkv_cache *, const char *path,
                                             struct samkv_error *err) SAMKV_MUST_USE;

/* Unmaps it. NULL is allowed. */
SAMKV_API void samkv_cache_free(struct samkv_cache *);

struct samkv_ingested_document {
    const char *id; /* as given, or id#1, id#2, … when it was split */
    bool skipped;   /* the same content was there already */
    uint32_t tokens;
    uint64_t bytes_raw, bytes_stored;
};

struct samkv_document_info {
    const char *collection, *id, *title;
    const char *key; /* of its content, hex */
    uint32_t tokens, blocks;
    uint64_t bytes_raw, bytes_stored, bytes_index;
    int64_t created_unix_s;
    bool pinned;            /* survives eviction and TTL */
    int64_t put_unix_s;     /* when the id was last ingested; 0: not known */
    int64_t expires_unix_s; /* by the collection's TTL; 0: never */
    int64_t used_unix_s;    /* by a fetch; 0: never */
    uint64_t uses;
};

struct samkv_collection_info {
    const char *name, *model, *dtype;
    const char *fingerprint; /* of the model, hex */
    uint32_t block_tokens, init_tokens, local_tokens, preamble_tokens;
    uint64_t documents;
    uint64_t quota_bytes, ttl_s;      /* 0: none */
    uint64_t bytes_raw, bytes_stored; /* of its documents; what another collection has too counts in both */
    const char *codec;
    uint32_t owner, group; /* users' and groups' numbers; 0: the daemon's */
    uint32_t mode;         /* as a file's: 0640. 4 is reading, 6 reading and writing; 0: an older daemon's */
};

struct samkv_model_info {
    const char *name, *path, *device, *fingerprint, *dtype; /* dtype: of what is stored */
    uint32_t layers, context_tokens;
    uint64_t weight_bytes;
    const char *chat; /* format of its conversations: "chatml", "llama3", "phi3", "mistral", "" when it has none */
};

/* How often a value fell between bounds: counts[i] above bounds[i - 1] and at most bounds[i]. */
struct samkv_histogram_info {
    const char *name, *phase; /* "fetch_phase_seconds", "read"; phase may be "" */
    const double *bounds;     /* [bound_count] */
    const uint64_t *counts;   /* [bound_count + 1] */
    size_t bound_count;
    double sum;
};

struct samkv_counter {
    const char *name;
    double value;
};

/* Pinned: the frame types of PROTOCOL.md. */
enum samkv_operation {
    SAMKV_OPERATION_PING = 2,
    SAMKV_OPERATION_INGEST = 3,
    SAMKV_OPERATION_FETCH = 4,
    SAMKV_OPERATION_ASK = 5,
    SAMKV_OPERATION_LIST = 6,
    SAMKV_OPERATION_SHOW = 7,
    SAMKV_OPERATION_REMOVE = 8,
    SAMKV_OPERATION_STATUS = 9,
    SAMKV_OPERATION_VERIFY = 10,
    SAMKV_OPERATION_CONFIGURE = 11,
    SAMKV_OPERATION_PIN = 12,
    SAMKV_OPERATION_GC = 13,
    SAMKV_OPERATION_EXPORT = 14,
    SAMKV_OPERATION_IMPORT = 15,
    SAMKV_OPERATION_COMPACT = 16,
    SAMKV_OPERATION_TRACE = 17,
    SAMKV_OPERATION_EVALUATE = 18,
    SAMKV_OPERATION_CALIBRATE = 19,
};

/* What a collection needs of its sparse answers, and how far it is met. */
struct samkv_quality_info {
    const char *collection;
    const char *target;     /* "agreement=0.95", "kl=0.05" */
    double share;           /* of fetches that are measured */
    uint32_t level;         /* 0: fetches keep what they ask for */
    double ratio;           /* that they keep at least; 0: as they ask */
    bool full;              /* everything is recomputed */
    double estimate, bound; /* of the target's metric, and what it is surely not worse than */
    double measurements;    /* that the estimate rests on; 0: there is none */
    bool met;
    uint64_t measured, raised, lowered;
};

/* What a model's calibration found. */
struct samkv_calibration_info {
    const char *model, *fingerprint;
    const uint32_t *stable_layers; /* [stable_layer_count] */
    size_t stable_layer_count;
    double ratio;                      /* 0: none was looked for */
    uint32_t block_tokens;             /* 0: likewise */
    int64_t init_tokens, local_tokens; /* -1: as the collection has them */
    uint32_t samples;
    double recall, agreement, kl;
    int64_t unix_s;
};

struct samkv_ingest_answer {
    const struct samkv_ingested_document *documents; /* more than one when it was split */
    size_t count;
    double prefill_ms; /* device time */
    uint64_t request;  /* as in struct samkv_figures */
};

struct samkv_ask_answer {
    const char *text; /* this piece: whole UTF-8 characters, not NUL-terminated */
    size_t text_bytes;
    /* The rest is filled in the last piece only. */
    uint32_t answer_tokens, prompt_tokens; /* prompt: rows that were there before the answer began */
    double first_token_ms, total_ms;
    const struct samkv_figures *figures; /* of the sparse cache; NULL for the other methods */
};

/* What one variant gave; in the last piece, which has none, `variant` is -1. */
struct samkv_evaluate_answer {
    int64_t variant;  /* its number in the options */
    const char *text; /* not NUL-terminated; empty where the model has no tokenizer */
    size_t text_bytes;
    const int32_t *tokens; /* the same answer, without what ends it */
    size_t token_count;
    double log_likelihood; /* of the gold answer's first gold_tokens tokens, their sum, in nats */
    uint32_t gold_tokens;
    double kl;                       /* of the next token's distribution, from that behind the full cache, in nats */
    bool agrees;                     /* token for token with the answer from the full cache */
    double first_token_ms, total_ms; /* total_ms: in the last piece */
    const struct samkv_figures *figures; /* of the cache; NULL in the last piece */
};

struct samkv_list_answer {
    const struct samkv_document_info *documents; /* by id */
    size_t document_count;
    const struct samkv_collection_info *collections;
    size_t collection_count;
    bool more; /* list again, after the last id */
};

struct samkv_show_answer {
    struct samkv_document_info document;
    struct samkv_collection_info collection;
    const char *text; /* decoded from the stored tokens; text[text_bytes] is 0 */
    size_t text_bytes;
    const struct samkv_quality_info *quality;         /* of the collection; NULL: it needs none */
    const struct samkv_calibration_info *calibration; /* of its model; NULL: it has none */
};

struct samkv_remove_answer {
    uint32_t removed;
    const char *const *missing; /* [missing_count] ids that were not there */
    size_t missing_count;
};

struct samkv_status_answer {
    const char *version, *store;
    uint64_t uptime_s, collections, documents, names, connections;
    uint64_t bytes_file, bytes_used, bytes_limit; /* limit 0: none */
    uint64_t bytes_raw, bytes_stored, resident_bytes;
    const struct samkv_model_info *models;
    size_t model_count;
    const struct samkv_counter *counters;
    size_t counter_count;
    uint64_t bytes_disk_free;   /* of the store's file system */
    uint64_t bytes_reclaimable; /* pages of the data file that hold nothing */
    uint64_t oldest_reader_s;   /* for how long the oldest reader has kept freed pages from being used again */
    uint64_t evictions, evicted_bytes, expirations;      /* since the daemon's start */
    const struct samkv_collection_info *collection_list; /* by name, the first hundred; `documents` counts ids */
    size_t collection_count;
    const struct samkv_histogram_info *histograms; /* samkv_client_status_quick only */
    size_t histogram_count;
    uint32_t user;                         /* the caller, as collections name owners; 0: the daemon's own, or root */
    uint64_t user_bytes, user_quota_bytes; /* what its collections are charged with, and may be; 0: any */
    bool partial; /* no administrator asked: sums are of what the caller may read, counters none */
    const struct samkv_quality_info *qualities; /* by collection, the first hundred */
    size_t quality_count;
    const struct samkv_calibration_info *calibrations; /* of the daemon's models */
    size_t calibration_count;
};

struct samkv_configure_answer {
    struct samkv_collection_info collection;  /* as it is now; `documents` counts ids */
    uint64_t evicted;                         /* documents that went because the quota was lowered */
    const struct samkv_quality_info *quality; /* NULL: it needs none */
};

struct samkv_calibrated_layer {
    uint32_t layer;
    double recall; /* negative: there was nothing to rank */
};

/* One way to fetch, and what it came to on the sample. */
struct samkv_calibrated_variant {
    uint32_t kind; /* 0: layers, 1: ratios, 2: anchors, 3: block sizes, of which recall is what they hold */
    const char *what;
    const uint32_t *layers; /* [layer_count] */
    size_t layer_count;
    double ratio;
    bool fixed, chosen;
    double recall; /* negative: not measured */
    double agreement, agreement_error, kl, kl_error;
    double sequence_ratio, recompute_ratio, ms;
};

/* Pieces before the last one tell how far it is. */
struct samkv_calibrate_answer {
    const char *phase;
    uint32_t done, total; /* total 0: not known */
    /* The rest is filled in the last piece only. */
    uint32_t samples;
    const struct samkv_calibrated_layer *layers;
    size_t layer_count;
    const struct samkv_calibrated_variant *variants;
    size_t variant_count;
    const struct samkv_calibration_info *calibration; /* NULL: it was only to be forgotten */
    bool applied;                                     /* stored, or forgotten */
    const struct samkv_quality_info *quality;         /* of the collection's gate; NULL: it has none */
    double full_ms;
    uint64_t request;
};

struct samkv_pin_answer {
    uint32_t pinned;            /* or unpinned */
    const char *const *missing; /* [missing_count] ids that were not there */
    size_t missing_count;
};

struct samkv_gc_answer {
    uint64_t names_expired, names_orphaned; /* orphaned: of collections that are gone */
    uint64_t documents_unreferenced, documents_unfinished;
    uint64_t bytes_freed;
};

struct samkv_span_info {
    const char *phase;
    double start_ms, ms; /* since the daemon took the request; spans may overlap */
};

/* What became of one request. */
struct samkv_traced_request {
    uint64_t id, client_id; /* the daemon's number, and that of the client */
    const char *type;       /* "FETCH" */
    const char *agent;
    uint32_t pid, uid, gid;
    int64_t accepted_unix_ms;
    const char *collection;
    const char *const *documents; /* the first few */
    size_t documents_named, document_count;
    bool running; /* it goes on: ms is to now, and what is below is not known yet */
    double ms;
    enum samkv_status status;
    const char *error;                   /* "" when there was none */
    const struct samkv_span_info *spans; /* by start */
    size_t span_count;
    uint64_t request_bytes, reply_bytes; /* over the socket */
    uint64_t cache_bytes;                /* of the memory that was handed out */
    uint64_t read_bytes;                 /* of the store */
    uint64_t tokens, kept_tokens;
};

struct samkv_trace_answer {
    const struct samkv_traced_request *requests; /* those that run, then the last ones, newest first */
    size_t count;
};

struct samkv_verify_answer {
    uint64_t documents, documents_total, blocks, bytes, damaged, repaired;
    const char *const *damaged_ids; /* "collection/id"; at most 100 */
    size_t damaged_id_count;
};

struct samkv_bundle_answer {
    const char *collection;
    const char *last_id;         /* of the last document that is done */
    uint64_t names, names_total; /* documents by id that are done, and all of them; total 0: not known */
    uint64_t documents, bytes;   /* whole documents in the bundle, and its bytes, so far */
    uint64_t skipped;            /* import: of names, were there already */
    uint64_t replaced;           /* import: stood for something else */
    uint64_t kept;               /* import: stand for something else, and still do */
};

struct samkv_compact_answer {
    uint64_t bytes_moved, bytes_total;                /* so far, and about how many there are */
    uint64_t bytes_file_before, bytes_file;           /* size of the data file */
    uint64_t bytes_allocated_before, bytes_allocated; /* what the disk has given for it */
    uint64_t bytes_used;                              /* of what it holds */
};

/* One answer, or one piece of a streamed one (ask, verify, export, import, gc, compact, remove of a
 * collection). */
struct samkv_reply {
    uint64_t request; /* what submit gave */
    enum samkv_operation operation;
    bool more;                /* further pieces of this request follow */
    enum samkv_status status; /* not OK: error says why, nothing else is filled */
    struct samkv_error error;
    struct samkv_cache *cache; /* fetch: yours; set it to NULL to keep it beyond samkv_reply_deinit */
    union {
        struct samkv_ingest_answer ingest;
        struct samkv_ask_answer ask;
        struct samkv_list_answer list;
        struct samkv_show_answer show;
        struct samkv_remove_answer remove;
        struct samkv_status_answer status;
        struct samkv_verify_answer verify;
        struct samkv_bundle_answer bundle; /* export, import */
        struct samkv_configure_answer configure;
        struct samkv_pin_answer pin;
        struct samkv_gc_answer gc;
        struct samkv_compact_answer compact;
        struct samkv_trace_answer trace;
        struct samkv_calibrate_answer calibrate;
        struct samkv_evaluate_answer evaluate;
        uint64_t reserved[64];
    } answer;
    struct samkv_reply_memory *owner;
};

/* Frees what the reply owns, the cache included. A zeroed or deinitialised reply is allowed. */
SAMKV_API void samkv_reply_deinit(struct samkv_reply *);

/* ------------------------------------------------------------------ blocking calls */
/*
 * Each waits for its own answer; answers to submitted requests that arrive meanwhile stay for samkv_client_next. On
 * failure nothing is left to free. reply may be NULL where it is not needed.
 */
SAMKV_API enum samkv_status samkv_client_ping(struct samkv_client *, struct samkv_error *err) SAMKV_MUST_USE;

/* OK: the document is on disk. */
SAMKV_API enum samkv_status samkv_client_ingest(struct samkv_client *, const struct samkv_document *,
                                                struct samkv_reply *reply, struct samkv_error *err) SAMKV_MUST_USE;

SAMKV_API enum samkv_status samkv_client_fetch(struct samkv_client *, const struct samkv_fetch_options *,
                                               struct samkv_cache **out, struct samkv_error *err) SAMKV_MUST_USE;

/*
 * on_text (may be NULL) gets each piece of the answer as it comes, on this thread; it must not use the client. When it
 * returns false, the call ends with CANCELLED and later pieces are dropped. reply holds the figures and the last
 * piece's text.
 */
SAMKV_API enum samkv_status samkv_client_ask(struct samkv_client *, const struct samkv_ask_options *,
                                             bool (*on_text)(void *arg, const char *text, size_t bytes), void *arg,
                                             struct samkv_reply *reply, struct samkv_error *err) SAMKV_MUST_USE;

/* on_variant gets each variant's piece as it comes, like on_text above. */
SAMKV_API enum samkv_status samkv_client_evaluate(struct samkv_client *, const struct samkv_evaluate_options *,
                                                  bool (*on_variant)(void *arg, const struct samkv_evaluate_answer *),
                                                  void *arg, struct samkv_reply *reply,
                                                  struct samkv_error *err) SAMKV_MUST_USE;

/* One page of at most limit (0: the daemon's choice) documents whose id is above `after` (NULL: from the start). */
SAMKV_API enum samkv_status samkv_client_list(struct samkv_client *, const char *collection, const char *after,
                                              uint32_t limit, struct samkv_reply *reply,
                                              struct samkv_error *err) SAMKV_MUST_USE;
/* Likewise, by name. */
SAMKV_API enum samkv_status samkv_client_list_collections(struct samkv_client *, const char *after, uint32_t limit,
                                                          struct samkv_reply *reply,
                                                          struct samkv_error *err) SAMKV_MUST_USE;
SAMKV_API enum samkv_status samkv_client_show(struct samkv_client *, const char *collection, const char *id,
                                              struct samkv_reply *reply, struct samkv_error *err) SAMKV_MUST_USE;

/* Ids that are not there are no failure: see the answer's `missing`. */
SAMKV_API enum samkv_status samkv_client_remove(struct samkv_client *, const char *collection, const char *const *ids,
                                                size_t count, struct samkv_reply *reply,
                                                struct samkv_error *err) SAMKV_MUST_USE;
/* A whole collection with its documents, pinned ones too. on_progress as on_text above. */
SAMKV_API enum samkv_status
samkv_client_remove_collection(struct samkv_client *, const char *collection,
                               bool (*on_progress)(void *arg, const struct samkv_remove_answer *), void *arg,
                               struct samkv_reply *reply, struct samkv_error *err) SAMKV_MUST_USE;

/* Pinned ids survive eviction and TTL; pin false: no longer. Ids that are not there are no failure. */
SAMKV_API enum samkv_status samkv_client_pin(struct samkv_client *, const char *collection, const char *const *ids,
                                             size_t count, bool pin, struct samkv_reply *reply,
                                             struct samkv_error *err) SAMKV_MUST_USE;

/* Changes a collection's quota and TTL; -1 leaves one as it is, 0 lifts it. A lowered quota evicts before the answer.
 */
SAMKV_API enum samkv_status samkv_client_configure(struct samkv_client *, const char *collection, int64_t quota_bytes,
                                                   int64_t ttl_s, struct samkv_reply *reply,
                                                   struct samkv_error *err) SAMKV_MUST_USE;

/* Says who may use a collection: a group that the caller is in (0: the daemon's; -1: as it is) and a mode like 0640
 * (-1: as it is). Its owner and administrators may. INVALID for a mode that cannot be, DENIED. Answered as configure
 * is. */
SAMKV_API enum samkv_status samkv_client_share(struct samkv_client *, const char *collection, int64_t group,
                                               int64_t mode, struct samkv_reply *reply,
                                               struct samkv_error *err) SAMKV_MUST_USE;

/*
 * Changes the quality that a collection needs: "agreement=0.95" (the share of next tokens that are those of full
 * recomputation, at least), "kl=0.05" (the divergence of their distributions in nats, at most) or "none"; NULL leaves
 * it as it is. share: of its fetches that are measured in the background, 0 to 1; -1 leaves it. The answer is
 * `configure`.
 */
SAMKV_API enum samkv_status samkv_client_set_quality(struct samkv_client *, const char *collection, const char *quality,
                                                     double share, struct samkv_reply *reply,
                                                     struct samkv_error *err) SAMKV_MUST_USE;

struct samkv_calibrate_question {
    const char *text; /* UTF-8, or NULL when tokens are given */
    size_t text_bytes;
    bool raw; /* the text is the whole query: no chat template around it */
    const int32_t *tokens;
    size_t token_count;
    const char *const *ids; /* of the documents, in the order of the prompt */
    size_t id_count;
};

/* samkv_calibrate_options_init gives the defaults. */
struct samkv_calibrate_options {
    const char *collection;
    const struct samkv_calibrate_question *questions; /* NULL: they are drawn from the collection's own text */
    size_t question_count;
    uint32_t sample; /* questions at most; 0: 16, or all that are given */
    uint64_t seed;   /* of drawing */
    double ratio;    /* of the first measurements; -1: 0.15 */
    enum samkv_fetch_selection selection;
    enum samkv_fetch_update update; /* OVERWRITE or COSINE */
    const char *quality;            /* that a ratio is looked for; NULL: the collection's */
    bool apply;                     /* store what was found, and set the collection's gate by it */
    bool forget;                    /* only remove what is stored for the collection's model */
    uint64_t reserved[4];
};
SAMKV_API void samkv_calibrate_options_init(struct samkv_calibrate_options *);

/* Finds the layers of the collection's model that rank blocks best, and what its sparse answers are worth. Takes
 * minutes; fetches go first meanwhile. on_progress as on_text above. */
SAMKV_API enum samkv_status
samkv_client_calibrate(struct samkv_client *, const struct samkv_calibrate_options *,
                       bool (*on_progress)(void *arg, const struct samkv_calibrate_answer *), void *arg,
                       struct samkv_reply *reply, struct samkv_error *err) SAMKV_MUST_USE;

/* Removes what nobody needs: expired ids, documents that nothing refers to, what ingests left behind. */
SAMKV_API enum samkv_status samkv_client_gc(struct samkv_client *,
                                            bool (*on_progress)(void *arg, const struct samkv_gc_answer *), void *arg,
                                            struct samkv_reply *reply, struct samkv_error *err) SAMKV_MUST_USE;
SAMKV_API enum samkv_status samkv_client_status(struct samkv_client *, struct samkv_reply *reply,
                                                struct samkv_error *err) SAMKV_MUST_USE;

/* For whoever looks often: what is stored may be added up max_age_ms ago; with histograms. */
SAMKV_API enum samkv_status samkv_client_status_quick(struct samkv_client *, uint32_t max_age_ms,
                                                      struct samkv_reply *reply,
                                                      struct samkv_error *err) SAMKV_MUST_USE;

/* What became of the request with this number of the daemon's, NOT_FOUND when it is among the last ones no more; id 0:
 * of at most `limit` (0: all that the daemon remembers). Only of this user's own, unless that is an administrator.
 */
SAMKV_API enum samkv_status samkv_client_trace(struct samkv_client *, uint64_t id, uint32_t limit,
                                               struct samkv_reply *reply, struct samkv_error *err) SAMKV_MUST_USE;

/* collection NULL or "": all of them. on_progress as on_text above. Damage found is OK: see the answer. */
SAMKV_API enum samkv_status samkv_client_verify(struct samkv_client *, const char *collection, bool repair,
                                                bool (*on_progress)(void *arg, const struct samkv_verify_answer *),
                                                void *arg, struct samkv_reply *reply,
                                                struct samkv_error *err) SAMKV_MUST_USE;

/*
 * Bundles: a collection as one stream of bytes, to be kept or imported elsewhere. fd is a file, pipe or stream socket,
 * which the daemon itself writes to or reads from, from where it stands; it stays the caller's, and must not be used
 * before the call returns. on_progress as above; a call that it ends leaves the daemon at work until the client is
 * closed.
 *
 * export: documents in order of their ids, as they were when it began. resume: fd is a file, open for reading and
 * writing, with the beginning of an export of this collection: what is whole of it stays, the rest is written behind
 * it. IO: nobody reads the pipe; FULL; CORRUPT: a document is damaged, verify with repair first.
 *
 * import: what was imported when it ends early stays, and the same import goes on behind it. MISMATCH: made with
 * another model, or the collection exists and is another one. CORRUPT: damaged or cut off. FULL.
 */
struct samkv_export_options {
    const char *collection; /* NULL: "default" */
    const char *after;      /* only documents whose id is above; NULL: all */
    bool resume;
};

struct samkv_import_options {
    const char *collection; /* to import into; NULL: as the bundle says */
    bool keep;              /* ids that stand for something else stay as they are; else they are replaced */
};

SAMKV_API enum samkv_status samkv_client_export(struct samkv_client *, const struct samkv_export_options *, int fd,
                                                bool (*on_progress)(void *arg, const struct samkv_bundle_answer *),
                                                void *arg, struct samkv_reply *reply,
                                                struct samkv_error *err) SAMKV_MUST_USE;
SAMKV_API enum samkv_status samkv_client_import(struct samkv_client *, const struct samkv_import_options *, int fd,
                                                bool (*on_progress)(void *arg, const struct samkv_bundle_answer *),
                                                void *arg, struct samkv_reply *reply,
                                                struct samkv_error *err) SAMKV_MUST_USE;

/* Has the daemon make its data file as small as what it holds. on_progress as on_text above; false stops the waiting.
 */
SAMKV_API enum samkv_status samkv_client_compact(struct samkv_client *,
                                                 bool (*on_progress)(void *arg, const struct samkv_compact_answer *),
                                                 void *arg, struct samkv_reply *reply,
                                                 struct samkv_error *err) SAMKV_MUST_USE;

/* ------------------------------------------------------------------ for event loops */
/*
 * Submit gives a number for the request and never blocks. BUSY when as many are in flight as the daemon allows: process
 * first. Answers come in any order.
 *
 *   poll samkv_client_fd for POLLIN, and POLLOUT when samkv_client_wants_write, at most samkv_client_wait_ms
 *   samkv_client_process(client, &err)
 *   while (samkv_client_next(client, &reply)) { …; samkv_reply_deinit(&reply); }
 */
SAMKV_API enum samkv_status samkv_client_submit_ping(struct samkv_client *, uint64_t *request,
                                                     struct samkv_error *err) SAMKV_MUST_USE;
SAMKV_API enum samkv_status samkv_client_submit_ingest(struct samkv_client *, const struct samkv_document *,
                                                       uint64_t *request, struct samkv_error *err) SAMKV_MUST_USE;
SAMKV_API enum samkv_status samkv_client_submit_fetch(struct samkv_client *, const struct samkv_fetch_options *,
                                                      uint64_t *request, struct samkv_error *err) SAMKV_MUST_USE;
SAMKV_API enum samkv_status samkv_client_submit_ask(struct samkv_client *, const struct samkv_ask_options *,
                                                    uint64_t *request, struct samkv_error *err) SAMKV_MUST_USE;
SAMKV_API enum samkv_status samkv_client_submit_evaluate(struct samkv_client *, const struct samkv_evaluate_options *,
                                                         uint64_t *request, struct samkv_error *err) SAMKV_MUST_USE;
SAMKV_API enum samkv_status samkv_client_submit_list(struct samkv_client *, const char *collection, const char *after,
                                                     uint32_t limit, uint64_t *request,
                                                     struct samkv_error *err) SAMKV_MUST_USE;
SAMKV_API enum samkv_status samkv_client_submit_list_collections(struct samkv_client *, const char *after,
                                                                 uint32_t limit, uint64_t *request,
                                                                 struct samkv_error *err) SAMKV_MUST_USE;
SAMKV_API enum samkv_status samkv_client_submit_show(struct samkv_client *, const char *collection, const char *id,
                                                     uint64_t *request, struct samkv_error *err) SAMKV_MUST_USE;
SAMKV_API enum samkv_status samkv_client_submit_remove(struct samkv_client *, const char *collection,
                                                       const char *const *ids, size_t count, uint64_t *request,
                                                       struct samkv_error *err) SAMKV_MUST_USE;
SAMKV_API enum samkv_status samkv_client_submit_remove_collection(struct samkv_client *, const char *collection,
                                                                  uint64_t *request,
                                                                  struct samkv_error *err) SAMKV_MUST_USE;
SAMKV_API enum samkv_status samkv_client_submit_pin(struct samkv_client *, const char *collection,
                                                    const char *const *ids, size_t count, bool pin, uint64_t *request,
                                                    struct samkv_error *err) SAMKV_MUST_USE;
SAMKV_API enum samkv_status samkv_client_submit_configure(struct samkv_client *, const char *collection,
                                                          int64_t quota_bytes, int64_t ttl_s, uint64_t *request,
                                                          struct samkv_error *err) SAMKV_MUST_USE;
SAMKV_API enum samkv_status samkv_client_submit_share(struct samkv_client *, const char *collection, int64_t group,
                                                      int64_t mode, uint64_t *request,
                                                      struct samkv_error *err) SAMKV_MUST_USE;
SAMKV_API enum samkv_status samkv_client_submit_set_quality(struct samkv_client *, const char *collection,
                                                            const char *quality, double share, uint64_t *request,
                                                            struct samkv_error *err) SAMKV_MUST_USE;
SAMKV_API enum samkv_status samkv_client_submit_calibrate(struct samkv_client *, const struct samkv_calibrate_options *,
                                                          uint64_t *request, struct samkv_error *err) SAMKV_MUST_USE;
SAMKV_API enum samkv_status samkv_client_submit_gc(struct samkv_client *, uint64_t *request,
                                                   struct samkv_error *err) SAMKV_MUST_USE;
SAMKV_API enum samkv_status samkv_client_submit_status(struct samkv_client *, uint64_t *request,
                                                       struct samkv_error *err) SAMKV_MUST_USE;
SAMKV_API enum samkv_status samkv_client_submit_verify(struct samkv_client *, const char *collection, bool repair,
                                                       uint64_t *request, struct samkv_error *err) SAMKV_MUST_USE;

/* fd is needed until this returns only. Abandoning does not end these two; closing the client does. */
SAMKV_API enum samkv_status samkv_client_submit_export(struct samkv_client *, const struct samkv_export_options *,
                                                       int fd, uint64_t *request,
                                                       struct samkv_error *err) SAMKV_MUST_USE;
SAMKV_API enum samkv_status samkv_client_submit_import(struct samkv_client *, const struct samkv_import_options *,
                                                       int fd, uint64_t *request,
                                                       struct samkv_error *err) SAMKV_MUST_USE;
SAMKV_API enum samkv_status samkv_client_submit_status_quick(struct samkv_client *, uint32_t max_age_ms,
                                                             uint64_t *request, struct samkv_error *err) SAMKV_MUST_USE;
SAMKV_API enum samkv_status samkv_client_submit_trace(struct samkv_client *, uint64_t id, uint32_t limit,
                                                      uint64_t *request, struct samkv_error *err) SAMKV_MUST_USE;

SAMKV_API enum samkv_status samkv_client_submit_compact(struct samkv_client *, uint64_t *request,
                                                        struct samkv_error *err) SAMKV_MUST_USE;

/* Drops the answer of a request in flight, and unmaps device memory that came for it already; the daemon works on. Its
 * place is free again when that answer has come. */
SAMKV_API void samkv_client_abandon(struct samkv_client *, uint64_t request);

/* To poll; never to be read from. -1 after the connection ended. */
SAMKV_API int samkv_client_fd(const struct samkv_client *);
SAMKV_API bool samkv_client_wants_write(const struct samkv_client *);

/* Milliseconds until the next request times out; -1: never, as in poll. */
SAMKV_API int samkv_client_wait_ms(const struct samkv_client *);

/*
 * Moves what can be moved without blocking and completes requests. Device memory of fetches is mapped here, which takes
 * about a millisecond, and longer the first time on a GPU. Anything but OK is the connection's end: every request that
 * was in flight is then complete with that status.
 */
SAMKV_API enum samkv_status samkv_client_process(struct samkv_client *, struct samkv_error *err) SAMKV_MUST_USE;

/* The next finished request or piece; false when there is none. */
SAMKV_API bool samkv_client_next(struct samkv_client *, struct samkv_reply *out);

#ifdef __cplusplus
}
#endif
