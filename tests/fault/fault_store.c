/*
 * What the store does when its file is damaged or its disk fails, counted. Each case runs in a process of its own over
 * a copy of a small store, and reads everything that was ever acknowledged.
 *
 *   fault_store bits COUNT SEED       a bit flipped anywhere in data.mdb
 *   fault_store blocks COUNT SEED     4 KiB or 64 KiB of zeros, garbage, or another place's or an older time's bytes
 *   fault_store truncations STEP      cut at every multiple of STEP bytes, and a byte to either side
 *   fault_store worker DIR FROM STEPS LOG   ingests, removes and reads in DIR, and appends to LOG what was acknowledged
 *   fault_store check DIR LOG         reads everything that LOG says was acknowledged
 *
 *   fault_store big DIR GIB           makes a store of that size, of records that do not compress; for big_store.py
 *
 * Prints one JSON object. Outcomes of a case, the first that applies:
 *   crash       the process was ended by a signal, or hung
 *   wrong       bytes, a name or a list that nobody stored
 *   stuck       what was damaged could not be made whole again, although its tokens or its text were there
 *   partly      as salvaged, but of some document or name too little was left: to be ingested again
 *   salvaged    the store said at open that it is damaged; a salvage brought everything back
 *   ingested    some document or name was damaged so that it was to be ingested again; then all was whole
 *   healed      some block or index was damaged; rewritten, all was whole
 *   unaffected
 */
#include "tests/unit/store_fixture.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "daemon/base/log.h"
#include "daemon/store/salvage.h"

#define DOCUMENTS 8
#define ALIASES   400 /* names more than documents, so that the tree of names has branches */
#define LIMIT     ((uint64_t)64 << 20)
#define HANG_S    60

enum outcome { UNAFFECTED, HEALED, INGESTED, SALVAGED, PARTLY, STUCK, WRONG, CRASH, OUTCOMES };

static const char *const outcome_names[OUTCOMES] = {"unaffected", "healed", "ingested", "salvaged",
                                                    "partly",     "stuck",  "wrong",    "crash"};

static struct fixture_directory dir;
static struct fixture_document documents[DOCUMENTS];
static uint8_t *healthy, *older; /* the file with all documents; and as it was some transactions before */
static size_t healthy_bytes, older_bytes;

static void die(const char *what)
{
    perror(what);
    exit(2);
}

static const char *path_of(const char *directory, const char *name)
{
    static char path[4096];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    return path;
}

static uint8_t *read_file(const char *path, size_t *bytes)
{
    struct stat st;
    int fd = open(path, O_RDONLY);
    if (fd < 0 || fstat(fd, &st) != 0)
        die(path);
    uint8_t *all = malloc((size_t)st.st_size);
    if (!all || read(fd, all, (size_t)st.st_size) != st.st_size)
        die(path);
    close(fd);
    *bytes = (size_t)st.st_size;
    return all;
}

static void write_file(const char *path, const uint8_t *from, size_t bytes)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (fd < 0 || write(fd, from, bytes) != (ssize_t)bytes)
        die(path);
    close(fd);
}

/* ------------------------------------------------------------------ a small store */

static const struct samkv_kv_shape shape = {3, 2, 32, SAMKV_BF16};

static struct fixture_document document(uint32_t seed)
{
    struct fixture_document d;
    fixture_document_make(&d, seed, shape, 20 + 37 * (seed % 5), 16);
    return d;
}

static void id_of(uint32_t i, char out[32])
{
    snprintf(out, 32, i < DOCUMENTS ? "document-%u" : "alias-%03u", i);
}

static struct samkv_store *open_store(const char *path, enum samkv_status *st)
{
    const char *limit = getenv("FAULT_LIMIT");
    struct samkv_store_options o = {
        .path = path, .max_bytes = limit ? strtoull(limit, NULL, 10) : LIMIT, .codec = SAMKV_CODEC_ZSTD};
    struct samkv_store *s;
    struct samkv_error err = {0};
    *st = samkv_store_open(&o, &s, &err);
    return s;
}

static void must(enum samkv_status st, const char *what)
{
    if (st == SAMKV_OK)
        return;
    fprintf(stderr, "fault_store: %s: %s\n", what, samkv_status_name(st));
    exit(2);
}

static void make_store(void)
{
    enum samkv_status st;
    snprintf(dir.path, sizeof dir.path, "%s/samkv-fault-XXXXXX", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    if (!mkdtemp(dir.path))
        die(dir.path);
    struct samkv_store *s = open_store(dir.path, &st);
    must(st, "open");
    for (uint32_t i = 0; i < DOCUMENTS; i++)
        documents[i] = document(i);
    struct samkv_collection c = {.name = "c",
                                 .fingerprint = {1, 2, 3},
                                 .shape = shape,
                                 .heads = documents[0].m.heads,
                                 .block_tokens = 16,
                                 .init_tokens = 16,
                                 .local_tokens = 16};
    must(samkv_store_collection_put(s, &c, NULL), "collection");
    for (uint32_t i = 0; i < DOCUMENTS + ALIASES; i++) {
        char id[32];
        id_of(i, id);
        if (i == DOCUMENTS) {
            struct fixture_document gone = document(77); /* leaves free pages behind */
            must(fixture_ingest(s, &gone, "gone", NULL), "ingest");
            must(samkv_store_name_remove(s, "c", "gone", NULL), "remove");
            fixture_document_free(&gone);
            older = read_file(path_of(dir.path, "data.mdb"), &older_bytes);
        }
        must(fixture_ingest(s, &documents[i % DOCUMENTS], id, NULL), "ingest");
    }
    samkv_store_close(s);
    healthy = read_file(path_of(dir.path, "data.mdb"), &healthy_bytes);
}

/* ------------------------------------------------------------------ one case, in the child */

static void worst(enum outcome *o, enum outcome seen)
{
    if (seen > *o)
        *o = seen;
}

struct listing {
    uint32_t count;
    bool unknown;
    bool gone; /* the name that was removed: only a salvage may bring it back */
};

static bool on_name(void *arg, const struct samkv_name *name)
{
    struct listing *l = arg;
    char id[32];
    bool known = false;
    if (strncmp(name->id, "salvaged/", 9) == 0)
        return true;
    if (strcmp(name->id, "gone") == 0) {
        l->gone = true;
        return true;
    }
    for (uint32_t i = 0; i < DOCUMENTS + ALIASES && !known; i++) {
        id_of(i, id);
        known = strcmp(id, name->id) == 0 && memcmp(&name->key, &documents[i % DOCUMENTS].m.key, sizeof name->key) == 0;
    }
    l->count++;
    l->unknown |= !known;
    if (!known && getenv("FAULT_SAY"))
        fprintf(stderr, "unknown: %s\n", name->id);
    return true;
}

/* What a repair does: records that cannot be read are written anew. False when something else is wrong too. */
static bool rewrite_damaged(struct samkv_store *s, const struct fixture_document *d)
{
    struct samkv_manifest m;
    struct samkv_snapshot *sn;
    if (samkv_snapshot_begin(s, &sn, NULL) != SAMKV_OK)
        return false;
    int32_t *tokens = malloc(d->m.tokens * sizeof *tokens);
    enum samkv_status st = samkv_snapshot_manifest(sn, &d->m.key, &m, NULL);
    if (st == SAMKV_OK)
        st = samkv_snapshot_tokens(sn, &d->m.key, tokens, d->m.tokens, NULL); /* without them nothing is recomputed */
    free(tokens);
    for (uint32_t b = 0; st == SAMKV_OK && b < m.blocks; b++) {
        uint8_t *bytes;
        void **list = fixture_block(d, b, false, &bytes);
        enum samkv_status got = samkv_snapshot_block(sn, &m, b, list, NULL);
        free(list), free(bytes);
        if (got == SAMKV_OK)
            continue;
        list = fixture_block(d, b, true, &bytes);
        st = got == SAMKV_CORRUPT ? samkv_store_block_rewrite(s, &m, b, (const void *const *)list, NULL) : got;
        free(list), free(bytes);
    }
    size_t count = fixture_index_count(&d->m);
    float *index = malloc(count * sizeof *index);
    for (uint32_t l = 0; st == SAMKV_OK && l < m.shape.layers; l++) {
        if (samkv_snapshot_index(sn, &m, l, index, count, NULL) == SAMKV_OK)
            continue;
        fixture_fill(SAMKV_F32, (uint64_t)d->seed << 32 | 0xffff0000u | l, count, index);
        st = samkv_store_index_rewrite(s, &m, l, index, count, NULL);
    }
    free(index);
    samkv_snapshot_end(sn);
    return st == SAMKV_OK;
}

/* Of an alias only where it leads: the document was read under its first name. */
static enum samkv_status check_alias(struct samkv_store *s, const char *id, const struct fixture_document *d)
{
    struct samkv_snapshot *sn;
    struct samkv_name name;
    enum samkv_status st = samkv_snapshot_begin(s, &sn, NULL);
    if (st != SAMKV_OK)
        return st;
    st = samkv_snapshot_name(sn, "c", id, &name, NULL);
    if (st == SAMKV_OK) {
        st = memcmp(&name.key, &d->m.key, sizeof name.key) ? SAMKV_MISMATCH : SAMKV_OK;
        samkv_name_deinit(&name);
    }
    samkv_snapshot_end(sn);
    return st;
}

static enum samkv_status check(struct samkv_store *s, uint32_t i, enum outcome *o)
{
    char id[32];
    id_of(i, id);
    const struct fixture_document *d = &documents[i % DOCUMENTS];
    enum samkv_status st = i < DOCUMENTS ? fixture_check_name(s, id, d) : check_alias(s, id, d);
    if (st == SAMKV_MISMATCH && getenv("FAULT_SAY"))
        fprintf(stderr, "wrong: %s\n", id);
    if (st == SAMKV_MISMATCH)
        worst(o, WRONG);
    return st;
}

/* Reads name by name; heals; and what cannot be healed is removed and ingested again, as the daemon's texts say. */
static void read_and_mend(struct samkv_store *s, enum outcome *o)
{
    for (uint32_t i = 0; i < DOCUMENTS + ALIASES && *o < STUCK; i++) {
        if (check(s, i, o) == SAMKV_OK)
            continue;
        char id[32];
        id_of(i, id);
        const struct fixture_document *d = &documents[i % DOCUMENTS];
        if (rewrite_damaged(s, d) && check(s, i, o) == SAMKV_OK) {
            worst(o, HEALED);
            continue;
        }
        worst(o, INGESTED);
        enum samkv_status st = fixture_ingest(s, d, id, NULL);
        if (st == SAMKV_OK && check(s, i, o) == SAMKV_OK)
            continue;
        /* Its tokens are damaged but it is named: it has to go first, with all its names. */
        for (uint32_t n = i % DOCUMENTS; n < DOCUMENTS + ALIASES; n += DOCUMENTS) {
            id_of(n, id);
            st = samkv_store_name_remove(s, "c", id, NULL);
        }
        for (uint32_t n = i % DOCUMENTS; n < DOCUMENTS + ALIASES; n += DOCUMENTS) {
            id_of(n, id);
            st = fixture_ingest(s, d, id, NULL);
            if (st != SAMKV_OK) {
                if (getenv("FAULT_SAY"))
                    fprintf(stderr, "ingest %s: %s\n", id, samkv_status_name(st));
                worst(o, STUCK);
            }
        }
        st = check(s, i, o);
        if (st != SAMKV_OK) {
            if (getenv("FAULT_SAY"))
                fprintf(stderr, "name %u after all: %s\n", i, samkv_status_name(st));
            worst(o, STUCK);
        }
    }
}

static bool list_is_right(struct samkv_store *s, enum outcome *o, bool whole, bool salvaged)
{
    struct samkv_snapshot *sn;
    struct listing l = {0};
    struct samkv_error err = {0};
    enum samkv_status st = samkv_snapshot_begin(s, &sn, NULL);
    if (st == SAMKV_OK) {
        st = samkv_snapshot_each_name(sn, "c", "", on_name, &l, &err);
        samkv_snapshot_end(sn);
    }
    if (l.unknown || (l.gone && !salvaged))
        worst(o, WRONG);
    bool right = st == SAMKV_OK && l.count == DOCUMENTS + ALIASES;
    if (!right && whole) {
        if (getenv("FAULT_SAY"))
            fprintf(stderr, "list: %s, %u names: %s\n", samkv_status_name(st), l.count, err.text);
        worst(o, STUCK);
    }
    return right;
}

/* A store that was refused: what comes back by itself, and whether the rest can be ingested again. */
static enum outcome run_salvage(void)
{
    struct fixture_directory to = dir;
    struct samkv_salvage_report report;
    struct samkv_error err = {0};
    enum samkv_status st;
    enum outcome o = SALVAGED;
    strcat(to.path, ".new"); /* NOLINT: there is room for a name of mkdtemp's and this */
    st = samkv_store_salvage(dir.path, to.path, &report, &err);
    struct samkv_store *s = st == SAMKV_OK ? open_store(to.path, &st) : NULL;
    if (st != SAMKV_OK) {
        fprintf(stderr, "fault_store: salvage: %s: %s\n", samkv_status_name(st), err.text);
        o = STUCK;
    } else {
        enum outcome rest = UNAFFECTED;
        list_is_right(s, &rest, false, true);
        read_and_mend(s, &rest);
        worst(&o, rest == INGESTED ? PARTLY : rest);
        samkv_store_close(s);
    }
    fixture_directory_remove(&to);
    return o;
}

static enum outcome run_case(void)
{
    enum samkv_status st;
    enum outcome o = UNAFFECTED;
    struct samkv_store *s = open_store(dir.path, &st);
    if (st != SAMKV_OK && getenv("FAULT_SAY"))
        fprintf(stderr, "refused\n");
    if (st != SAMKV_OK)
        return st == SAMKV_CORRUPT || st == SAMKV_MISMATCH ? run_salvage() : STUCK;
    list_is_right(s, &o, false, false);
    read_and_mend(s, &o);
    uint64_t removed; /* as verify --repair does */
    struct samkv_error err = {0};
    st = samkv_store_damaged_names_remove(s, &removed, &err);
    if (st != SAMKV_OK) {
        fprintf(stderr, "damaged names: %s: %s\n", samkv_status_name(st), err.text);
        worst(&o, STUCK);
    }
    list_is_right(s, &o, true, false);
    samkv_store_close(s);
    s = open_store(dir.path, &st);
    if (st != SAMKV_OK) {
        if (getenv("FAULT_SAY"))
            fprintf(stderr, "open again: %s\n", samkv_status_name(st));
        return STUCK;
    }
    for (uint32_t i = 0; i < DOCUMENTS + ALIASES; i++) {
        st = check(s, i, &o);
        if (st != SAMKV_OK) {
            fprintf(stderr, "name %u after a restart: %s\n", i, samkv_status_name(st));
            worst(&o, STUCK);
        }
    }
    samkv_store_close(s);
    return o;
}

/* Over `bytes`, in a child. */
static enum outcome outcome_of(const uint8_t *bytes, size_t count)
{
    int status;
    write_file(path_of(dir.path, "data.mdb"), bytes, count);
    pid_t child = fork();
    if (child < 0)
        die("fork");
    if (child == 0) {
        alarm(HANG_S);
        _exit(run_case());
    }
    if (waitpid(child, &status, 0) != child)
        die("waitpid");
    return WIFEXITED(status) && WEXITSTATUS(status) < CRASH ? (enum outcome)WEXITSTATUS(status) : CRASH;
}

/* ------------------------------------------------------------------ classes of cases */

struct tally {
    uint64_t cases, of[OUTCOMES];
};

static void count(struct tally *t, enum outcome o, const char *what, uint64_t where)
{
    t->cases++;
    t->of[o]++;
    if (o >= STUCK || getenv("FAULT_SAY"))
        fprintf(stderr, "fault_store: %s at %llu: %s\n", what, (unsigned long long)where, outcome_names[o]);
}

static int report(const char *class, const struct tally *t)
{
    printf("{\"class\": \"%s\", \"cases\": %llu", class, (unsigned long long)t->cases);
    for (int i = 0; i < OUTCOMES; i++)
        printf(", \"%s\": %llu", outcome_names[i], (unsigned long long)t->of[i]);
    printf("}\n");
    return t->of[WRONG] || t->of[CRASH] || t->of[STUCK] ? 1 : 0;
}

static int bits(uint64_t cases, uint64_t seed)
{
    struct tally t = {0};
    const char *one = getenv("FAULT_AT");
    uint8_t *bytes = malloc(healthy_bytes);
    for (uint64_t i = 0; i < cases; i++) {
        uint64_t bit = one ? strtoull(one, NULL, 10) : fixture_random(&seed) % (8 * healthy_bytes);
        memcpy(bytes, healthy, healthy_bytes);
        bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
        count(&t, outcome_of(bytes, healthy_bytes), "bit", bit);
    }
    free(bytes);
    return report("bits", &t);
}

static int blocks(uint64_t cases, uint64_t seed)
{
    static const char *const kinds[] = {"zeros", "garbage", "another place", "an older time"};
    struct tally t = {0};
    uint8_t *bytes = malloc(healthy_bytes);
    for (uint64_t i = 0; i < cases; i++) {
        size_t block = i % 8 < 4 ? 4096 : 65536, kind = i % 4;
        size_t end = kind == 3 ? (older_bytes < healthy_bytes ? older_bytes : healthy_bytes) : healthy_bytes;
        size_t at = fixture_random(&seed) % (end / 4096) * 4096, from = fixture_random(&seed) % (end / 4096) * 4096;
        size_t n = block < end - at ? block : end - at, limit = block < end - from ? block : end - from;
        if (kind == 2 && limit < n)
            n = limit;
        memcpy(bytes, healthy, healthy_bytes);
        for (size_t b = 0; kind == 1 && b < n; b++)
            bytes[at + b] = (uint8_t)fixture_random(&seed);
        if (kind == 0)
            memset(bytes + at, 0, n);
        else if (kind == 2)
            memcpy(bytes + at, healthy + from, n);
        else if (kind == 3)
            memcpy(bytes + at, older + at, n);
        const char *only = getenv("FAULT_AT");
        if (!only || strtoull(only, NULL, 10) == at)
            count(&t, outcome_of(bytes, healthy_bytes), kinds[kind], at);
    }
    free(bytes);
    return report("blocks", &t);
}

static int truncations(size_t step)
{
    struct tally t = {0};
    for (size_t at = 0; at < healthy_bytes; at += step)
        for (int by = -1; by <= 1; by++)
            if (at || by >= 0)
                count(&t, outcome_of(healthy, at + (size_t)by), "cut", at + (size_t)by);
    return report("truncations", &t);
}

/* ------------------------------------------------------------------ steps under a disk that fails */

#define NAMES 10

enum { NOT_BEGUN, BEGUN, FAILED, ACKNOWLEDGED };

static bool step_removes(uint32_t i)
{
    return i % 6 == 5;
}

static void step_name(uint32_t i, char out[32])
{
    snprintf(out, 32, "n%u", i * 7 % NAMES);
}

static enum samkv_status do_step(struct samkv_store *s, uint32_t i, struct samkv_error *err)
{
    char id[32];
    step_name(i, id);
    if (step_removes(i)) {
        enum samkv_status st = samkv_store_name_remove(s, "c", id, err);
        return st == SAMKV_NOT_FOUND ? SAMKV_OK : st;
    }
    struct fixture_document d = document(i);
    enum samkv_status st = fixture_ingest(s, &d, id, err);
    fixture_document_free(&d);
    return st;
}

/* What the log says of each step: "B number" when it was begun, then "A number" or "F number". */
static uint8_t *read_log(const char *path, uint32_t *count)
{
    char kind;
    unsigned number;
    *count = 0;
    uint8_t *steps = calloc(1 << 20, 1);
    FILE *f = fopen(path, "r");
    while (f && fscanf(f, " %c %u", &kind, &number) == 2 && number < 1 << 20) {
        steps[number] = kind == 'A' ? ACKNOWLEDGED : kind == 'F' ? FAILED : BEGUN;
        if (number >= *count)
            *count = number + 1;
    }
    if (f)
        fclose(f);
    return steps;
}

static void say(int log, char kind, uint32_t i)
{
    char line[32];
    int n = snprintf(line, sizeof line, "%c %u\n", kind, i);
    if (write(log, line, (size_t)n) != n)
        die("log");
}

/* What is stored under a name after step i. */
static enum outcome compare_with_step(struct samkv_store *s, const char *id, uint32_t i, bool mend)
{
    struct fixture_document d = document(i);
    enum samkv_status st = fixture_check_name(s, id, &d);
    if (st == SAMKV_CORRUPT && mend && rewrite_damaged(s, &d))
        st = fixture_check_name(s, id, &d);
    fixture_document_free(&d);
    if (step_removes(i) ? st == SAMKV_NOT_FOUND : st == SAMKV_OK)
        return UNAFFECTED;
    return st == SAMKV_MISMATCH || st == SAMKV_NOT_FOUND || st == SAMKV_OK ? WRONG : STUCK;
}

/* Under name n must be what its last acknowledged step left, or one that came later and may have got through. */
static enum outcome check_steps_name(struct samkv_store *s, const uint8_t *steps, uint32_t count, uint32_t n, bool mend)
{
    char id[32], other[32];
    snprintf(id, sizeof id, "n%u", n);
    for (uint32_t i = count; i-- > 0;) {
        step_name(i, other);
        if (strcmp(id, other) != 0 || steps[i] == NOT_BEGUN)
            continue;
        enum outcome o = compare_with_step(s, id, i, mend);
        if (o != WRONG || steps[i] == ACKNOWLEDGED)
            return o;
    }
    return compare_with_step(s, id, 5, mend); /* no step of this name is acknowledged: as after a removal */
}

static int check_log(const char *path, const char *log)
{
    uint32_t count;
    enum samkv_status st;
    uint8_t *steps = read_log(log, &count);
    struct samkv_store *s = open_store(path, &st);
    enum outcome o = UNAFFECTED;
    uint32_t acknowledged = 0;
    if (st != SAMKV_OK)
        o = STUCK;
    for (uint32_t i = 0; i < count; i++)
        acknowledged += steps[i] == ACKNOWLEDGED;
    for (uint32_t n = 0; n < NAMES && st == SAMKV_OK; n++) {
        enum outcome of = check_steps_name(s, steps, count, n, true);
        if (of > HEALED)
            fprintf(stderr, "fault_store: name n%u: %s\n", n, outcome_names[of]);
        worst(&o, of);
    }
    if (s)
        samkv_store_close(s);
    printf("{\"steps\": %u, \"acknowledged\": %u, \"outcome\": \"%s\"}\n", count, acknowledged, outcome_names[o]);
    free(steps);
    return o > HEALED ? 1 : 0;
}

/* Steps until `steps` are done; after a failure it goes on with the next, as clients would. */
static int work(const char *path, uint32_t from, uint32_t steps, const char *log_path)
{
    enum samkv_status st;
    struct samkv_error err;
    int log = open(log_path, O_WRONLY | O_CREAT | O_APPEND, 0600);
    struct samkv_store *s = open_store(path, &st);
    if (st != SAMKV_OK)
        return 3; /* refused, which is an answer */
    signal(SIGXFSZ, SIG_IGN);
    for (uint32_t i = from; i < from + steps; i++) {
        uint32_t count;
        say(log, 'B', i);
        st = do_step(s, i, &err);
        say(log, st == SAMKV_OK ? 'A' : 'F', i);
        if (st != SAMKV_OK && getenv("FAULT_SAY"))
            fprintf(stderr, "step %u: %s: %s\n", i, samkv_status_name(st), err.text);
        uint8_t *known = read_log(log_path, &count);
        for (uint32_t n = 0; n < NAMES; n++)
            if (check_steps_name(s, known, count, n, true) == WRONG) {
                fprintf(stderr, "fault_store: wrong bytes or name n%u after step %u\n", n, i);
                return 1;
            }
        free(known);
    }
    samkv_store_close(s);
    return 0;
}

/* ------------------------------------------------------------------ a large store */

#define BIG_TOKENS 1024

/* Documents in the shape of a model of 135M parameters, stored raw: 47 MiB in 64 blocks each. */
static void put_big_document(struct samkv_store *s, uint32_t number, const uint8_t *noise, size_t noise_bytes)
{
    const struct samkv_kv_shape big = {30, 3, 64, SAMKV_F32};
    struct fixture_document d;
    struct samkv_writer *w;
    uint64_t state = number;
    char id[32];
    fixture_document_make(&d, number, big, BIG_TOKENS, 16);
    must(samkv_writer_begin(s, &d.m, d.tokens, &w, NULL), "begin");
    for (uint32_t b = 0; b < d.m.blocks; b++) {
        const void *src[60];
        size_t piece = 16 * 3 * 64 * sizeof(float), from = fixture_random(&state) % (noise_bytes - 60 * piece);
        for (size_t i = 0; i < 60; i++)
            src[i] = noise + from + i * piece;
        must(samkv_writer_block(w, b, src, NULL), "block");
    }
    for (uint32_t l = 0; l < big.layers; l++)
        must(fixture_write_index(w, &d, l, NULL), "index");
    snprintf(id, sizeof id, "document-%u", number);
    must(samkv_writer_commit(w, "c", id, NULL, NULL), "commit");
    fixture_document_free(&d);
}

static int make_big(const char *path, double gib)
{
    struct samkv_store_options o = {.path = path, .codec = SAMKV_CODEC_RAW};
    struct samkv_store *s;
    struct samkv_store_stats stats;
    size_t noise_bytes = (size_t)8 << 20;
    uint64_t state = 1;
    uint8_t *noise = malloc(noise_bytes);
    for (size_t i = 0; noise && i < noise_bytes; i += 8) {
        uint64_t r = fixture_random(&state);
        memcpy(noise + i, &r, sizeof r);
    }
    must(samkv_store_open(&o, &s, NULL), "open");
    struct samkv_collection c = {.name = "c",
                                 .fingerprint = {1, 2, 3},
                                 .shape = {30, 3, 64, SAMKV_F32},
                                 .heads = 6,
                                 .block_tokens = 16,
                                 .init_tokens = 16,
                                 .local_tokens = 16};
    must(samkv_store_collection_put(s, &c, NULL), "collection");
    uint32_t count = (uint32_t)(gib * 1073741824.0 / 48.7e6) + 1;
    for (uint32_t i = 0; i < count; i++)
        put_big_document(s, i, noise, noise_bytes);
    must(samkv_store_stats(s, &stats, NULL), "stats");
    samkv_store_close(s);
    free(noise);
    printf("{\"documents\": %u, \"file_bytes\": %llu}\n", count, (unsigned long long)stats.bytes_file);
    return 0;
}

int main(int argc, char **argv)
{
    samkv_log_set_level(SAMKV_LOG_ERROR);
    if (argc == 4 && !strcmp(argv[1], "check"))
        return check_log(argv[2], argv[3]);
    if (argc == 6 && !strcmp(argv[1], "worker"))
        return work(argv[2], (uint32_t)atoi(argv[3]), (uint32_t)atoi(argv[4]), argv[5]);
    if (argc == 4 && !strcmp(argv[1], "big"))
        return make_big(argv[2], atof(argv[3]));
    make_store();
    int rc = 2;
    if (argc == 4 && !strcmp(argv[1], "bits"))
        rc = bits(strtoull(argv[2], NULL, 10), strtoull(argv[3], NULL, 10));
    else if (argc == 4 && !strcmp(argv[1], "blocks"))
        rc = blocks(strtoull(argv[2], NULL, 10), strtoull(argv[3], NULL, 10));
    else if (argc == 3 && !strcmp(argv[1], "truncations"))
        rc = truncations((size_t)atoi(argv[2]));
    else
        fprintf(stderr, "fault_store: see its source for what it does\n");
    fixture_directory_remove(&dir);
    return rc;
}
