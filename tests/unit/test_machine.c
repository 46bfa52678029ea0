#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "daemon/base/machine.h"

#define GIB ((uint64_t)1 << 30)

static char root[] = "/tmp/samkv-machine-XXXXXX";
static char self[64];

static void put(const char *path, const char *text)
{
    char full[160];
    snprintf(full, sizeof full, "%s/%s", root, path);
    for (char *at = full + strlen(root) + 1; (at = strchr(at, '/')); at++) {
        *at = '\0';
        mkdir(full, 0700);
        *at = '/';
    }
    FILE *f = fopen(full, "w");
    ck_assert_ptr_nonnull(f);
    fputs(text, f);
    fclose(f);
}

START_TEST(the_lowest_limit_on_the_way_up_counts)
{
    ck_assert_ptr_nonnull(mkdtemp(root));
    snprintf(self, sizeof self, "%s/self", root);
    ck_assert_uint_eq(samkv_machine_limit_bytes(8 * GIB, self, root), 8 * GIB); /* no such file */
    put("self", "12:cpuset:/old\n0::/system.slice/samkvd.service\n");
    ck_assert_uint_eq(samkv_machine_limit_bytes(8 * GIB, self, root), 8 * GIB);
    put("system.slice/samkvd.service/memory.max", "max\n");
    ck_assert_uint_eq(samkv_machine_limit_bytes(8 * GIB, self, root), 8 * GIB);
    put("system.slice/memory.max", "3221225472\n");
    ck_assert_uint_eq(samkv_machine_limit_bytes(8 * GIB, self, root), 3 * GIB);
    put("system.slice/samkvd.service/memory.max", "1073741824\n");
    ck_assert_uint_eq(samkv_machine_limit_bytes(8 * GIB, self, root), GIB);
    put("memory.max", "1048576\n"); /* a container's own group */
    ck_assert_uint_eq(samkv_machine_limit_bytes(8 * GIB, self, root), 1 << 20);
    put("memory.max", "99999999999999\n");
    ck_assert_uint_eq(samkv_machine_limit_bytes(GIB / 2, self, root), GIB / 2);
    put("self", "12:cpuset:/old\n");
    ck_assert_uint_eq(samkv_machine_limit_bytes(8 * GIB, self, root), 8 * GIB);
    char command[64];
    snprintf(command, sizeof command, "rm -r %s", root);
    ck_assert_int_eq(system(command), 0);
}
END_TEST

START_TEST(this_machine_has_memory)
{
    ck_assert_uint_gt(samkv_machine_memory_bytes(), 1 << 20);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("machine");
    TCase *tc = tcase_create("machine");
    tcase_add_test(tc, the_lowest_limit_on_the_way_up_counts);
    tcase_add_test(tc, this_machine_has_memory);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
