/*
 * A bundle: the first byte says how it is read (scanned, checked, imported; in pieces; whether the stream can skip) and
 * whether its checksums are made to fit before, which leads behind them. What a check calls whole, a scan does too, and
 * an import takes.
 */
#include <dirent.h>
#include <unistd.h>

#include "daemon/base/log.h"
#include "daemon/store/bundle.h"
#include "tests/fuzz/bundle_seal.h"
#include "tests/fuzz/fuzz.h"

enum { SEAL = 1, SKIPS = 2, PIECES = 4, IMPORT = 0x18 }; /* into a store: both bits, since it takes long */

struct stream {
    const uint8_t *data;
    size_t count, at, piece;
};

static enum samkv_status stream_read(void *arg, void *bytes, size_t count, size_t *got, struct samkv_error *err)
{
    struct stream *s = arg;
    (void)err;
    size_t n = s->count - s->at;
    n = n < count ? n : count;
    n = s->piece && n > s->piece ? s->piece : n;
    if (n)
        memcpy(bytes, s->data + s->at, n);
    s->at += n;
    *got = n;
    return SAMKV_OK;
}

static enum samkv_status stream_skip(void *arg, uint64_t count, struct samkv_error *err)
{
    struct stream *s = arg;
    (void)err;
    s->at = count > s->count - s->at ? s->count : s->at + (size_t)count;
    return SAMKV_OK;
}

static struct samkv_bundle_stream rewound(struct stream *s, int how)
{
    s->at = 0;
    s->piece = how & PIECES ? 11 : 0;
    return (struct samkv_bundle_stream){.read = stream_read, .skip = how & SKIPS ? stream_skip : NULL, .arg = s};
}

static void check_refusal(enum samkv_status status, const struct samkv_error *err)
{
    FUZZ_REQUIRE(status == SAMKV_CORRUPT || status == SAMKV_INVALID || status == SAMKV_UNSUPPORTED ||
                     status == SAMKV_TOO_LARGE || status == SAMKV_MISMATCH,
                 "%s: %s", samkv_status_name(status), err->text);
    fuzz_check_error(status, err);
}

static void remove_folder(const char *path)
{
    DIR *folder = opendir(path);
    for (struct dirent *e; folder && (e = readdir(folder));)
        unlinkat(dirfd(folder), e->d_name, 0);
    if (folder)
        closedir(folder);
    rmdir(path);
}

/* Into a store of its own. */
static void import(struct stream *s, int how, bool is_whole)
{
    char path[64];
    snprintf(path, sizeof path, "%s/samkv-fuzz-XXXXXX", access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
    FUZZ_REQUIRE(mkdtemp(path), "no folder");
    const struct samkv_store_options options = {.path = path, .max_bytes = 16 << 20, .compact = SAMKV_COMPACT_OFF};
    struct samkv_store *store;
    struct samkv_error err = {0};
    FUZZ_REQUIRE(!samkv_store_open(&options, &store, &err), "%s", err.text);
    const struct samkv_bundle_options all = {0};
    const struct samkv_bundle_host host = {0};
    struct samkv_bundle_progress done = {0};
    const struct samkv_bundle_stream stream = rewound(s, how);
    enum samkv_status status = samkv_bundle_import(store, &all, &stream, &host, &done, &err);
    bool no_room = status == SAMKV_FULL || status == SAMKV_TOO_LARGE; /* for the store, or the quota in the bundle */
    if (status && !no_room)
        check_refusal(status, &err);
    FUZZ_REQUIRE(!status || !is_whole || no_room, "a whole bundle is refused: %s", err.text);
    struct samkv_store_stats stats;
    FUZZ_REQUIRE(!samkv_store_stats(store, &stats, &err), "%s", err.text);
    /* What is counted is there; and perhaps a name whose document was there before its copy turned out to be damaged.
     */
    FUZZ_REQUIRE(stats.names <= done.names + 1, "%llu names of %llu", (unsigned long long)stats.names,
                 (unsigned long long)done.names);
    samkv_store_close(store);
    remove_folder(path);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size)
        return 0;
    samkv_log_set_level(SAMKV_LOG_ERROR);
    int how = data[0];
    uint8_t *bytes = fuzz_copy(data + 1, size - 1);
    if (how & SEAL)
        bundle_seal(bytes, size - 1);
    struct stream s = {.data = bytes, .count = size - 1};
    struct samkv_bundle_stream stream = rewound(&s, how);
    struct samkv_bundle_progress progress = {0};
    struct samkv_bundle_state state = {0};
    struct samkv_error err = {0};
    heap_begin();
    enum samkv_status status = samkv_bundle_check(&stream, NULL, NULL, NULL, &progress, &err);
    if (status)
        check_refusal(status, &err);
    stream = rewound(&s, how);
    enum samkv_status scanned = samkv_bundle_scan(&stream, NULL, NULL, &state, &err);
    if (scanned)
        check_refusal(scanned, &err);
    FUZZ_REQUIRE(status || (!scanned && state.complete && state.bytes == size - 1), "whole, and not");
    FUZZ_REQUIRE(scanned || state.bytes <= size - 1, "%llu bytes", (unsigned long long)state.bytes);
    fuzz_check_heap(size, 16, 3 << 20);
    if ((how & IMPORT) == IMPORT)
        import(&s, how, status == SAMKV_OK);
    free(bytes);
    return 0;
}
