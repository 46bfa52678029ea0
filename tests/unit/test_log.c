#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "daemon/base/log.h"
#include "daemon/base/log_journal.h"
#include "daemon/base/log_limit.h"

/* ------------------------------------------------------------------ how often */

static const char here[] = "here %d", there[] = "there %d";

START_TEST(a_burst_passes_and_the_rest_is_counted)
{
    struct samkv_log_limit l = SAMKV_LOG_LIMIT_INIT;
    struct samkv_log_site site;
    int passed = 0;
    for (int i = 0; i < 100; i++)
        passed += samkv_log_limit_pass(&l, here, 1, 1000 + (uint64_t)i);
    ck_assert_int_eq(passed, SAMKV_LOG_BURST);
    ck_assert(samkv_log_limit_pass(&l, there, 2, 1000)); /* another place has its own burst */
    ck_assert(!samkv_log_limit_next(&l, 1000 + SAMKV_LOG_WINDOW_MS - 1, &site));
    ck_assert(samkv_log_limit_next(&l, 1000 + SAMKV_LOG_WINDOW_MS, &site));
    ck_assert_ptr_eq(site.format, here);
    ck_assert_uint_eq(site.suppressed, 100 - SAMKV_LOG_BURST);
    ck_assert_int_eq(site.level, 1);
    ck_assert(!samkv_log_limit_next(&l, 1000 + SAMKV_LOG_WINDOW_MS, &site)); /* told once */
    ck_assert(samkv_log_limit_pass(&l, here, 1, 1001 + SAMKV_LOG_WINDOW_MS));
}
END_TEST

START_TEST(a_quiet_place_begins_anew)
{
    struct samkv_log_limit l = SAMKV_LOG_LIMIT_INIT;
    struct samkv_log_site site;
    for (int window = 0; window < 3; window++)
        for (int i = 0; i < SAMKV_LOG_BURST; i++)
            ck_assert(samkv_log_limit_pass(&l, here, 1, (uint64_t)window * SAMKV_LOG_WINDOW_MS + 7));
    ck_assert(!samkv_log_limit_next(&l, UINT64_MAX, &site));
}
END_TEST

START_TEST(more_places_than_room)
{
    static const char formats[SAMKV_LOG_SITES + 10][8];
    struct samkv_log_limit l = SAMKV_LOG_LIMIT_INIT;
    for (int i = 0; i < SAMKV_LOG_SITES + 10; i++)
        for (int k = 0; k < SAMKV_LOG_BURST + 1; k++) {
            bool room = i < SAMKV_LOG_SITES;
            ck_assert_int_eq(samkv_log_limit_pass(&l, formats[i], 1, 5), !room || k < SAMKV_LOG_BURST);
        }
}
END_TEST

/* ------------------------------------------------------------------ the journal's form */

static const char *entry_of(const char *text)
{
    static char out[SAMKV_JOURNAL_BYTES + 1];
    size_t n = samkv_journal_entry(4, text, strlen(text), out);
    ck_assert_uint_le(n, SAMKV_JOURNAL_BYTES);
    out[n] = 0;
    return out;
}

#define HEAD(message) "PRIORITY=4\nSYSLOG_IDENTIFIER=samkvd\nMESSAGE=" message "\n"

START_TEST(fields_become_fields)
{
    ck_assert_str_eq(
        entry_of("done req=17 type=FETCH note=\"two words\" x"),
        HEAD("done req=17 type=FETCH note=\"two words\" x") "SAMKV_REQ=17\nSAMKV_TYPE=FETCH\nSAMKV_NOTE=two words\n");
    ck_assert_str_eq(entry_of("nothing"), HEAD("nothing"));
    ck_assert_str_eq(entry_of(""), HEAD(""));
    ck_assert_str_eq(entry_of("=x a= A=b a==c\"d"), HEAD("=x a= A=b a==c\"d") "SAMKV_A=\n");
    ck_assert_str_eq(entry_of("a=\"no end"), HEAD("a=\"no end") "SAMKV_A=no end\n");
}
END_TEST

/* Behind ": " a client may have written; before it, the first one of a name is ours. */
START_TEST(a_client_makes_no_fields)
{
    ck_assert_str_eq(entry_of("failed req=17 status=INVALID: id 'x' req=18 uid=0"),
                     HEAD("failed req=17 status=INVALID: id 'x' req=18 uid=0") "SAMKV_REQ=17\nSAMKV_STATUS=INVALID\n");
    ck_assert_str_eq(entry_of("req=1 req=2"), HEAD("req=1 req=2") "SAMKV_REQ=1\n");
}
END_TEST

START_TEST(long_lines_and_many_fields)
{
    char text[3 * SAMKV_JOURNAL_BYTES];
    size_t used = 0;
    for (int i = 0; used + 20 < sizeof text; i++)
        used += (size_t)snprintf(text + used, sizeof text - used, "key%d=value%d ", i, i);
    const char *entry = entry_of(text);
    ck_assert_ptr_nonnull(strstr(entry, "\nSAMKV_KEY15=value15\n"));
    ck_assert_ptr_null(strstr(entry, "\nSAMKV_KEY16="));
    memset(text, 'a', sizeof text - 1);
    text[sizeof text - 1] = 0;
    text[SAMKV_JOURNAL_BYTES / 2 - 2] = '=';
    entry_of(text); /* a name that is too long */
}
END_TEST

START_TEST(lines_reach_the_journal)
{
    char folder[] = "/tmp/samkv-log-XXXXXX", got[SAMKV_JOURNAL_BYTES + 1];
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    ck_assert_ptr_nonnull(mkdtemp(folder));
    snprintf(address.sun_path, sizeof address.sun_path, "%s/socket", folder);
    ck_assert(!samkv_log_to_journal(address.sun_path)); /* nobody listens */
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    ck_assert_int_eq(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    ck_assert(samkv_log_to_journal(address.sun_path));
    samkv_log(SAMKV_LOG_DEBUG, "not at this level");
    samkv_log(SAMKV_LOG_WARNING, "hello agent=%s: %s", "a", "new\nline \033[31m");
    ssize_t n = recv(fd, got, sizeof got - 1, MSG_DONTWAIT);
    ck_assert_int_gt(n, 0);
    got[n] = 0;
    ck_assert_str_eq(got, HEAD("hello agent=a: new?line ?[31m") "SAMKV_AGENT=a\n");
    for (int i = 0; i < SAMKV_LOG_BURST + 5; i++)
        samkv_log(SAMKV_LOG_ERROR, "again n=%d", i);
    int lines = 0;
    while (recv(fd, got, sizeof got, MSG_DONTWAIT) > 0)
        lines++;
    ck_assert_int_eq(lines, SAMKV_LOG_BURST);
    close(fd);
    unlink(address.sun_path);
    rmdir(folder);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("log");
    TCase *tc = tcase_create("log");
    tcase_add_test(tc, a_burst_passes_and_the_rest_is_counted);
    tcase_add_test(tc, a_quiet_place_begins_anew);
    tcase_add_test(tc, more_places_than_room);
    tcase_add_test(tc, fields_become_fields);
    tcase_add_test(tc, a_client_makes_no_fields);
    tcase_add_test(tc, long_lines_and_many_fields);
    tcase_add_test(tc, lines_reach_the_journal);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
