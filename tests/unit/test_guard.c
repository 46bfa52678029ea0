#include "tests/unit/store_fixture.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "daemon/base/thread.h"
#include "daemon/store/guard.h"

#define PAGE  ((size_t)4096)
#define PAGES ((size_t)4)

static uint8_t *map; /* of a file of one page: the rest raises SIGBUS */

static void setup(void)
{
    char path[] = "/tmp/samkv-guard-XXXXXX";
    int fd = mkstemp(path);
    ck_assert_int_ge(fd, 0);
    unlink(path);
    ck_assert_int_eq(ftruncate(fd, PAGE), 0);
    map = mmap(NULL, PAGES * PAGE, PROT_READ, MAP_SHARED, fd, 0);
    ck_assert_ptr_ne(map, MAP_FAILED);
    close(fd);
    samkv_guard_install();
}

static void teardown(void)
{
    munmap(map, PAGES * PAGE);
}

struct touching {
    size_t at;
    int got;
};

static void touch(void *arg)
{
    struct touching *t = arg;
    t->got = *(volatile uint8_t *)(map + t->at);
}

START_TEST(a_page_that_is_gone_ends_the_section_only)
{
    for (int round = 0; round < 100; round++) { /* the signal does not stay blocked */
        struct touching good = {.at = PAGE - 1, .got = -1}, bad = {.at = PAGE, .got = -1};
        ck_assert(samkv_guard_run(map, PAGES * PAGE, touch, &good));
        ck_assert_int_eq(good.got, 0);
        ck_assert(!samkv_guard_run(map, PAGES * PAGE, touch, &bad));
        ck_assert_int_eq(bad.got, -1);
    }
}
END_TEST

static void nested(void *arg)
{
    struct touching *t = arg, bad = {.at = 2 * PAGE};
    ck_assert(!samkv_guard_run(map, PAGES * PAGE, touch, &bad));
    t->got = 7;
    touch(&bad); /* the inner section is over: this is the outer's */
    t->got = 8;
}

static void inner_is_elsewhere(void *arg)
{
    struct touching bad = {.at = 2 * PAGE};
    bool whole = samkv_guard_run(map, PAGE, touch, &bad);
    *(bool *)arg = whole; /* not reached: the fault is not the inner section's */
}

START_TEST(sections_nest)
{
    struct touching t = {0};
    bool reached = true;
    ck_assert(!samkv_guard_run(map, PAGES * PAGE, nested, &t));
    ck_assert_int_eq(t.got, 7);
    ck_assert(!samkv_guard_run(map, PAGES * PAGE, inner_is_elsewhere, &reached));
    ck_assert(reached);
}
END_TEST

static void *in_a_thread(void *arg)
{
    uintptr_t faults = 0;
    for (size_t i = 0; i < 1000; i++) {
        struct touching t = {.at = (i + (size_t)(uintptr_t)arg) % PAGES * PAGE};
        faults += !samkv_guard_run(map, PAGES * PAGE, touch, &t);
    }
    return (void *)faults; // NOLINT(performance-no-int-to-ptr)
}

START_TEST(each_thread_has_its_own)
{
    pthread_t threads[8];
    for (uintptr_t i = 0; i < 8; i++)
        ck_assert_int_eq(samkv_thread_start(&threads[i], "guard", in_a_thread, (void *)i), SAMKV_OK); // NOLINT
    for (size_t i = 0; i < 8; i++) {
        void *faults;
        pthread_join(threads[i], &faults);
        ck_assert_uint_eq((uintptr_t)faults, 750);
    }
}
END_TEST

static void give_up(void *arg)
{
    *(int *)arg = 1;
    samkv_guard_leave();
    *(int *)arg = 2;
}

START_TEST(a_section_can_be_left_by_itself)
{
    int reached = 0;
    samkv_guard_leave(); /* none: nothing happens */
    ck_assert(!samkv_guard_run(map, PAGE, give_up, &reached));
    ck_assert_int_eq(reached, 1);
}
END_TEST

/* Outside a section, outside its memory, or sent by somebody: nobody's business but the previous owner's. */
START_TEST(other_faults_are_passed_on)
{
    for (int way = 0; way < 3; way++) {
        pid_t child = fork();
        if (child == 0) {
            struct touching bad = {.at = 3 * PAGE};
            if (way == 0)
                touch(&bad);
            else if (way == 1)
                (void)!samkv_guard_run(map, PAGE, touch, &bad);
            else
                raise(SIGBUS);
            _exit(0);
        }
        int status;
        ck_assert_int_eq(waitpid(child, &status, 0), child);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) /* they end a process in their own way */
        ck_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
#else
        ck_assert(WIFSIGNALED(status) || WEXITSTATUS(status) != 0);
#endif
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("guard");
    TCase *tc = tcase_create("guard");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, a_page_that_is_gone_ends_the_section_only);
    tcase_add_test(tc, sections_nest);
    tcase_add_test(tc, each_thread_has_its_own);
    tcase_add_test(tc, a_section_can_be_left_by_itself);
    tcase_add_test(tc, other_faults_are_passed_on);
    suite_add_tcase(suite, tc);
    return fixture_run(suite);
}
