#pragma once
/* For tests of samkvctl: runs the binary beside the tests in a directory of its own, against one scripted connection.
 */
#include <stdio.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "tests/unit/fake_daemon.h"

static char directory[64], socket_path[96];

/* The daemon of one test: takes one connection and runs the script on it. */
struct host {
    struct fake_daemon daemon;
    int listener;
};

static inline void *accept_one(void *arg)
{
    struct host *host = arg;
    host->daemon.socket = accept4(host->listener, NULL, NULL, SOCK_CLOEXEC);
    if (host->daemon.socket >= 0)
        fake_run(&host->daemon);
    return NULL;
}

static inline void host_start(struct host *host, void (*script)(struct fake_daemon *), const void *arg)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", socket_path);
    *host = (struct host){.daemon = {.script = script, .arg = arg}};
    host->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ck_assert_int_eq(bind(host->listener, (struct sockaddr *)&address, sizeof address), 0);
    ck_assert_int_eq(listen(host->listener, 1), 0);
    ck_assert_int_eq(pthread_create(&host->daemon.thread, NULL, accept_one, host), 0);
}

static inline void host_end(struct host *host)
{
    pthread_join(host->daemon.thread, NULL);
    close(host->listener);
    unlink(socket_path);
}

static inline void set_up(void)
{
    strcpy(directory, "/tmp/samkvctl-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(directory));
    snprintf(socket_path, sizeof socket_path, "%s/sock", directory);
}

static inline void tear_down(void)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", directory);
    ck_assert_int_eq(system(command), 0);
}

static inline void write_file(const char *name, const void *bytes, size_t count)
{
    char path[160];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *file = fopen(path, "w");
    ck_assert_ptr_nonnull(file);
    ck_assert_uint_eq(fwrite(bytes, 1, count, file), count);
    fclose(file);
}

struct run {
    int code;
    char out[8192], err[8192];
};

/* The binary beside the tests, or $SAMKV_TEST_CTL. */
static inline const char *tool(void)
{
    static char path[512];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 32);
    ck_assert_int_gt(n, 0);
    path[n] = 0;
    strcpy(strrchr(path, '/'), "/../bin/samkvctl");
    return getenv("SAMKV_TEST_CTL") ? getenv("SAMKV_TEST_CTL") : path;
}

static inline void slurp(const char *name, char *out, size_t size)
{
    char path[160];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *file = fopen(path, "r");
    size_t n = file ? fread(out, 1, size - 1, file) : 0;
    out[n] = 0;
    if (file)
        fclose(file);
}

/* A shell's command line behind "samkvctl", run in the test's directory. */
static inline pid_t start(const char *arguments)
{
    char command[1024];
    snprintf(command, sizeof command, "cd '%s' && exec '%s' --socket '%s' %s >.out 2>.err", directory, tool(),
             socket_path, arguments);
    pid_t pid = fork();
    if (!pid) {
        execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        _exit(127);
    }
    return pid;
}

static inline struct run finish(pid_t pid)
{
    static struct run run;
    int status;
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    run.code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    slurp(".out", run.out, sizeof run.out);
    slurp(".err", run.err, sizeof run.err);
    ck_assert_msg(run.code != 127, "no samkvctl: %s", run.err);
    return run;
}

static inline struct run run_tool(const char *arguments)
{
    return finish(start(arguments));
}

#define ASSERT_HAS(text, part) ck_assert_msg(strstr((text), (part)), "no '%s' in: %s", (part), (text))
#define ASSERT_LINES(text, n)  ck_assert_int_eq(count_lines(text), n)

static inline int count_lines(const char *text)
{
    int lines = 0;
    for (; *text; text++)
        lines += *text == '\n';
    return lines;
}

/* Runs the cases, each in a fresh directory. Returns what main returns. */
static inline int run_cases(const char *name, TCase *const *cases, size_t count)
{
    Suite *suite = suite_create(name);
    for (size_t i = 0; i < count; i++) {
        tcase_add_checked_fixture(cases[i], set_up, tear_down);
        tcase_set_timeout(cases[i], 60);
        suite_add_tcase(suite, cases[i]);
    }
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
