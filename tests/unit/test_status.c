#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "proto/status.h"

static const struct {
    const char *quoted, *shown;
} texts[] = {
    {"plain", "plain"},
    {"two\nlines\r\x1b[2J\x7f", "two?lines??[2J?"},
    {"caf\xc3\xa9 \xe4\xb8\xad \xf0\x9f\x98\x80", "caf\xc3\xa9 \xe4\xb8\xad \xf0\x9f\x98\x80"},
    {"\xff\xc3(", "\?\?("},
    {"\xc0\x80 \xed\xa0\x80 \xf4\x90\x80\x80", "?? ??? ????"}, /* overlong, a surrogate, too high */
    {"cut \xe4\xb8", "cut ??"},
};

START_TEST(errors_are_printable)
{
    struct samkv_error err;
    ck_assert_int_eq(samkv_fail(&err, SAMKV_CORRUPT, "%s", texts[_i].quoted), SAMKV_CORRUPT);
    ck_assert_str_eq(err.text, texts[_i].shown);
    samkv_fail_errno(&err, ENOENT, "%s", texts[_i].quoted);
    ck_assert_int_eq(strncmp(err.text, texts[_i].shown, strlen(texts[_i].shown)), 0);
}
END_TEST

/* The buffer's end may fall into a character. */
START_TEST(a_character_that_does_not_fit)
{
    struct samkv_error err;
    char text[600];
    memset(text, 'a', sizeof text);
    memcpy(text + sizeof err.text - 2, "\xc3\xa9", 3);
    samkv_fail(&err, SAMKV_INVALID, "%s", text);
    ck_assert_uint_eq(strlen(err.text), sizeof err.text - 1);
    ck_assert_int_eq(err.text[sizeof err.text - 2], '?');
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("status");
    TCase *tc = tcase_create("status");
    tcase_add_loop_test(tc, errors_are_printable, 0, sizeof texts / sizeof *texts);
    tcase_add_test(tc, a_character_that_does_not_fit);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
