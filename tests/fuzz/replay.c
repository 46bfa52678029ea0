/*
 * usage: fuzz_TARGET PATH...: runs the target over files, and over all files of folders. What it stands for under a
 * compiler without libFuzzer, and in ctest. Fails when there is nothing to run.
 */
#include <dirent.h>
#include <signal.h>
#include <sys/stat.h>

#include "tests/fuzz/fuzz.h"

static long long runs;
static const char *running = "nothing yet";

static int fail(const char *path)
{
    perror(path);
    return EXIT_FAILURE;
}

static int run_file(const char *path)
{
    struct stat st;
    FILE *f = fopen(path, "rb");
    if (!f || fstat(fileno(f), &st))
        return fail(path);
    uint8_t *bytes = malloc((size_t)st.st_size + 1);
    size_t count = bytes ? fread(bytes, 1, (size_t)st.st_size, f) : 0;
    int failed = !bytes || ferror(f) || count != (size_t)st.st_size;
    fclose(f);
    if (failed) {
        free(bytes);
        return fail(path);
    }
    running = path;
    uint8_t *exact = fuzz_copy(bytes, count);
    LLVMFuzzerTestOneInput(exact, count);
    free(exact);
    free(bytes);
    runs++;
    return EXIT_SUCCESS;
}

static int run_path(const char *path)
{
    DIR *folder = opendir(path);
    if (!folder)
        return run_file(path);
    int result = EXIT_SUCCESS;
    for (struct dirent *e; !result && (e = readdir(folder));) {
        char file[4096];
        if (e->d_name[0] == '.')
            continue;
        snprintf(file, sizeof file, "%s/%s", path, e->d_name);
        result = run_file(file);
    }
    closedir(folder);
    return result;
}

/* A target that gives up says which file it was. */
static void say_which(int signal)
{
    (void)signal;
    fprintf(stderr, "while running %s\n", running);
}

int main(int argc, char **argv)
{
    signal(SIGABRT, say_which);
    int result = EXIT_SUCCESS;
    for (int i = 1; i < argc && !result; i++)
        result = run_path(argv[i]);
    if (!result)
        printf("%lld inputs\n", runs);
    if (!result && !runs) {
        fprintf(stderr, "%s: no inputs: name files or folders\n", argv[0]);
        return EXIT_FAILURE;
    }
    return result;
}
