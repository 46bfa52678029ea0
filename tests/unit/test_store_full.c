#include "tests/unit/store_fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>

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
    umount2(dir.path, MNT_DETACH); /* if it is a disk of its own */
    fixture_directory_remove(&dir);
}

static struct fixture_document document(uint32_t seed)
{
    struct fixture_document d;
    fixture_document_make(&d, seed, shape, 64, 16); /* 256 KiB of which little compresses */
    return d;
}

/* Ingests documents from `seed` on until one fails; how many went in. */
static uint32_t fill(uint32_t seed, enum samkv_status *st)
{
    uint32_t count = 0;
    for (*st = SAMKV_OK; *st == SAMKV_OK && count < 1000; count++) {
        struct fixture_document d = document(seed + count);
        char id[16];
        snprintf(id, sizeof id, "%u", seed + count);
        *st = fixture_ingest(store, &d, id, &err);
        fixture_document_free(&d);
    }
    return count - 1;
}

static void assert_readable(uint32_t from, uint32_t to)
{
    for (uint32_t i = from; i < to; i++) {
        struct fixture_document d = document(i);
        char id[16];
        snprintf(id, sizeof id, "%u", i);
        ck_assert_int_eq(fixture_check_name(store, id, &d), SAMKV_OK);
        fixture_document_free(&d);
    }
}

static void remove_range(uint32_t from, uint32_t to)
{
    for (uint32_t i = from; i < to; i++) {
        char id[16];
        snprintf(id, sizeof id, "%u", i);
        FIXTURE_OK(samkv_store_name_remove(store, "c", id, &err));
    }
}

START_TEST(the_limit_holds_and_removing_makes_room)
{
    const uint64_t limit = (uint64_t)(_i ? 9 : 3) << 20;
    enum samkv_status st;
    store = fixture_open(&dir, limit);
    uint32_t in = fill(0, &st), before = in;
    ck_assert_int_eq(st, SAMKV_FULL);
    ck_assert_msg(strstr(err.text, "remove documents or raise the limit"), "%s", err.text);
    ck_assert_uint_ge(in, limit / 2 / (256 << 10)); /* it was used */
    for (uint32_t round = 1; round <= 5; round++) {
        ck_assert_uint_le(fixture_allocated(&dir), limit);
        assert_readable(1000 * (round - 1), 1000 * (round - 1) + in);
        ck_assert_int_eq(fixture_check_name(store, "nobody", &(struct fixture_document){0}), SAMKV_NOT_FOUND);
        remove_range(1000 * (round - 1), 1000 * (round - 1) + in);
        in = fill(1000 * round, &st); /* at once: what is being removed must count as room */
        ck_assert_int_eq(st, SAMKV_FULL);
        ck_assert_uint_ge(4 * in, 3 * before); /* free pages are no longer in one piece */
    }
    samkv_store_close(store);
    store = fixture_open(&dir, limit);
    assert_readable(5000, 5000 + in);
    ck_assert_uint_eq(fixture_stats(store).documents, in);
}
END_TEST

/* To the last page, with ever smaller things; then everything must still be removable. */
START_TEST(a_store_that_is_full_to_the_brim_can_be_emptied)
{
    enum samkv_status st;
    struct fixture_document tiny;
    char id[SAMKV_ID_MAX_BYTES + 1], title[2001];
    uint32_t names = 0;
    store = fixture_open(&dir, (uint64_t)2 << 20);
    uint32_t in = fill(0, &st);
    fixture_document_make(&tiny, 1, (struct samkv_kv_shape){1, 1, 1, SAMKV_F32}, 1, 1);
    remove_range(0, 1);
    FIXTURE_OK(fixture_ingest(store, &tiny, "tiny", &err));
    memset(title, 't', sizeof title - 1);
    title[sizeof title - 1] = 0;
    for (size_t length = sizeof title - 1; length; length /= 8) {
        title[length] = 0;
        do {
            snprintf(id, sizeof id, "name%0*u", (int)(length / 10), names++);
            st = samkv_store_name_put(store, "c", id, title, &tiny.m.key, &err);
            ck_assert_uint_lt(names, 20000);
        } while (st == SAMKV_OK);
        ck_assert_int_eq(st, SAMKV_FULL);
    }
    remove_range(1, in);
    FIXTURE_OK(fixture_ingest(store, &tiny, "more", &err));
    fixture_document_free(&tiny);
}
END_TEST

START_TEST(a_lowered_limit_keeps_what_is_there)
{
    enum samkv_status st;
    store = fixture_open(&dir, 6 << 20);
    uint32_t in = fill(0, &st);
    samkv_store_close(store);
    store = fixture_open(&dir, 2 << 20);
    assert_readable(0, in);
    struct fixture_document d = document(9999);
    ck_assert_int_eq(fixture_ingest(store, &d, "new", &err), SAMKV_FULL);
    remove_range(0, in);
    fixture_document_free(&d);
}
END_TEST

/* The file system's limit instead of ours; LMDB then sees short writes and errors in the middle of a transaction. */
START_TEST(a_full_disk_fails_one_document_not_the_store)
{
    enum samkv_status st;
    store = fixture_open_with(&dir, 0, SAMKV_COMPACT_OFF); /* this limit is a file's: another one has it again */
    struct rlimit old, small;
    ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &old), 0);
    small = old;
    small.rlim_cur = (rlim_t)(5 << 20) + (rlim_t)_i * 1111;
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &small), 0);
    uint32_t in = fill(0, &st);
    ck_assert_msg(st == SAMKV_FULL, "%s: %s", samkv_status_name(st), err.text);
    ck_assert_uint_ge(in, 5);
    assert_readable(0, in);
    ck_assert_int_eq(fill(500, &st), 0);
    ck_assert_int_eq(st, SAMKV_FULL);
    remove_range(0, in);
    uint32_t again = fill(1000, &st);
    ck_assert_uint_ge(4 * again, 3 * in);
    assert_readable(1000, 1000 + again);
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &old), 0);
    FIXTURE_OK(({
        struct fixture_document d = document(7777);
        st = fixture_ingest(store, &d, "7777", &err);
        fixture_document_free(&d);
        st;
    }));
    assert_readable(7777, 7778);
    samkv_store_close(store);
    store = fixture_open(&dir, 0);
    assert_readable(1000, 1000 + again);
    assert_readable(7777, 7778);
}
END_TEST

/* ------------------------------------------------------------------ a disk of its own */

#define DISK_MIB 40

static bool write_line(const char *path, const char *line)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    bool written = fd >= 0 && write(fd, line, strlen(line)) == (ssize_t)strlen(line);
    if (fd >= 0)
        close(fd);
    return written;
}

/* In namespaces of this process alone, so the mount goes with it; not root's right where users may have them. */
static bool mount_disk(const char *path, unsigned mib)
{
    char options[64], line[64];
    unsigned uid = geteuid(), gid = getegid();
    if (unshare(CLONE_NEWNS) != 0) {
        if (unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0)
            return false;
        snprintf(line, sizeof line, "0 %u 1", uid);
        if (!write_line("/proc/self/setgroups", "deny") || !write_line("/proc/self/uid_map", line))
            return false;
        snprintf(line, sizeof line, "0 %u 1", gid);
        if (!write_line("/proc/self/gid_map", line))
            return false;
    }
    if (mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0)
        return false;
    snprintf(options, sizeof options, "size=%um", mib);
    return mount("none", path, "tmpfs", 0, options) == 0;
}

/* Somebody else's file, which takes what the store counted on. */
static void write_ballast(unsigned mib)
{
    char path[128];
    snprintf(path, sizeof path, "%s/ballast", dir.path);
    int fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(posix_fallocate(fd, 0, (off_t)mib << 20), 0);
    close(fd);
}

/* Every second, or (step 1) every one. */
static void remove_some(uint32_t from, uint32_t to, uint32_t step)
{
    for (uint32_t i = from; i < to; i += step)
        remove_range(i, i + 1);
}

/* With compaction, whenever it likes to run: what was removed can be filled again, whether it was all or every second
 * document. */
START_TEST(a_full_disk_does_not_strand_what_is_removed)
{
    enum samkv_status st;
    if (!mount_disk(dir.path, DISK_MIB)) {
        fprintf(stderr, "no disk of its own could be mounted (%s): not tried\n", strerror(errno));
        return;
    }
    store = fixture_open(&dir, 0); /* with all of the disk as its limit */
    write_ballast(DISK_MIB / 2);
    uint32_t in = fill(0, &st), step = _i ? 2 : 1;
    ck_assert_msg(st == SAMKV_FULL, "%s: %s", samkv_status_name(st), err.text);
    for (uint32_t round = 1; round <= 4; round++) {
        if (round > 2)
            usleep(1500000); /* a compaction begins by itself */
        remove_some(1000 * (round - 1), 1000 * (round - 1) + in, step);
        uint32_t removed = (in + step - 1) / step, again = fill(1000 * round, &st);
        ck_assert_int_eq(st, SAMKV_FULL);
        ck_assert_msg(8 * again >= 7 * removed, "round %u: %u of %u", round, again, removed);
        assert_readable(1000 * round, 1000 * round + again);
        if (step == 2) /* all of one kind again */
            for (uint32_t i = 1; i < in; i += 2)
                remove_range(1000 * (round - 1) + i, 1000 * (round - 1) + i + 1);
        in = step == 2 ? again + fill(1000 * round + again, &st) : again;
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("store_full");
    TCase *tc = tcase_create("full");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_loop_test(tc, the_limit_holds_and_removing_makes_room, 0, 2);
    tcase_add_test(tc, a_store_that_is_full_to_the_brim_can_be_emptied);
    tcase_add_test(tc, a_lowered_limit_keeps_what_is_there);
    tcase_add_loop_test(tc, a_full_disk_fails_one_document_not_the_store, 0, 6);
    tcase_add_loop_test(tc, a_full_disk_does_not_strand_what_is_removed, 0, 2);
    tcase_set_timeout(tc, 120);
    suite_add_tcase(suite, tc);
    return fixture_run(suite);
}
