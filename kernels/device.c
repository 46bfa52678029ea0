/*
 * Opens a device by name. The CUDA backend is a module of its own, so that one build of the daemon runs on machines
 * with and without NVIDIA's libraries: it is looked for beside the executable, in ../lib, and where the system looks.
 */
#include "kernels/kernels.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MODULE_NAME "samkv_cuda.so"
/* Counts changes of struct samkv_ops and what it points to. The module must say the same. */
#define MODULE_ABI 2

typedef int (*module_abi)(void);
typedef enum samkv_status (*module_open)(int ordinal, enum samkv_dtype, struct samkv_device **, struct samkv_error *);

/* The executable's directory with a closing slash; "" when it is not known. */
static void executable_directory(char *path, size_t bytes)
{
    ssize_t n = readlink("/proc/self/exe", path, bytes - 1);
    path[n > 0 ? n : 0] = '\0';
    char *slash = strrchr(path, '/');
    if (slash)
        slash[1] = '\0';
    else
        path[0] = '\0';
}

/* The module's handle, never closed: the device's code lives in it. `why` is dlopen's last complaint. */
static void *load_module(char *why, size_t why_bytes)
{
    static const char *const places[] = {"", "../lib/", "../lib/samkv/"};
    char directory[PATH_MAX], path[PATH_MAX + 64];
    executable_directory(directory, sizeof directory);
    for (size_t i = 0; directory[0] && i < sizeof places / sizeof *places; i++) {
        snprintf(path, sizeof path, "%s%s" MODULE_NAME, directory, places[i]);
        if (access(path, F_OK) != 0)
            continue;
        void *module = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        if (!module)
            snprintf(why, why_bytes, "%s", dlerror());
        return module; /* a module that is ours but does not load is an error to show, not to search past */
    }
    void *module = dlopen(MODULE_NAME, RTLD_NOW | RTLD_LOCAL);
    if (!module)
        snprintf(why, why_bytes, "%s", dlerror());
    return module;
}

static enum samkv_status cuda_open(int ordinal, enum samkv_dtype dtype, struct samkv_device **out,
                                   struct samkv_error *err)
{
    char why[320] = "";
    void *module = load_module(why, sizeof why);
    if (!module)
        return samkv_fail(err, SAMKV_UNSUPPORTED, "the CUDA backend cannot be loaded (%s): use --device cpu", why);
    module_abi abi = (module_abi)dlsym(module, "samkv_cuda_abi");
    module_open open = (module_open)dlsym(module, "samkv_cuda_device_new");
    if (!abi || !open || abi() != MODULE_ABI) {
        int found = abi ? abi() : 0;
        dlclose(module);
        return samkv_fail(err, SAMKV_UNSUPPORTED,
                          "%s has interface %d and this build needs %d: install both from one build", MODULE_NAME,
                          found, MODULE_ABI);
    }
    return open(ordinal, dtype, out, err);
}

/* "cuda" or "cuda:N"; false for anything else. */
static bool parse_cuda(const char *spec, int *ordinal)
{
    *ordinal = 0;
    if (strncmp(spec, "cuda", 4) != 0)
        return false;
    if (spec[4] == '\0')
        return true;
    if (spec[4] != ':' || spec[5] < '0' || spec[5] > '9')
        return false;
    char *end;
    long n = strtol(spec + 5, &end, 10);
    *ordinal = (int)n;
    return *end == '\0' && n < 1024;
}

static enum samkv_status discrete_open(const char *how, struct samkv_device **out, struct samkv_error *err)
{
    enum samkv_status status = samkv_cpu_discrete_new(0, out, err);
    if (!status && *how && (status = samkv_cpu_discrete_spoil(*out, how + 1, err))) {
        (*out)->ops->device_free(*out);
        *out = NULL;
    }
    return status;
}

enum samkv_status samkv_device_open(const char *spec, enum samkv_dtype dtype, struct samkv_device **out, char *note,
                                    size_t note_bytes, struct samkv_error *err)
{
    int ordinal;
    *out = NULL;
    if (note && note_bytes)
        note[0] = '\0';
    if (!spec || !*spec || !strcmp(spec, "auto")) {
        struct samkv_error reason = {0};
        if (cuda_open(0, dtype, out, &reason) == SAMKV_OK)
            return SAMKV_OK;
        if (note && note_bytes)
            snprintf(note, note_bytes, "no GPU is used: %s", reason.text);
        return samkv_cpu_device_new(0, out, err);
    }
    if (!strcmp(spec, "cpu"))
        return samkv_cpu_device_new(0, out, err);
    if (!strncmp(spec, "cpu:discrete", 12) && (!spec[12] || spec[12] == ':'))
        return discrete_open(spec + 12, out, err);
    if (parse_cuda(spec, &ordinal))
        return cuda_open(ordinal, dtype, out, err);
    return samkv_fail(err, SAMKV_INVALID, "no device is called \"%.40s\": give auto, cpu, cuda or cuda:N", spec);
}
