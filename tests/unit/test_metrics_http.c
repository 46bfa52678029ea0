#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/net/metrics_http.h"

START_TEST(only_this_machine_is_served)
{
    static const char *const bad[] = {"",
                                      "x",
                                      ":",
                                      "0",
                                      "65536",
                                      "-1",
                                      "9464x",
                                      "0.0.0.0:9464",
                                      "10.0.0.1:9464",
                                      "128.0.0.1:9464",
                                      "127.0.0.1",
                                      "127.0.0.1:",
                                      "127.0.0.1:0",
                                      "127.0.0.1:99999",
                                      "[::]:9464",
                                      "[::2]:9464",
                                      "[]:9464",
                                      "[::1:9464",
                                      "example.org:9464",
                                      "127.0.0.1:9464:1",
                                      "0123456789012345678901234567890123456789012345678901234567890123456789:80"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct samkv_listener l;
        struct samkv_error err;
        ck_assert_msg(samkv_metrics_listen(bad[i], &l, &err) == SAMKV_INVALID, "%s", bad[i]);
        ck_assert_int_eq(l.fd, -1);
        ck_assert_ptr_nonnull(strstr(err.text, "127.0.0.1:PORT"));
    }
}
END_TEST

/* Which port is free nobody knows beforehand. */
START_TEST(loopback_addresses)
{
    static const char *const forms[] = {"", "127.0.0.1:", "localhost:", "127.1.2.3:"};
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        enum samkv_status st = SAMKV_IO;
        struct samkv_listener l, twice;
        struct samkv_error err;
        for (int port = 20000 + getpid() % 20000; st != SAMKV_OK && port < 60000; port++) {
            char address[40];
            snprintf(address, sizeof address, "%s%d", forms[i], port);
            st = samkv_metrics_listen(address, &l, &err);
            if (st == SAMKV_OK)
                ck_assert_int_ne(samkv_metrics_listen(address, &twice, &err), SAMKV_OK);
        }
        ck_assert_int_eq(st, SAMKV_OK);
        samkv_listener_close(&l);
    }
}
END_TEST

START_TEST(a_socket_that_others_may_not_open)
{
    char folder[] = "/tmp/samkv-http-XXXXXX", path[64];
    struct samkv_listener l;
    struct samkv_error err;
    struct stat st;
    ck_assert_ptr_nonnull(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/s", folder);
    ck_assert_int_eq(samkv_metrics_listen(path, &l, &err), SAMKV_OK);
    ck_assert_int_eq(stat(path, &st), 0);
    ck_assert_uint_eq(st.st_mode & 0777, 0660);
    samkv_listener_close(&l);
    ck_assert_int_ne(stat(path, &st), 0);
    rmdir(folder);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("metrics_http");
    TCase *tc = tcase_create("metrics_http");
    tcase_add_test(tc, only_this_machine_is_served);
    tcase_add_test(tc, loopback_addresses);
    tcase_add_test(tc, a_socket_that_others_may_not_open);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
