#include "tests/unit/store_fixture.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/wait.h>

#define DOCUMENTS 40
#define MIB       ((uint64_t)1 << 20)

static struct fixture_directory dir;
static struct samkv_store *store;
static struct samkv_error err;

static const struct samkv_kv_shape shape = {4, 4, 32, SAMKV_F32};

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

/* Blocks of 64 KiB as computed, the last one shorter; every document of another length. */
static struct fixture_document document(uint32_t seed)
{
    struct fixture_document d;
    fixture_document_make(&d, seed, shape, 33 + 7 * (seed % 13), 16);
    return d;
}

static enum samkv_status ingest_one(struct samkv_store *s, uint32_t seed)
{
    char id[16];
    struct fixture_document d = document(seed);
    snprintf(id, sizeof id, "%u", seed);
    enum samkv_status st = fixture_ingest(s, &d, id, &err);
    fixture_document_free(&d);
    return st;
}

static void ingest(uint32_t from, uint32_t to)
{
    for (uint32_t i = from; i < to; i++)
        FIXTURE_OK(ingest_one(store, i));
}

static enum samkv_status check_one(struct samkv_store *s, uint32_t seed)
{
    char id[16];
    struct fixture_document d = document(seed);
    snprintf(id, sizeof id, "%u", seed);
    enum samkv_status st = fixture_check_name(s, id, &d);
    fixture_document_free(&d);
    return st;
}

static void remove_one(uint32_t seed)
{
    char id[16];
    snprintf(id, sizeof id, "%u", seed);
    FIXTURE_OK(samkv_store_name_remove(store, "c", id, &err));
}

/* All but each `keep`th. */
static void thin_out(uint32_t keep)
{
    for (uint32_t i = 0; i < DOCUMENTS; i++)
        if (i % keep)
            remove_one(i);
}

static void assert_thinned(uint32_t keep)
{
    for (uint32_t i = 0; i < DOCUMENTS; i++)
        ck_assert_int_eq(check_one(store, i), i % keep ? SAMKV_NOT_FOUND : SAMKV_OK);
}

/* The writer thread does its work by itself: looks at the store until it is done, the test's time limit is the end. */
static struct samkv_store_stats wait_until(bool (*done)(const struct samkv_store_stats *))
{
    struct samkv_store_stats stats;
    for (;;) {
        stats = fixture_stats(store);
        if (done(&stats))
            return stats;
        usleep(2000);
    }
}

static bool is_given_back(const struct samkv_store_stats *s)
{
    return s->bytes_allocated <= s->bytes_used + s->bytes_used / 8 + MIB;
}

static bool is_compacted(const struct samkv_store_stats *s)
{
    return s->compactions > 0;
}

/* ------------------------------------------------------------------ holes */

START_TEST(free_pages_are_given_back_and_used_again)
{
    store = fixture_open_with(&dir, 64 * MIB, SAMKV_COMPACT_OFF);
    ingest(0, DOCUMENTS);
    struct samkv_store_stats full = fixture_stats(store);
    thin_out(5);
    struct samkv_store_stats s = wait_until(is_given_back);
    ck_assert_uint_ge(s.bytes_file, full.bytes_file); /* nothing was moved */
    ck_assert_uint_lt(s.bytes_allocated, s.bytes_file / 2);
    ck_assert_uint_gt(s.bytes_punched, 0);
    assert_thinned(5);
    ingest(100, 100 + DOCUMENTS / 2); /* into the holes */
    ck_assert_uint_le(fixture_stats(store).bytes_file, full.bytes_file + full.bytes_file / 4);
    assert_thinned(5);
    samkv_store_close(store);
    store = fixture_open_with(&dir, 64 * MIB, SAMKV_COMPACT_OFF); /* its pages are checked */
    assert_thinned(5);
    for (uint32_t i = 100; i < 100 + DOCUMENTS / 2; i++)
        ck_assert_int_eq(check_one(store, i), SAMKV_OK);
}
END_TEST

START_TEST(what_a_snapshot_sees_is_no_hole)
{
    struct samkv_snapshot *sn;
    store = fixture_open_with(&dir, 64 * MIB, SAMKV_COMPACT_OFF);
    ingest(0, DOCUMENTS);
    FIXTURE_OK(samkv_snapshot_begin(store, &sn, &err));
    thin_out(5);
    ingest(100, 110);
    for (uint32_t i = 100; i < 110; i++)
        remove_one(i);
    usleep(300000); /* many looks at the free list */
    for (uint32_t i = 0; i < DOCUMENTS; i++) {
        struct fixture_document d = document(i);
        ck_assert_int_eq(fixture_compare(sn, &d), SAMKV_OK);
        fixture_document_free(&d);
    }
    samkv_snapshot_end(sn);
    wait_until(is_given_back);
    assert_thinned(5);
}
END_TEST

/* ------------------------------------------------------------------ compaction */

static bool within_limit(void *arg, const struct samkv_compact_report *r)
{
    (void)r;
    return fixture_allocated(&dir) <= *(const uint64_t *)arg;
}

START_TEST(a_compacted_store_is_as_large_as_what_it_holds)
{
    uint64_t limit = 64 * MIB;
    store = fixture_open_with(&dir, limit, SAMKV_COMPACT_OFF);
    ingest(0, DOCUMENTS);
    thin_out(4);
    FIXTURE_OK(samkv_store_compact(store, within_limit, &limit, &err));
    struct samkv_store_stats s = fixture_stats(store);
    ck_assert_uint_le(s.bytes_file, s.bytes_used + s.bytes_used / 10 + MIB / 4);
    ck_assert_uint_eq(s.compactions, 1);
    ck_assert_uint_eq(s.documents, DOCUMENTS / 4);
    assert_thinned(4);
    ingest(50, 60);
    remove_one(0);
    FIXTURE_OK(samkv_store_compact(store, NULL, NULL, &err)); /* the next generation */
    ck_assert_int_eq(check_one(store, 0), SAMKV_NOT_FOUND);
    ck_assert_int_eq(check_one(store, 4), SAMKV_OK);
    samkv_store_close(store);
    char path[128];
    snprintf(path, sizeof path, "%s/data.mdb", dir.path);
    ck_assert_int_ne(access(path, F_OK), 0);
    snprintf(path, sizeof path, "%s/data.2.mdb", dir.path);
    ck_assert_int_eq(access(path, F_OK), 0);
    store = fixture_open_with(&dir, limit, SAMKV_COMPACT_OFF);
    for (uint32_t i = 50; i < 60; i++)
        ck_assert_int_eq(check_one(store, i), SAMKV_OK);
}
END_TEST

START_TEST(a_store_compacts_itself)
{
    store = fixture_open(&dir, 64 * MIB);
    ingest(0, DOCUMENTS);
    thin_out(8);
    struct samkv_store_stats s = wait_until(is_compacted);
    ck_assert_uint_le(s.bytes_file, s.bytes_used + s.bytes_used / 4 + 2 * MIB);
    assert_thinned(8);
}
END_TEST

/* What is in use is most of the limit: two files of that size would not fit into it. */
START_TEST(the_limit_holds_while_a_nearly_full_store_is_compacted)
{
    uint64_t limit = 12 * MIB;
    uint32_t count = 0;
    store = fixture_open_with(&dir, limit, SAMKV_COMPACT_OFF);
    while (ingest_one(store, count) == SAMKV_OK)
        count++;
    ck_assert_uint_ge(fixture_stats(store).bytes_used, limit * 8 / 10);
    for (uint32_t i = 0; i < 6; i++)
        remove_one(i);
    FIXTURE_OK(samkv_store_compact(store, within_limit, &limit, &err));
    ck_assert_uint_le(fixture_allocated(&dir), limit);
    for (uint32_t i = 6; i < count; i++)
        ck_assert_int_eq(check_one(store, i), SAMKV_OK);
}
END_TEST

/* Large records find no run of free pages in a file that small ones have cut up. */
START_TEST(a_large_record_fits_into_a_cut_up_file)
{
    const struct samkv_kv_shape small = {1, 1, 64, SAMKV_F32};
    uint32_t count = 0;
    store = fixture_open(&dir, 8 * MIB);
    for (;; count++) {
        char id[16];
        struct fixture_document d;
        fixture_document_make(&d, count, small, 16, 16); /* a block of two pages */
        snprintf(id, sizeof id, "s%u", count);
        enum samkv_status st = fixture_ingest(store, &d, id, &err);
        fixture_document_free(&d);
        if (st == SAMKV_FULL)
            break;
        FIXTURE_OK(st);
    }
    for (uint32_t i = 0; i < count; i += 2) {
        char id[16];
        snprintf(id, sizeof id, "s%u", i);
        FIXTURE_OK(samkv_store_name_remove(store, "c", id, &err));
    }
    for (uint32_t i = 0; i < 5; i++)
        FIXTURE_OK(ingest_one(store, i));
    for (uint32_t i = 0; i < 5; i++)
        ck_assert_int_eq(check_one(store, i), SAMKV_OK);
}
END_TEST

static bool a_few_times(void *arg, const struct samkv_compact_report *r)
{
    (void)r;
    return ++*(int *)arg < 5;
}

START_TEST(snapshots_of_before_read_on_and_the_file_goes_with_the_last)
{
    struct samkv_snapshot *before;
    store = fixture_open_with(&dir, 64 * MIB, SAMKV_COMPACT_OFF);
    ingest(0, DOCUMENTS);
    FIXTURE_OK(samkv_snapshot_begin(store, &before, &err));
    thin_out(4);
    int calls = 0;
    ck_assert_int_eq(samkv_store_compact(store, a_few_times, &calls, &err),
                     SAMKV_CANCELLED); /* the snapshot holds it up */
    assert_thinned(4);
    for (uint32_t i = 0; i < DOCUMENTS; i++) {
        struct fixture_document d = document(i);
        ck_assert_int_eq(fixture_compare(before, &d), SAMKV_OK);
        fixture_document_free(&d);
    }
    samkv_snapshot_end(before);
    wait_until(is_compacted);
    assert_thinned(4);
}
END_TEST

/* ------------------------------------------------------------------ at the same time */

#define READERS 64

static atomic_int failures, stop_reading, rounds;

/* Holds a snapshot while others come and go and files change; all it ever saw must be right. */
static void *read_on(void *arg)
{
    uint64_t seed = (uintptr_t)arg;
    while (!stop_reading) {
        struct samkv_snapshot *sn;
        if (samkv_snapshot_begin(store, &sn, NULL) != SAMKV_OK) {
            failures++;
            continue;
        }
        for (int i = 0; i < 4; i++) {
            uint32_t n = (uint32_t)(fixture_random(&seed) % 20) * 2; /* these stay */
            struct fixture_document d = document(n);
            failures += fixture_compare(sn, &d) != SAMKV_OK;
            fixture_document_free(&d);
            usleep((useconds_t)(fixture_random(&seed) % 3000));
        }
        samkv_snapshot_end(sn);
        rounds++;
    }
    return NULL;
}

START_TEST(sixty_four_readers_and_writers_see_right_bytes_while_files_change)
{
    pthread_t readers[READERS];
    store = fixture_open_with(&dir, 64 * MIB, SAMKV_COMPACT_OFF);
    ingest(0, DOCUMENTS);
    for (uintptr_t i = 0; i < READERS; i++)
        ck_assert_int_eq(pthread_create(&readers[i], NULL, read_on, (void *)(i + 1)), 0);
    for (uint32_t round = 0; round < 3; round++) {
        for (uint32_t i = 1; i < DOCUMENTS; i += 8) { /* some of the odd ones go and come */
            remove_one(i);
            FIXTURE_OK(ingest_one(store, i));
        }
        FIXTURE_OK(samkv_store_compact(store, NULL, NULL, &err));
    }
    stop_reading = 1;
    for (int i = 0; i < READERS; i++)
        pthread_join(readers[i], NULL);
    ck_assert_int_eq(failures, 0);
    ck_assert_int_ge(rounds, READERS);
    for (uint32_t i = 0; i < DOCUMENTS; i++)
        ck_assert_int_eq(check_one(store, i), SAMKV_OK);
    ck_assert_uint_eq(fixture_stats(store).compactions, 3);
}
END_TEST

static void *write_on(void *arg)
{
    (void)arg;
    for (uint32_t i = 0; !stop_reading; i++) {
        struct samkv_error mine;
        char id[16];
        struct fixture_document d = document(100 + i % 7);
        snprintf(id, sizeof id, "w%u", i % 3);
        failures += fixture_ingest(store, &d, id, &mine) != SAMKV_OK;
        failures += fixture_check_name(store, id, &d) != SAMKV_OK;
        fixture_document_free(&d);
        rounds++;
    }
    return NULL;
}

START_TEST(documents_are_written_replaced_and_removed_while_files_change)
{
    pthread_t writer;
    store = fixture_open_with(&dir, 32 * MIB, SAMKV_COMPACT_OFF);
    ingest(0, DOCUMENTS);
    ck_assert_int_eq(pthread_create(&writer, NULL, write_on, NULL), 0);
    for (int i = 0; i < 6; i++) {
        FIXTURE_OK(samkv_store_compact(store, NULL, NULL, &err));
        remove_one((uint32_t)i);
    }
    stop_reading = 1;
    pthread_join(writer, NULL);
    ck_assert_int_eq(failures, 0);
    ck_assert_int_gt(rounds, 0);
    for (uint32_t i = 0; i < DOCUMENTS; i++)
        ck_assert_int_eq(check_one(store, i), i < 6 ? SAMKV_NOT_FOUND : SAMKV_OK);
    ck_assert_uint_eq(fixture_stats(store).names, DOCUMENTS - 6 + 3);
}
END_TEST

/* ------------------------------------------------------------------ what goes wrong */

/* A child that compacts again and again, ingesting and removing between: says after each step what it has done. */
static void child_main(int pipe_fd, uint32_t from)
{
    store = fixture_open_with(&dir, 32 * MIB, SAMKV_COMPACT_OFF);
    for (uint32_t i = from; i < from + 1000; i++) {
        uint8_t done = 1;
        if (ingest_one(store, i) != SAMKV_OK)
            _exit(4);
        if (i >= 20) {
            char id[16];
            snprintf(id, sizeof id, "%u", i - 20);
            enum samkv_status st = samkv_store_name_remove(store, "c", id, &err);
            if (st != SAMKV_OK && st != SAMKV_NOT_FOUND) /* killed before it could say so */
                _exit(5);
        }
        if (write(pipe_fd, &done, 1) != 1)
            _exit(6);
        if (i % 2 && samkv_store_compact(store, NULL, NULL, &err) != SAMKV_OK)
            _exit(7);
    }
    _exit(8);
}

static uint32_t run_and_kill(uint32_t from, uint64_t *state)
{
    int fds[2], status;
    uint8_t done;
    uint32_t acknowledged = 0, wanted = (uint32_t)(fixture_random(state) % 4);
    ck_assert_int_eq(pipe(fds), 0);
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        close(fds[0]);
        child_main(fds[1], from);
    }
    close(fds[1]);
    while (acknowledged < wanted && read(fds[0], &done, 1) == 1)
        acknowledged++;
    usleep((useconds_t)(fixture_random(state) % 12000)); /* somewhere within a compaction, mostly */
    kill(child, SIGKILL);
    while (read(fds[0], &done, 1) == 1)
        acknowledged++;
    close(fds[0]);
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_msg(WIFSIGNALED(status), "the child could not do its work: exit %d", WEXITSTATUS(status));
    return acknowledged;
}

START_TEST(what_was_acknowledged_survives_kill_in_a_compaction)
{
    uint64_t state = 77 + (uint64_t)_i;
    uint32_t next = 0;
    for (int round = 0; round < 15; round++) {
        next += run_and_kill(next, &state);
        store = fixture_open_with(&dir, 32 * MIB, SAMKV_COMPACT_OFF);
        /* The step under way may be done, and its removal not. */
        for (uint32_t i = next > 20 ? next - 20 : 0; i < next; i++)
            ck_assert_msg(check_one(store, i) == SAMKV_OK || i + 20 == next, "round %d: %u of %u", round, i, next);
        for (uint32_t i = next > 40 ? next - 40 : 0; i + 20 < next; i++)
            ck_assert_int_eq(check_one(store, i), SAMKV_NOT_FOUND);
        enum samkv_status ahead = check_one(store, next);
        ck_assert(ahead == SAMKV_OK || ahead == SAMKV_NOT_FOUND);
        if (round % 5 == 4)
            FIXTURE_OK(samkv_store_compact(store, NULL, NULL, &err)); /* one that was cut short, or a new one */
        samkv_store_close(store);
        store = NULL;
    }
}
END_TEST

START_TEST(a_full_disk_stops_a_compaction_and_nothing_else)
{
    struct rlimit old, small;
    store = fixture_open_with(&dir, 0, SAMKV_COMPACT_OFF);
    ingest(0, DOCUMENTS);
    thin_out(2);
    ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &old), 0);
    small = old;
    small.rlim_cur = (rlim_t)(_i ? 2 * MIB : 40 << 10) + (rlim_t)_i * 777; /* before the turn; and while draining */
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &small), 0);
    enum samkv_status st = samkv_store_compact(store, NULL, NULL, &err);
    ck_assert_msg(st == SAMKV_FULL, "%s: %s", samkv_status_name(st), err.text);
    assert_thinned(2);
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &old), 0);
    FIXTURE_OK(ingest_one(store, 200));
    FIXTURE_OK(samkv_store_compact(store, NULL, NULL, &err));
    assert_thinned(2);
    samkv_store_close(store);
    store = fixture_open_with(&dir, 0, SAMKV_COMPACT_OFF);
    assert_thinned(2);
    ck_assert_int_eq(check_one(store, 200), SAMKV_OK);
}
END_TEST

/* Another process that only reads, before, while and after the store moves twice. */
START_TEST(a_reader_in_another_process_follows)
{
    int go[2], status;
    uint8_t byte = 1;
    store = fixture_open_with(&dir, 64 * MIB, SAMKV_COMPACT_OFF);
    ingest(0, DOCUMENTS);
    ck_assert_int_eq(pipe(go), 0);
    samkv_store_close(store); /* an environment does not survive fork */
    store = NULL;
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        struct samkv_store_options o = {.path = dir.path, .read_only = true};
        close(go[1]);
        if (read(go[0], &byte, 1) != 1 || samkv_store_open(&o, &store, &err) != SAMKV_OK)
            _exit(3);
        fcntl(go[0], F_SETFL, O_NONBLOCK);
        for (bool last = false; !last;) {
            last = read(go[0], &byte, 1) == 0; /* once more when the other end has closed */
            for (uint32_t i = 0; i < DOCUMENTS; i += 5)
                if (check_one(store, i) != SAMKV_OK)
                    _exit(4);
        }
        _exit(0);
    }
    close(go[0]);
    store = fixture_open_with(&dir, 64 * MIB, SAMKV_COMPACT_OFF);
    ck_assert_int_eq(write(go[1], &byte, 1), 1);
    for (uint32_t round = 0; round < 4; round++) {
        for (uint32_t i = 0; i < DOCUMENTS; i++)
            if (i % 5) {
                remove_one(i);
                FIXTURE_OK(ingest_one(store, i));
            }
        FIXTURE_OK(samkv_store_compact(store, NULL, NULL, &err));
    }
    close(go[1]);
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the reader ended with %x", (unsigned)status);
}
END_TEST

static void put_file(const char *name, const char *text)
{
    char path[160];
    snprintf(path, sizeof path, "%s/%s", dir.path, name);
    FILE *f = fopen(path, "w");
    ck_assert_ptr_nonnull(f);
    fputs(text, f);
    fclose(f);
}

static bool is_there(const char *name)
{
    char path[160];
    snprintf(path, sizeof path, "%s/%s", dir.path, name);
    return access(path, F_OK) == 0;
}

START_TEST(leftovers_go_and_a_missing_file_is_told)
{
    char from[160], to[160];
    store = fixture_open_with(&dir, 64 * MIB, SAMKV_COMPACT_OFF);
    ingest(0, 3);
    samkv_store_close(store);
    put_file("data.1.new", "half a file");
    put_file("data.7.mdb-lock", "");
    store = fixture_open_with(&dir, 64 * MIB, SAMKV_COMPACT_OFF);
    ck_assert(!is_there("data.1.new") && !is_there("data.7.mdb-lock"));
    FIXTURE_OK(samkv_store_compact(store, NULL, NULL, &err));
    ck_assert(!is_there("data.mdb") && !is_there("lock.mdb"));
    samkv_store_close(store);
    /* A newer file whose predecessor was not moved is the leftover of a turn that did not come to pass. */
    snprintf(from, sizeof from, "cp %s/data.1.mdb %s/data.2.mdb", dir.path, dir.path);
    ck_assert_int_eq(system(from), 0);
    store = fixture_open_with(&dir, 64 * MIB, SAMKV_COMPACT_OFF);
    ck_assert(!is_there("data.2.mdb") && is_there("data.1.mdb"));
    for (uint32_t i = 0; i < 3; i++)
        ck_assert_int_eq(check_one(store, i), SAMKV_OK);
    samkv_store_close(store);
    snprintf(from, sizeof from, "%s/data.1.mdb", dir.path);
    snprintf(to, sizeof to, "%s/elsewhere", dir.path);
    ck_assert_int_eq(rename(from, to), 0);
    struct samkv_store_options o = {.path = dir.path, .codec = SAMKV_CODEC_ZSTD};
    ck_assert_int_eq(samkv_store_open(&o, &store, &err), SAMKV_CORRUPT);
    ck_assert_int_eq(rename(to, from), 0);
    store = fixture_open_with(&dir, 64 * MIB, SAMKV_COMPACT_OFF);
    ck_assert_int_eq(check_one(store, 2), SAMKV_OK);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("store_space");
    TCase *tc = tcase_create("space");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, free_pages_are_given_back_and_used_again);
    tcase_add_test(tc, what_a_snapshot_sees_is_no_hole);
    tcase_add_test(tc, a_compacted_store_is_as_large_as_what_it_holds);
    tcase_add_test(tc, a_store_compacts_itself);
    tcase_add_test(tc, the_limit_holds_while_a_nearly_full_store_is_compacted);
    tcase_add_test(tc, a_large_record_fits_into_a_cut_up_file);
    tcase_add_test(tc, snapshots_of_before_read_on_and_the_file_goes_with_the_last);
    tcase_add_test(tc, sixty_four_readers_and_writers_see_right_bytes_while_files_change);
    tcase_add_test(tc, documents_are_written_replaced_and_removed_while_files_change);
    tcase_add_loop_test(tc, what_was_acknowledged_survives_kill_in_a_compaction, 0, 3);
    tcase_add_loop_test(tc, a_full_disk_stops_a_compaction_and_nothing_else, 0, 2);
    tcase_add_test(tc, a_reader_in_another_process_follows);
    tcase_add_test(tc, leftovers_go_and_a_missing_file_is_told);
    tcase_set_timeout(tc, 120);
    suite_add_tcase(suite, tc);
    return fixture_run(suite);
}
