#include "tests/unit/store_fixture.h"

#include <signal.h>
#include <sys/wait.h>

/*
 * A child ingests, replaces and removes, and says after each acknowledged step so through a pipe; it is killed at some
 * moment. What was acknowledged must be there, whole; of the step under way either all or nothing.
 */
#define STEPS 64

static struct fixture_directory dir;

static void setup(void)
{
    fixture_directory_make(&dir);
}

static void teardown(void)
{
    fixture_directory_remove(&dir);
}

/* Step i writes document i under name i % 5 (replacing), or removes that name every seventh time. */
static bool step_removes(uint32_t i)
{
    return i % 7 == 6;
}

static struct fixture_document step_document(uint32_t i)
{
    struct fixture_document d;
    struct samkv_kv_shape shape = {4, 2, 16, i % 2 ? SAMKV_BF16 : SAMKV_F32};
    fixture_document_make(&d, i, shape, 20 + 37 * (i % 11), 16);
    return d;
}

static enum samkv_status do_step(struct samkv_store *s, uint32_t i, struct samkv_error *err)
{
    char id[8];
    snprintf(id, sizeof id, "n%u", i % 5);
    if (step_removes(i)) {
        enum samkv_status st = samkv_store_name_remove(s, "c", id, err);
        return st == SAMKV_NOT_FOUND ? SAMKV_OK : st;
    }
    struct fixture_document d = step_document(i);
    enum samkv_status st = fixture_ingest(s, &d, id, err);
    fixture_document_free(&d);
    return st;
}

static void child_main(int pipe_fd, uint32_t from)
{
    struct samkv_store_options o = {.path = dir.path, .codec = SAMKV_CODEC_ZSTD};
    struct samkv_store *s;
    struct samkv_error err;
    if (samkv_store_open(&o, &s, &err) != SAMKV_OK)
        _exit(3);
    for (uint32_t i = from; i < from + STEPS; i++) {
        uint8_t done = 1;
        if (do_step(s, i, &err) != SAMKV_OK || write(pipe_fd, &done, 1) != 1)
            _exit(4);
    }
    pause();
    _exit(0);
}

/* Steps acknowledged before the child died of SIGKILL. */
static uint32_t run_and_kill(uint32_t from, uint64_t *state)
{
    int fds[2];
    ck_assert_int_eq(pipe(fds), 0);
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        close(fds[0]);
        child_main(fds[1], from);
    }
    close(fds[1]);
    uint32_t acknowledged = 0, wanted = (uint32_t)(fixture_random(state) % 12);
    uint8_t done;
    while (acknowledged < wanted && read(fds[0], &done, 1) == 1)
        acknowledged++;
    usleep((useconds_t)(fixture_random(state) % 4000)); /* somewhere within a step */
    kill(child, SIGKILL);
    while (read(fds[0], &done, 1) == 1)
        acknowledged++;
    close(fds[0]);
    int status;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_msg(WIFSIGNALED(status), "the child could not do its work: exit %d", WEXITSTATUS(status));
    return acknowledged;
}

/* Does name n hold what the last step < end that touched it left? */
static bool name_is_as_of(struct samkv_store *s, uint32_t n, uint32_t end)
{
    char id[8];
    snprintf(id, sizeof id, "n%u", n);
    uint32_t i = end;
    while (i > 0 && (i - 1) % 5 != n)
        i--;
    struct fixture_document d = step_document(i ? i - 1 : 0);
    enum samkv_status st = fixture_check_name(s, id, &d), want = i && !step_removes(i - 1) ? SAMKV_OK : SAMKV_NOT_FOUND;
    fixture_document_free(&d);
    return st == want;
}

START_TEST(what_was_acknowledged_survives_kill)
{
    uint64_t state = 1000 + (uint64_t)_i;
    uint32_t next = 0;
    for (int round = 0; round < 12; round++) {
        uint32_t done = next + run_and_kill(next, &state);
        struct samkv_store *s = fixture_open(&dir, 0);
        bool ahead = false; /* the step under way was committed, but not acknowledged */
        for (uint32_t n = 0; n < 5; n++) {
            bool now = name_is_as_of(s, n, done);
            if (!now && n == done % 5)
                ahead = name_is_as_of(s, n, done + 1);
            ck_assert_msg(now || (n == done % 5 && ahead), "round %d: name %u after %u steps", round, n, done);
        }
        struct samkv_store_stats stats = fixture_stats(s);
        ck_assert_uint_eq(stats.documents, stats.names); /* every document of this test has one name */
        ck_assert_uint_le(stats.documents, 5);
        samkv_store_close(s);
        /* Nothing is left behind that nobody sees: with all names gone the file is empty but for a few pages. */
        next = done + ahead;
    }
    struct samkv_store *s = fixture_open(&dir, 0);
    for (uint32_t n = 0; n < 5; n++) {
        char id[8];
        snprintf(id, sizeof id, "n%u", n);
        enum samkv_status st = samkv_store_name_remove(s, "c", id, NULL);
        ck_assert(st == SAMKV_OK || st == SAMKV_NOT_FOUND);
    }
    samkv_store_close(s);
    s = fixture_open(&dir, 0);
    ck_assert_uint_eq(fixture_stats(s).documents, 0);
    ck_assert_uint_le(fixture_stats(s).bytes_used, 64 << 10);
    samkv_store_close(s);
}
END_TEST

/* A document of several transactions: the first ones are on disk when the writer dies. */
START_TEST(half_a_large_document_is_cleared)
{
    struct fixture_document d;
    struct samkv_kv_shape shape = {8, 8, 128, SAMKV_F32};
    fixture_document_make(&d, 3, shape, 1024, 64); /* 64 MiB in blocks of 4 */
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        struct samkv_store_options o = {.path = dir.path, .codec = SAMKV_CODEC_RAW};
        struct samkv_store *s;
        struct samkv_writer *w;
        struct samkv_store_stats stats = {0};
        uint8_t *bytes;
        if (samkv_store_open(&o, &s, NULL) != SAMKV_OK || samkv_writer_begin(s, &d.m, d.tokens, &w, NULL) != SAMKV_OK)
            _exit(3);
        void **pieces = fixture_block(&d, 0, true, &bytes);
        for (uint32_t b = 0; b < d.m.blocks; b++)
            if (samkv_writer_block(w, b, (const void *const *)pieces, NULL) != SAMKV_OK)
                _exit(4);
        while (stats.bytes_used < 16 << 20)
            if (samkv_store_stats(s, &stats, NULL) != SAMKV_OK)
                _exit(5);
        raise(SIGKILL);
    }
    int status;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_msg(WIFSIGNALED(status), "exit %d", WEXITSTATUS(status));
    ck_assert_uint_ge(fixture_allocated(&dir), 16 << 20); /* it had been there */
    struct samkv_store *s = fixture_open(&dir, 0);
    struct samkv_store_stats stats = fixture_stats(s);
    ck_assert_uint_eq(stats.documents, 0);
    ck_assert_uint_le(stats.bytes_used, 512 << 10); /* the free list itself has some */
    samkv_store_close(s);
    fixture_document_free(&d);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("store_crash");
    TCase *tc = tcase_create("crash");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_loop_test(tc, what_was_acknowledged_survives_kill, 0, 5);
    tcase_add_test(tc, half_a_large_document_is_cleared);
    tcase_set_timeout(tc, 120);
    suite_add_tcase(suite, tc);
    return fixture_run(suite);
}
