#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/net/settings.h"
#include "daemon/store/store.h"
#include "proto/tensor.h"

static char *no_environment(const char *name)
{
    (void)name;
    return NULL;
}

static char *some_environment(const char *name)
{
    static const char *const pairs[][2] = {{"SAMKV_SOCKET", "/env.sock"},        {"SAMKV_WORKERS", "7"},
                                           {"SAMKV_MODEL", "env=/env"},          {"SAMKV_CODEC", ""},
                                           {"STATE_DIRECTORY", "/state:/other"}, {"RUNTIME_DIRECTORY", "/run/x"}};
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
        if (strcmp(pairs[i][0], name) == 0)
            return (char *)pairs[i][1];
    return NULL;
}

#define MAX_ARGUMENTS 90

/* Reads arguments that are given as one text, parted by spaces. */
static enum samkv_status read_settings(struct samkv_settings *s, const char *text, char *(*lookup)(const char *),
                                       struct samkv_error *err)
{
    char copy[2000], *argv[MAX_ARGUMENTS] = {"samkvd"}, *rest = copy, *word;
    int argc = 1;
    snprintf(copy, sizeof copy, "%s", text);
    while ((word = strsep(&rest, " ")) && argc < MAX_ARGUMENTS)
        if (*word)
            argv[argc++] = word;
    return samkv_settings_read(s, argc, argv, lookup, err);
}

static void write_file(char path[32], const char *text)
{
    strcpy(path, "/tmp/samkv-options-XXXXXX");
    int fd = mkstemp(path);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
}

START_TEST(defaults)
{
    struct samkv_settings s;
    struct samkv_error err;
    ck_assert_int_eq(read_settings(&s, "--store /d", no_environment, &err), SAMKV_OK);
    ck_assert_str_eq(s.device, "auto");
    ck_assert_str_eq(s.store, "/d");
    ck_assert_str_eq(s.socket, "/run/samkv/samkv.sock");
    ck_assert_int_eq(s.dtype, -1);
    ck_assert_int_eq(s.codec, SAMKV_CODEC_DEFAULT);
    ck_assert_int_eq(s.log_level, 2);
    ck_assert_int_ge(s.workers, 8);
    ck_assert_int_eq(s.store_max_bytes, 0);
    ck_assert_int_gt(s.host_cache_bytes, 0);
    ck_assert_int_le(s.host_cache_bytes, INT64_C(4) << 30);
    ck_assert_int_eq(s.device_cache_bytes, 0);
    ck_assert_int_eq(s.device_reply_bytes, 0);
    ck_assert_uint_eq(s.models.count, 0);
    samkv_settings_deinit(&s);
}
END_TEST

START_TEST(arguments_of_every_kind)
{
    struct samkv_settings s;
    struct samkv_error err;
    ck_assert_int_eq(read_settings(&s,
                                   "--store=/d --socket /s --model a=/x --model=b=/y=z --device cuda:1 --dtype f16 "
                                   "--threads 3 --workers=2 --store-max-bytes 10G --codec raw --log-level debug "
                                   "--device-cache-bytes 3G --device-reply-bytes=512M --host-cache-bytes 256M",
                                   no_environment, &err),
                     SAMKV_OK);
    ck_assert_str_eq(s.socket, "/s");
    ck_assert_uint_eq(s.models.count, 2);
    ck_assert_str_eq(s.models.items[0], "a=/x");
    ck_assert_str_eq(s.models.items[1], "b=/y=z");
    ck_assert_str_eq(s.device, "cuda:1");
    ck_assert_int_eq(s.dtype, SAMKV_F16);
    ck_assert_int_eq(s.threads, 3);
    ck_assert_int_eq(s.workers, 2);
    ck_assert_int_eq(s.store_max_bytes, INT64_C(10) << 30);
    ck_assert_int_eq(s.device_cache_bytes, INT64_C(3) << 30);
    ck_assert_int_eq(s.device_reply_bytes, INT64_C(512) << 20);
    ck_assert_int_eq(s.host_cache_bytes, INT64_C(256) << 20);
    ck_assert_int_eq(s.codec, 0);
    ck_assert_int_eq(s.log_level, 3);
    samkv_settings_deinit(&s);
}
END_TEST

START_TEST(no_host_cache_or_one_that_can_be)
{
    struct samkv_settings s;
    struct samkv_error err;
    ck_assert_int_eq(read_settings(&s, "--store /d --host-cache-bytes 0", no_environment, &err), SAMKV_OK);
    ck_assert_int_eq(s.host_cache_bytes, 0);
    samkv_settings_deinit(&s);
    ck_assert_int_eq(read_settings(&s, "--store /d --host-cache-bytes 1M", no_environment, &err), SAMKV_OK);
    samkv_settings_deinit(&s);
    ck_assert_int_eq(read_settings(&s, "--store /d --host-cache-bytes 1048575", no_environment, &err), SAMKV_INVALID);
    ck_assert_ptr_nonnull(strstr(err.text, "--host-cache-bytes"));
    samkv_settings_deinit(&s);
}
END_TEST

START_TEST(help_and_version_need_nothing_else)
{
    struct samkv_settings s;
    struct samkv_error err;
    ck_assert_int_eq(read_settings(&s, "--help", no_environment, &err), SAMKV_OK);
    ck_assert(s.help && !s.version);
    samkv_settings_deinit(&s);
    ck_assert_int_eq(read_settings(&s, "--version", no_environment, &err), SAMKV_OK);
    ck_assert(s.version && !s.help);
    samkv_settings_deinit(&s);
}
END_TEST

static const struct {
    const char *arguments, *message; /* a part of it */
} wrong[] = {
    {"--modle x=/y", "did you mean --model?"},
    {"--sockt=/x", "did you mean --socket?"},
    {"--store-max-byte 3", "did you mean --store-max-bytes?"},
    {"serve", "'serve' is not an option"},
    {"--", "'--' is not an option"},
    {"-v", "'-v' is not an option"},
    {"--store", "--store needs a value: --store DIR"},
    {"--help=1", "--help takes no value"},
    {"--store=", "--store: empty; give DIR"},
    {"--threads many", "--threads: 'many' is not a whole number"},
    {"--threads 3x", "'3x' is not a whole number"},
    {"--threads -1", "-1 is out of range; give 0 to 1024"},
    {"--threads 99999999999999999999", "is not a whole number"},
    {"--workers 1", "give 2 or more"},
    {"--workers 257", "give 0 to 256"},
    {"--store-max-bytes 10X", "is not a size"},
    {"--store-max-bytes 10GB", "is not a size"},
    {"--store-max-bytes 9999999999999G", "is not a size"},
    {"--store-max-bytes -1G", "is not a size"},
    {"--codec lz4", "'lz4' is none of raw, zstd"},
    {"--dtype f64", "'f64' is none of auto, f32, bf16, f16"},
    {"--log-level loud", "none of error, warning, info, debug"},
    {"--config /nowhere/at/all.conf", "cannot read the configuration file /nowhere/at/all.conf"},
};

START_TEST(wrong_arguments_say_what_to_do)
{
    struct samkv_settings s;
    struct samkv_error err = {0};
    ck_assert_int_ne(read_settings(&s, wrong[_i].arguments, no_environment, &err), SAMKV_OK);
    ck_assert_msg(strstr(err.text, wrong[_i].message) != NULL, "%s: %s", wrong[_i].arguments, err.text);
    samkv_settings_deinit(&s);
}
END_TEST

START_TEST(too_many_models)
{
    struct samkv_settings s;
    struct samkv_error err;
    char text[2000] = "";
    for (int i = 0; i < SAMKV_MAX_LIST + 1; i++)
        strcat(text, "--model=a=/b ");
    ck_assert_int_eq(read_settings(&s, text, no_environment, &err), SAMKV_INVALID);
    samkv_settings_deinit(&s);
}
END_TEST

START_TEST(environment_and_its_place)
{
    struct samkv_settings s;
    struct samkv_error err;
    ck_assert_int_eq(read_settings(&s, "--workers 3", some_environment, &err), SAMKV_OK);
    ck_assert_str_eq(s.socket, "/env.sock");
    ck_assert_str_eq(s.store, "/state"); /* the first of systemd's list */
    ck_assert_int_eq(s.workers, 3);
    ck_assert_str_eq(s.models.items[0], "env=/env");
    ck_assert_int_eq(s.codec, SAMKV_CODEC_DEFAULT); /* empty means unset */
    samkv_settings_deinit(&s);
    ck_assert_int_eq(read_settings(&s, "--model a=/a --model b=/b", some_environment, &err), SAMKV_OK);
    ck_assert_uint_eq(s.models.count, 2); /* a list is taken whole from one source */
    ck_assert_str_eq(s.models.items[0], "a=/a");
    samkv_settings_deinit(&s);
}
END_TEST

START_TEST(file_and_its_place)
{
    struct samkv_settings s;
    struct samkv_error err;
    char path[32], arguments[100];
    write_file(path, "; comment\nsocket = /file.sock\n[samkvd]\nworkers = 5\nthreads = 9\nstore=/from file\n"
                     "[model]\nsmall = /m/small.gguf\nlarge = /m/large\n");
    snprintf(arguments, sizeof arguments, "--config %s --threads 2", path);
    ck_assert_int_eq(read_settings(&s, arguments, no_environment, &err), SAMKV_OK);
    ck_assert_str_eq(s.socket, "/file.sock");
    ck_assert_str_eq(s.store, "/from file");
    ck_assert_int_eq(s.workers, 5);
    ck_assert_int_eq(s.threads, 2);
    ck_assert_uint_eq(s.models.count, 2);
    ck_assert_str_eq(s.models.items[0], "small=/m/small.gguf");
    ck_assert_str_eq(s.models.items[1], "large=/m/large");
    samkv_settings_deinit(&s);
    ck_assert_int_eq(read_settings(&s, arguments, some_environment, &err), SAMKV_OK);
    ck_assert_str_eq(s.socket, "/env.sock");
    ck_assert_int_eq(s.workers, 7);
    ck_assert_uint_eq(s.models.count, 1);
    samkv_settings_deinit(&s);
    unlink(path);
}
END_TEST

static const struct {
    const char *text, *message;
} wrong_files[] = {
    {"[samkvd]\nworkers = 5\nsokcet = /x\n", ":3: unknown option 'sokcet'; did you mean socket?"},
    {"[samkvd]\n\nworkers = x\n", ":3: workers: 'x' is not a whole number"},
    {"[other]\nworkers = 5\n", "unknown section [other]"},
    {"[samkvd]\nworkers\n", ":2: not of the form"},
    {"help = 1\n", "unknown option 'help'"},
    {"[model]\n = /x\n", ":2: no name stands before '/x'"},
};

START_TEST(wrong_files_name_the_line)
{
    struct samkv_settings s;
    struct samkv_error err = {0};
    char path[32], arguments[100];
    write_file(path, wrong_files[_i].text);
    snprintf(arguments, sizeof arguments, "--config %s", path);
    ck_assert_int_eq(read_settings(&s, arguments, no_environment, &err), SAMKV_INVALID);
    ck_assert_msg(strstr(err.text, wrong_files[_i].message) != NULL, "%s", err.text);
    samkv_settings_deinit(&s);
    unlink(path);
}
END_TEST

START_TEST(a_long_line_is_not_cut_in_two)
{
    struct samkv_settings s;
    struct samkv_error err = {0};
    char path[32], arguments[100], text[600];
    int used = snprintf(text, sizeof text, "workers = 5\nstore = /");
    memset(text + used, 'd', 400);
    strcpy(text + used + 400, "\n");
    write_file(path, text);
    snprintf(arguments, sizeof arguments, "--config %s", path);
    ck_assert_int_eq(read_settings(&s, arguments, no_environment, &err), SAMKV_INVALID);
    ck_assert_msg(strstr(err.text, ":2: line is longer than") != NULL, "%s", err.text);
    samkv_settings_deinit(&s);
    unlink(path);
}
END_TEST

START_TEST(indented_lines_are_options_too)
{
    struct samkv_settings s;
    struct samkv_error err = {0};
    char path[32], arguments[100];
    write_file(path, "[samkvd]\n  store = /a\n  workers = 5\n\t; a comment\n[model]\n  a = /m\n \tb = /n\n");
    snprintf(arguments, sizeof arguments, "--config %s", path);
    ck_assert_msg(read_settings(&s, arguments, no_environment, &err) == SAMKV_OK, "%s", err.text);
    ck_assert_str_eq(s.store, "/a"); /* and not "workers = 5" */
    ck_assert_int_eq(s.workers, 5);
    ck_assert_uint_eq(s.models.count, 2);
    ck_assert_str_eq(s.models.items[1], "b=/n");
    samkv_settings_deinit(&s);
    unlink(path);
}
END_TEST

START_TEST(help_has_every_option_of_the_example)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    samkv_settings_help(out);
    fclose(out);
    const char *const names[] = {"--config",
                                 "--store ",
                                 "--socket",
                                 "--model",
                                 "--device",
                                 "--dtype",
                                 "--threads",
                                 "--workers",
                                 "--store-max-bytes",
                                 "--codec",
                                 "--log-level",
                                 "--help",
                                 "--version",
                                 "--device-cache-bytes",
                                 "--device-reply-bytes"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        ck_assert_msg(strstr(text, names[i]) != NULL, "%s", names[i]);
    free(text);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("options");
    TCase *tc = tcase_create("options");
    tcase_add_test(tc, defaults);
    tcase_add_test(tc, arguments_of_every_kind);
    tcase_add_test(tc, no_host_cache_or_one_that_can_be);
    tcase_add_test(tc, help_and_version_need_nothing_else);
    tcase_add_loop_test(tc, wrong_arguments_say_what_to_do, 0, sizeof wrong / sizeof *wrong);
    tcase_add_test(tc, too_many_models);
    tcase_add_test(tc, environment_and_its_place);
    tcase_add_test(tc, file_and_its_place);
    tcase_add_loop_test(tc, wrong_files_name_the_line, 0, sizeof wrong_files / sizeof *wrong_files);
    tcase_add_test(tc, a_long_line_is_not_cut_in_two);
    tcase_add_test(tc, indented_lines_are_options_too);
    tcase_add_test(tc, help_has_every_option_of_the_example);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
