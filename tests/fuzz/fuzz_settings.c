/* samkvd.conf: read to its first mistake and to its end, and what --dump-config makes of it can be read again. */
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daemon/net/settings.h"
#include "tests/fuzz/fuzz.h"

static char *no_environment(const char *name)
{
    return strcmp(name, "HOME") == 0 ? (char *)"/home/x" : NULL;
}

/* argv for a file; path has to last as long. */
static int file_of(const void *data, size_t size, char path[40])
{
    int fd = memfd_create("conf", MFD_CLOEXEC);
    FUZZ_REQUIRE(fd >= 0 && write(fd, data, size) == (ssize_t)size, "no file");
    snprintf(path, 40, "/proc/self/fd/%d", fd);
    return fd;
}

static enum samkv_status read_file(const void *data, size_t size, struct samkv_settings *s, struct samkv_error *err)
{
    char path[40];
    int fd = file_of(data, size, path);
    char *const argv[] = {"samkvd", "--config", path};
    enum samkv_status status = samkv_settings_read(s, 3, argv, no_environment, err);
    close(fd);
    return status;
}

/* From the second section on: the first names the file, which is another one each time. */
static char *dump(const struct samkv_settings *s)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    FUZZ_REQUIRE(out, "no memory");
    samkv_settings_dump(s, out);
    FUZZ_REQUIRE(fclose(out) == 0, "no memory");
    return text;
}

/* A dump says where each value is from, in comments; values are what counts. */
static void strip(char *text)
{
    char *to = text, *models = strstr(text, "\n\n[");
    for (char *line = text, *next; *line; line = next) {
        next = line + strcspn(line, "\n");
        next += *next == '\n';
        bool is_option = !models || line <= models; /* a model may be called config */
        if (*line == ';' || (is_option && strncmp(line, "config =", 8) == 0))
            continue;
        memmove(to, line, (size_t)(next - line));
        to += next - line;
    }
    *to = 0;
}

/* The dump of what this dump says, both without comments. */
static char *dump_again(const char *text)
{
    struct samkv_settings s;
    struct samkv_error err = {0};
    enum samkv_status status = read_file(text, strlen(text), &s, &err);
    FUZZ_REQUIRE(!status, "a dump that cannot be read: %s\n%s", err.text, text);
    char *again = dump(&s);
    strip(again);
    samkv_settings_deinit(&s);
    return again;
}

/* libinih's lines have at most 198 bytes, and a dump's have up to three more than those they came from. */
static bool has_long_lines(const char *text)
{
    for (; *text; text += strcspn(text, "\n"), text += *text == '\n')
        if (strcspn(text, "\n") > 195)
            return true;
    return false;
}

/* Once written, it stays: only the spaces about the '=' of a model that was given as one text may go before. */
static void check_dump(const struct samkv_settings *s)
{
    char *first = dump(s);
    strip(first);
    if (has_long_lines(first)) {
        free(first);
        return;
    }
    char *second = dump_again(first), *third = dump_again(second);
    FUZZ_REQUIRE(strcmp(second, third) == 0, "dumped\n%s, then\n%s", second, third);
    free(first);
    free(second);
    free(third);
}

static void check_to_the_end(const uint8_t *data, size_t size, enum samkv_status to_the_first)
{
    char path[40], *text = NULL;
    size_t bytes = 0;
    int fd = file_of(data, size, path);
    char *const argv[] = {"samkvd", "--config", path};
    FILE *out = open_memstream(&text, &bytes);
    FUZZ_REQUIRE(out, "no memory");
    struct samkv_settings s;
    struct samkv_error err = {0};
    enum samkv_status status = samkv_settings_check(&s, 3, argv, no_environment, out, &err);
    if (status)
        fuzz_check_error(status, &err);
    FUZZ_REQUIRE(status || !to_the_first, "a check that finds nothing");
    fclose(out);
    free(text);
    close(fd);
    samkv_settings_deinit(&s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct samkv_settings s;
    struct samkv_error err = {0};
    heap_begin();
    enum samkv_status status = read_file(data, size, &s, &err);
    fuzz_check_heap(size, 16, 64 << 10);
    if (status)
        fuzz_check_error(status, &err);
    else
        check_dump(&s);
    samkv_settings_deinit(&s);
    check_to_the_end(data, size, status);
    return 0;
}
