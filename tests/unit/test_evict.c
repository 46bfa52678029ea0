#include "tests/unit/limits_fixture.h"

#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "daemon/store/writer.h"

static struct fixture_directory dir;
static struct samkv_store *store;
static struct samkv_error err;

#define TOKENS 64 /* about 256 KiB */

static void setup(void)
{
    signal(SIGXFSZ, SIG_IGN);
    fixture_directory_make(&dir);
}

static void teardown(void)
{
    samkv_store_close(store);
    fixture_directory_remove(&dir);
}

/* After every document: the limit, the document itself, and that no name leads nowhere. */
START_TEST(the_limit_holds_at_every_moment)
{
    static const uint64_t limits[] = {3 << 20, (9 << 20) + 12345, 5 << 20};
    const uint64_t limit = limits[_i];
    uint64_t random = 7 + (uint64_t)_i;
    store = limits_open(&dir, (struct samkv_store_options){.max_bytes = limit, .evict = true});
    FIXTURE_OK(limits_put(store, 0, TOKENS, &err));
    limits_pin(store, 0, true);
    uint32_t sizes[300];
    for (uint32_t i = 1; i < 120; i++) {
        sizes[i] = 1 + (uint32_t)(fixture_random(&random) % (2 * TOKENS));
        FIXTURE_OK(limits_put(store, i, sizes[i], &err));
        ck_assert_uint_le(limits_file_bytes(&dir), limit);
        ck_assert_uint_le(fixture_stats(store).bytes_used, limit);
        FIXTURE_OK(limits_check(store, i, sizes[i]));
        if (i % 16 == 0)
            limits_use(store, 1 + (uint32_t)(fixture_random(&random) % i), TOKENS, 1);
    }
    FIXTURE_OK(limits_check(store, 0, TOKENS));
    struct samkv_store_stats stats = fixture_stats(store);
    ck_assert_uint_gt(stats.evictions, 20);
    ck_assert_uint_gt(stats.bytes_used, limit / 2); /* it was used */
    uint32_t there = 0;
    for (uint32_t i = 1; i < 120; i++) {
        enum samkv_status st = limits_check(store, i, sizes[i]);
        ck_assert_msg(st == SAMKV_OK || st == SAMKV_NOT_FOUND, "%u: %s", i, samkv_status_name(st));
        there += st == SAMKV_OK;
    }
    ck_assert_uint_eq(there + 1, stats.documents);
    ck_assert_uint_eq(stats.names, stats.documents);
    ck_assert_uint_eq(limits_stats(store, "c").bytes_stored, stats.bytes_stored);
}
END_TEST

START_TEST(what_is_used_stays_longer)
{
    store = limits_open(&dir, (struct samkv_store_options){.max_bytes = 4 << 20, .evict = true});
    for (uint32_t i = 0; i < 10; i++)
        FIXTURE_OK(limits_put(store, i, TOKENS, &err));
    ck_assert_uint_eq(fixture_stats(store).evictions, 0);
    for (uint32_t i = 0; i < 10; i += 3)
        limits_use(store, i, TOKENS, 3);
    for (uint32_t i = 100; i < 140; i++)
        FIXTURE_OK(limits_put(store, i, TOKENS, &err));
    for (uint32_t i = 0; i < 10; i++)
        ck_assert_int_eq(limits_check(store, i, TOKENS), i % 3 == 0 ? SAMKV_OK : SAMKV_NOT_FOUND);
    /* Of those that nobody used the older ones went. */
    FIXTURE_OK(limits_check(store, 139, TOKENS));
    ck_assert_int_eq(limits_check(store, 100, TOKENS), SAMKV_NOT_FOUND);
    uint64_t uses;
    int64_t used;
    struct fixture_document d = limits_document(3, TOKENS);
    samkv_store_document_usage(store, &d.m.key, &uses, &used);
    ck_assert_uint_eq(uses, 3);
    ck_assert_int_eq(used, limits_now(NULL));
    fixture_document_free(&d);
}
END_TEST

START_TEST(pins_survive_and_can_fill_a_store)
{
    store = limits_open(&dir, (struct samkv_store_options){.max_bytes = 5 << 20, .evict = true});
    uint32_t pinned = 0;
    enum samkv_status st;
    while ((st = limits_put(store, pinned, TOKENS, &err)) == SAMKV_OK && pinned < 100)
        limits_pin(store, pinned++, true);
    ck_assert_msg(st == SAMKV_TOO_LARGE || st == SAMKV_FULL, "%s", samkv_status_name(st));
    ck_assert_uint_ge(pinned, 10);
    ck_assert_uint_eq(fixture_stats(store).evictions, 0);
    for (uint32_t i = 0; i < pinned; i++)
        FIXTURE_OK(limits_check(store, i, TOKENS));
    limits_pin(store, 3, false);
    for (uint32_t i = 1000; i < 1003; i++)
        FIXTURE_OK(limits_put(store, i, TOKENS / 2, &err));
    FIXTURE_OK(limits_check(store, 1002, TOKENS / 2));
    ck_assert_int_eq(limits_check(store, 3, TOKENS), SAMKV_NOT_FOUND);
    for (uint32_t i = 0; i < pinned; i++)
        if (i != 3)
            FIXTURE_OK(limits_check(store, i, TOKENS));
    ck_assert_int_eq(samkv_store_pin(store, "c", "nobody", true, &err), SAMKV_NOT_FOUND);
    /* A name that is put again keeps its pin, whatever it leads to. */
    struct fixture_document other = limits_document(1002, TOKENS / 2);
    FIXTURE_OK(samkv_store_name_put(store, "c", "5", NULL, &other.m.key, &err));
    for (uint32_t i = 2000; i < 2010; i++)
        FIXTURE_OK(limits_put(store, i, TOKENS / 4, &err));
    FIXTURE_OK(fixture_check_name(store, "5", &other));
    fixture_document_free(&other);
}
END_TEST

/* As an import puts them: they count from then on, not from the next start. */
START_TEST(names_that_bring_their_pin_and_time)
{
    store = limits_open(&dir, (struct samkv_store_options){.max_bytes = 4 << 20, .evict = true});
    struct fixture_document d[3];
    struct samkv_name name = {.pinned = true, .put_unix_s = 5};
    for (int i = 0; i < 3; i++)
        d[i] = limits_document(500 + (uint32_t)i, TOKENS);
    FIXTURE_OK(fixture_ingest(store, &d[0], "other", &err));
    name.key = d[0].m.key;
    snprintf(name.id, sizeof name.id, "named");
    FIXTURE_OK(samkv_store_name_put_as(store, "c", &name, &err));
    struct samkv_writer *w;
    FIXTURE_OK(samkv_writer_begin(store, &d[1].m, d[1].tokens, &w, &err));
    for (uint32_t b = 0; b < d[1].m.blocks; b++)
        FIXTURE_OK(fixture_write_block(w, &d[1], b, &err));
    for (uint32_t l = 0; l < limits_shape.layers; l++)
        FIXTURE_OK(fixture_write_index(w, &d[1], l, &err));
    name.key = d[1].m.key;
    snprintf(name.id, sizeof name.id, "written");
    FIXTURE_OK(samkv_writer_commit_as(w, "c", &name, &err));
    for (uint32_t i = 0; i < 40; i++)
        FIXTURE_OK(limits_put(store, i, TOKENS, &err));
    ck_assert_uint_gt(fixture_stats(store).evictions, 10);
    FIXTURE_OK(fixture_check_name(store, "named", &d[0]));
    FIXTURE_OK(fixture_check_name(store, "written", &d[1]));
    /* And a quota holds for them. */
    limits_collection(store, "small", 200 << 10, 0);
    for (uint32_t i = 38; i < 40; i++) {
        struct fixture_document there = limits_document(i, TOKENS);
        name = (struct samkv_name){.key = there.m.key, .put_unix_s = 5};
        snprintf(name.id, sizeof name.id, "%u", i);
        FIXTURE_OK(samkv_store_name_put_as(store, "small", &name, &err));
        ck_assert_uint_eq(limits_stats(store, "small").documents, 1);
        fixture_document_free(&there);
    }
    for (int i = 0; i < 3; i++)
        fixture_document_free(&d[i]);
}
END_TEST

START_TEST(what_cannot_fit_is_refused_before_anything_goes)
{
    store = limits_open(&dir, (struct samkv_store_options){.max_bytes = 4 << 20, .evict = true});
    for (uint32_t i = 0; i < 9; i++)
        FIXTURE_OK(limits_put(store, i, TOKENS, &err));
    struct samkv_store_stats before = fixture_stats(store);
    struct fixture_document huge = limits_document(77, 40 * TOKENS);
    struct samkv_writer *w;
    ck_assert_int_eq(samkv_writer_begin(store, &huge.m, huge.tokens, &w, &err), SAMKV_TOO_LARGE);
    ck_assert_ptr_null(w);
    ck_assert_msg(strstr(err.text, "--store-max-bytes"), "%s", err.text);
    ck_assert_int_eq(samkv_writer_begin(store, &huge.m, huge.tokens, &w, &err), SAMKV_TOO_LARGE); /* no claim is left */
    fixture_document_free(&huge);
    ck_assert_uint_eq(fixture_stats(store).evictions, 0);
    ck_assert_uint_eq(fixture_stats(store).documents, before.documents);
    FIXTURE_OK(limits_put(store, 78, 10 * TOKENS, &err)); /* nearly all of it */
    FIXTURE_OK(limits_check(store, 78, 10 * TOKENS));
}
END_TEST

/* Those under way would take each other's room, and none could finish. */
START_TEST(writers_do_not_crowd_each_other_out)
{
    store = limits_open(&dir, (struct samkv_store_options){.max_bytes = 4 << 20, .evict = true});
    struct fixture_document docs[8];
    struct samkv_writer *w[8];
    enum samkv_status st = SAMKV_OK;
    int under_way = 0;
    for (int i = 0; i < 8; i++)
        docs[i] = limits_document(100 + (uint32_t)i, 5 * TOKENS);
    while (under_way < 8 && (st = samkv_writer_begin(store, &docs[under_way].m, docs[under_way].tokens, &w[under_way],
                                                     &err)) == SAMKV_OK)
        under_way++;
    ck_assert_int_eq(st, SAMKV_BUSY);
    ck_assert_int_ge(under_way, 2);
    for (uint32_t b = 0; b < docs[0].m.blocks; b++)
        for (int i = 0; i < under_way; i++)
            FIXTURE_OK(fixture_write_block(w[i], &docs[i], b, &err));
    for (int i = 0; i < under_way; i++) {
        for (uint32_t l = 0; l < limits_shape.layers; l++)
            FIXTURE_OK(fixture_write_index(w[i], &docs[i], l, &err));
        char id[16];
        snprintf(id, sizeof id, "%d", 100 + i);
        FIXTURE_OK(samkv_writer_commit(w[i], "c", id, NULL, &err));
    }
    for (int i = under_way; i < 8; i++)
        FIXTURE_OK(fixture_ingest(store, &docs[i], "more", &err));
    ck_assert_uint_le(limits_file_bytes(&dir), 4 << 20);
    for (int i = 0; i < 8; i++)
        fixture_document_free(&docs[i]);
}
END_TEST

/* Its pages are not free until it ends; nobody waits for it for ever. */
START_TEST(a_snapshot_outlives_what_it_reads)
{
    store = limits_open(&dir, (struct samkv_store_options){.max_bytes = 6 << 20, .evict = true});
    limits_collection(store, "c", 0, 0);
    for (uint32_t i = 0; i < 12; i++)
        FIXTURE_OK(limits_put(store, i, TOKENS, &err));
    struct samkv_snapshot *sn;
    FIXTURE_OK(samkv_snapshot_begin(store, &sn, &err));
    struct samkv_limits limits = {.set_quota = true, .quota_bytes = 1 << 20};
    FIXTURE_OK(samkv_store_configure(store, "c", &limits, &err));
    ck_assert_uint_ge(fixture_stats(store).evictions, 6);
    limits.quota_bytes = 0;
    FIXTURE_OK(samkv_store_configure(store, "c", &limits, &err));
    enum samkv_status st = SAMKV_OK;
    uint32_t in = 0;
    while (in < 30 && (st = limits_put(store, 100 + in, TOKENS, &err)) == SAMKV_OK) {
        ck_assert_uint_le(limits_file_bytes(&dir), 6 << 20);
        in++;
    }
    ck_assert_msg(st == SAMKV_BUSY, "%s: %s", samkv_status_name(st), err.text);
    ck_assert_msg(strstr(err.text, "still being read"), "%s", err.text);
    for (uint32_t i = 0; i < 12; i++) {
        struct fixture_document d = limits_document(i, TOKENS);
        ck_assert_int_eq(fixture_compare(sn, &d), SAMKV_OK);
        fixture_document_free(&d);
    }
    samkv_snapshot_end(sn);
    for (uint32_t i = 200; i < 220; i++)
        FIXTURE_OK(limits_put(store, i, TOKENS, &err));
    FIXTURE_OK(limits_check(store, 219, TOKENS));
}
END_TEST

static void *end_later(void *arg)
{
    usleep(200000);
    samkv_snapshot_end(arg);
    return NULL;
}

/* Of a reader that is not there for long nobody sees anything. */
START_TEST(a_short_reader_is_waited_for)
{
    store = limits_open(&dir, (struct samkv_store_options){.max_bytes = 6 << 20, .evict = true});
    struct samkv_snapshot *sn;
    pthread_t thread;
    uint32_t in = 0;
    while (fixture_stats(store).evictions < 3)
        FIXTURE_OK(limits_put(store, in++, TOKENS, &err));
    FIXTURE_OK(samkv_snapshot_begin(store, &sn, &err));
    ck_assert_int_eq(pthread_create(&thread, NULL, end_later, sn), 0);
    for (uint32_t i = 0; i < 20; i++)
        FIXTURE_OK(limits_put(store, 1000 + i, TOKENS, &err));
    pthread_join(thread, NULL);
}
END_TEST

/* Documents of one size, larger than the reserve in the second round: about one goes for each that comes. */
START_TEST(no_more_goes_than_has_to)
{
    store = limits_open(&dir, (struct samkv_store_options){.max_bytes = 6 << 20, .evict = true});
    uint32_t in = 0, tokens = _i ? 4 * TOKENS : TOKENS;
    while (fixture_stats(store).evictions == 0)
        FIXTURE_OK(limits_put(store, in++, tokens, &err));
    uint64_t before = fixture_stats(store).documents;
    for (uint32_t i = 0; i < 60; i++)
        FIXTURE_OK(limits_put(store, in + i, tokens, &err));
    struct samkv_store_stats stats = fixture_stats(store);
    ck_assert_uint_le(stats.evictions, 66);
    ck_assert_uint_ge(stats.documents + 3, before);
}
END_TEST

START_TEST(a_preamble_in_use_stays)
{
    store = limits_open(&dir, (struct samkv_store_options){.max_bytes = 4 << 20, .evict = true});
    struct fixture_document preamble = limits_document(5000, TOKENS);
    FIXTURE_OK(fixture_ingest(store, &preamble, NULL, &err));
    int32_t tokens[TOKENS] = {0};
    struct samkv_collection c = {.name = "c",
                                 .shape = limits_shape,
                                 .heads = 8,
                                 .block_tokens = 16,
                                 .preamble = tokens,
                                 .preamble_tokens = TOKENS,
                                 .preamble_key = preamble.m.key};
    FIXTURE_OK(samkv_store_collection_put(store, &c, &err));
    FIXTURE_OK(samkv_store_name_put(store, "c", "the same text", NULL, &preamble.m.key, &err));
    for (uint32_t i = 0; i < 40; i++)
        FIXTURE_OK(limits_put(store, i, TOKENS, &err));
    FIXTURE_OK(fixture_check_name(store, "the same text", &preamble)); /* its going would give nothing back */
    bool more = true;
    uint64_t removed = 0;
    while (more)
        FIXTURE_OK(samkv_store_collection_remove(store, "c", &removed, &more, &err));
    ck_assert_uint_ge(removed, 5);
    struct samkv_gc_report report;
    FIXTURE_OK(samkv_store_gc(store, &report, NULL, NULL, &err)); /* waits until all is removed */
    struct samkv_store_stats stats = fixture_stats(store);
    ck_assert_uint_eq(stats.documents + stats.names + stats.collections, 0);
    ck_assert_uint_eq(stats.bytes_stored, 0);
    ck_assert_uint_lt(stats.bytes_used, 200 << 10);
    ck_assert_int_eq(samkv_store_collection_remove(store, "c", &removed, &more, &err), SAMKV_NOT_FOUND);
    fixture_document_free(&preamble);
}
END_TEST

/* The file system's limit instead of ours. */
START_TEST(a_full_disk_evicts_too)
{
    store = limits_open(&dir, (struct samkv_store_options){.evict = true});
    struct rlimit old, small;
    ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &old), 0);
    small = old;
    small.rlim_cur = (rlim_t)(5 << 20) + (rlim_t)_i * 1111;
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &small), 0);
    for (uint32_t i = 0; i < 60; i++)
        FIXTURE_OK(limits_put(store, i, TOKENS, &err));
    FIXTURE_OK(limits_check(store, 59, TOKENS));
    struct samkv_store_stats stats = fixture_stats(store);
    ck_assert_uint_ge(stats.documents, 8);
    ck_assert_uint_gt(stats.evictions, 30);
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &old), 0);
}
END_TEST

/* ------------------------------------------------------------------ quotas */

START_TEST(a_quota_holds_and_is_the_collections_own)
{
    const uint64_t quota = 777777 + (uint64_t)_i * 424243;
    uint64_t random = (uint64_t)_i;
    store = limits_open(&dir, (struct samkv_store_options){0}); /* no limit of the file */
    limits_collection(store, "c", quota, 0);
    limits_collection(store, "other", 0, 0);
    struct fixture_document shared = limits_document(9000, 10);
    FIXTURE_OK(fixture_ingest(store, &shared, "shared", &err));
    FIXTURE_OK(samkv_store_name_put(store, "other", "mine", NULL, &shared.m.key, &err));
    uint64_t most = 0;
    for (uint32_t i = 0; i < 60; i++) {
        FIXTURE_OK(limits_put(store, i, 1 + (uint32_t)(fixture_random(&random) % 90), &err));
        struct samkv_collection_stats c = limits_stats(store, "c");
        ck_assert_uint_le(c.bytes_stored, quota);
        most = c.bytes_stored > most ? c.bytes_stored : most;
    }
    ck_assert_uint_gt(most, quota / 2);
    struct samkv_collection_stats c = limits_stats(store, "c"), other = limits_stats(store, "other");
    ck_assert_uint_eq(other.documents, 1);
    ck_assert_int_eq(fixture_check_name(store, "shared", &shared), SAMKV_NOT_FOUND); /* here it went */
    struct samkv_snapshot *sn;
    struct samkv_name name;
    FIXTURE_OK(samkv_snapshot_begin(store, &sn, &err));
    FIXTURE_OK(samkv_snapshot_name(sn, "other", "mine", &name, &err)); /* there it stays */
    samkv_name_deinit(&name);
    ck_assert_int_eq(fixture_compare(sn, &shared), SAMKV_OK);
    samkv_snapshot_end(sn);
    ck_assert_uint_eq(fixture_stats(store).bytes_stored, c.bytes_stored + other.bytes_stored);
    /* What the ledger followed is what a start counts. */
    samkv_store_close(store);
    store = limits_open(&dir, (struct samkv_store_options){0});
    struct samkv_collection_stats again = limits_stats(store, "c");
    ck_assert_mem_eq(&again, &c, sizeof c);
    again = limits_stats(store, "other");
    ck_assert_mem_eq(&again, &other, sizeof other);
    fixture_document_free(&shared);
}
END_TEST

START_TEST(a_quota_refuses_what_cannot_fit)
{
    store = limits_open(&dir, (struct samkv_store_options){.quota_refuses = _i == 1});
    limits_collection(store, "c", 1 << 20, 0);
    FIXTURE_OK(limits_put(store, 1, TOKENS, &err));
    FIXTURE_OK(limits_put(store, 2, TOKENS, &err));
    enum samkv_status expected = _i == 1 ? SAMKV_FULL : SAMKV_TOO_LARGE;
    ck_assert_int_eq(limits_put(store, 3, 10 * TOKENS, &err), expected);
    ck_assert_msg(strstr(err.text, "samkvctl set"), "%s", err.text);
    struct fixture_document big = limits_document(4, 10 * TOKENS);
    struct samkv_writer *w;
    FIXTURE_OK(samkv_writer_begin(store, &big.m, big.tokens, &w, &err));
    ck_assert_int_eq(samkv_writer_admit(w, "c", &err), expected);
    FIXTURE_OK(samkv_writer_admit(w, "another", &err));
    samkv_writer_abort(w);
    fixture_document_free(&big);
    ck_assert_int_eq(limits_stats(store, "c").documents, 2); /* nothing went for it */
    FIXTURE_OK(limits_check(store, 1, TOKENS));
    enum samkv_status st = SAMKV_OK;
    for (uint32_t i = 10; i < 16 && st == SAMKV_OK; i++)
        st = limits_put(store, i, TOKENS, &err);
    ck_assert_int_eq(st, _i == 1 ? SAMKV_FULL : SAMKV_OK);
    ck_assert_int_eq(limits_check(store, 1, TOKENS), _i == 1 ? SAMKV_OK : SAMKV_NOT_FOUND);
}
END_TEST

START_TEST(a_lowered_quota_evicts)
{
    store = limits_open(&dir, (struct samkv_store_options){0});
    limits_collection(store, "c", 0, 0);
    for (uint32_t i = 0; i < 200; i++)
        FIXTURE_OK(limits_put(store, i, 4, &err));
    uint64_t all = limits_stats(store, "c").bytes_stored;
    limits_pin(store, 0, true);
    limits_use(store, 77, 4, 2);
    struct samkv_limits limits = {.set_quota = true, .quota_bytes = all / 3};
    FIXTURE_OK(samkv_store_configure(store, "c", &limits, &err));
    struct samkv_collection_stats c = limits_stats(store, "c");
    ck_assert_uint_le(c.bytes_stored, all / 3);
    ck_assert_uint_gt(c.bytes_stored, all / 4);
    FIXTURE_OK(limits_check(store, 0, 4));
    FIXTURE_OK(limits_check(store, 77, 4));
    FIXTURE_OK(limits_check(store, 199, 4));
    limits.quota_bytes = 1; /* less than what is pinned: that stays */
    FIXTURE_OK(samkv_store_configure(store, "c", &limits, &err));
    ck_assert_uint_eq(limits_stats(store, "c").documents, 1);
    ck_assert_int_eq(samkv_store_configure(store, "nobody", &limits, &err), SAMKV_NOT_FOUND);
}
END_TEST

/* ------------------------------------------------------------------ kill -9 */

static void give_up(int code, const struct samkv_error *e)
{
    fprintf(stderr, "the child gives up: %s\n", e->text);
    _exit(code);
}

static void churn(int seed)
{
    uint64_t random = (uint64_t)seed;
    store = limits_open(&dir, (struct samkv_store_options){.max_bytes = 4 << 20, .evict = true});
    limits_collection(store, "c", 2 << 20, 50);
    for (uint32_t i = 0;; i++) {
        uint32_t which = (uint32_t)(fixture_random(&random) % 60);
        struct samkv_error e = {0};
        if (limits_put(store, which, 1 + which, &e) != SAMKV_OK)
            give_up(3, &e);
        limits_use(store, which, 1 + which, (int)(which % 3));
        atomic_fetch_add(&limits_clock, i % 2);
        struct samkv_gc_report report;
        if (i % 20 == 19 && samkv_store_gc(store, &report, NULL, NULL, &e) != SAMKV_OK)
            give_up(4, &e);
    }
}

START_TEST(killed_at_any_moment)
{
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0)
        churn(_i);
    usleep(30000 + (useconds_t)_i * 17000);
    kill(child, SIGKILL);
    int status;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_msg(WIFSIGNALED(status), "the child ended by itself: %d", WEXITSTATUS(status));
    store = limits_open(&dir, (struct samkv_store_options){.max_bytes = 4 << 20, .evict = true});
    limits_collection(store, "c", 2 << 20, 50);
    uint32_t there = 0;
    for (uint32_t i = 0; i < 60; i++) {
        enum samkv_status st = limits_check(store, i, 1 + i);
        ck_assert_msg(st == SAMKV_OK || st == SAMKV_NOT_FOUND, "%u: %s", i, samkv_status_name(st));
        there += st == SAMKV_OK;
    }
    ck_assert_uint_le(there, limits_stats(store, "c").names);
    ck_assert_uint_le(limits_stats(store, "c").bytes_stored, 2 << 20);
    ck_assert_uint_eq(limits_stats(store, "c").bytes_stored, fixture_stats(store).bytes_stored);
    FIXTURE_OK(limits_put(store, 100, TOKENS, &err));
    FIXTURE_OK(limits_check(store, 100, TOKENS));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("evict");
    TCase *tc = tcase_create("evict");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_loop_test(tc, the_limit_holds_at_every_moment, 0, 3);
    tcase_add_test(tc, what_is_used_stays_longer);
    tcase_add_test(tc, pins_survive_and_can_fill_a_store);
    tcase_add_test(tc, names_that_bring_their_pin_and_time);
    tcase_add_test(tc, what_cannot_fit_is_refused_before_anything_goes);
    tcase_add_test(tc, writers_do_not_crowd_each_other_out);
    tcase_add_test(tc, a_snapshot_outlives_what_it_reads);
    tcase_add_test(tc, a_short_reader_is_waited_for);
    tcase_add_loop_test(tc, no_more_goes_than_has_to, 0, 2);
    tcase_add_test(tc, a_preamble_in_use_stays);
    tcase_add_loop_test(tc, a_full_disk_evicts_too, 0, 4);
    tcase_add_loop_test(tc, a_quota_holds_and_is_the_collections_own, 0, 4);
    tcase_add_loop_test(tc, a_quota_refuses_what_cannot_fit, 0, 2);
    tcase_add_test(tc, a_lowered_quota_evicts);
    tcase_add_loop_test(tc, killed_at_any_moment, 0, 8);
    tcase_set_timeout(tc, 120);
    suite_add_tcase(suite, tc);
    return fixture_run(suite);
}
