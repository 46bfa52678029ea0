/*
 * A CUDA driver of one GPU for tests, found as libcuda.so.1: memory handles are memfds, "device memory" is mapped from
 * them. It counts what is open, and fails one symbol's calls on demand.
 */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/cuda_driver.h"
#include "tests/unit/fake_libcuda.h"

#define EXPORT __attribute__((visibility("default")))
#define FAIL   999

EXPORT struct fake_cuda fake_cuda = {.uuid = "0123456789abcdef"};

static bool fails(const char *symbol)
{
    return fake_cuda.failing && !strcmp(fake_cuda.failing, symbol);
}

#define FAKE(name, ...)                                                                                                \
    EXPORT samkv_cu_result name(__VA_ARGS__);                                                                          \
    EXPORT samkv_cu_result name(__VA_ARGS__)
#define MAY_FAIL(name)                                                                                                 \
    if (fails(#name))                                                                                                  \
    return FAIL

FAKE(cuInit, unsigned flags)
{
    MAY_FAIL(cuInit);
    return flags ? FAIL : SAMKV_CU_SUCCESS;
}

FAKE(cuGetErrorString, samkv_cu_result result, const char **out)
{
    *out = "the fake was told to fail";
    return result == FAIL ? SAMKV_CU_SUCCESS : FAIL;
}

FAKE(cuDeviceGetCount, int *out)
{
    MAY_FAIL(cuDeviceGetCount);
    *out = 2;
    return SAMKV_CU_SUCCESS;
}

FAKE(cuDeviceGet, samkv_cu_device *out, int ordinal)
{
    MAY_FAIL(cuDeviceGet);
    *out = 40 + ordinal;
    return SAMKV_CU_SUCCESS;
}

/* The second one is the one that is looked for. */
FAKE(cuDeviceGetUuid_v2, struct samkv_cu_uuid *out, samkv_cu_device device)
{
    MAY_FAIL(cuDeviceGetUuid_v2);
    memcpy(out->bytes, device == 41 ? fake_cuda.uuid : "________________", sizeof out->bytes);
    return SAMKV_CU_SUCCESS;
}

FAKE(cuDevicePrimaryCtxRetain, samkv_cu_context *out, samkv_cu_device device)
{
    MAY_FAIL(cuDevicePrimaryCtxRetain);
    fake_cuda.contexts++;
    *out = &fake_cuda;
    return device == 41 ? SAMKV_CU_SUCCESS : FAIL;
}

FAKE(cuDevicePrimaryCtxRelease_v2, samkv_cu_device device)
{
    fake_cuda.contexts--;
    return device == 41 ? SAMKV_CU_SUCCESS : FAIL;
}

FAKE(cuCtxPushCurrent_v2, samkv_cu_context context)
{
    MAY_FAIL(cuCtxPushCurrent_v2);
    fake_cuda.current++;
    return context == &fake_cuda ? SAMKV_CU_SUCCESS : FAIL;
}

FAKE(cuCtxPopCurrent_v2, samkv_cu_context *out)
{
    fake_cuda.current--;
    *out = &fake_cuda;
    return SAMKV_CU_SUCCESS;
}

FAKE(cuMemImportFromShareableHandle, samkv_cu_handle *out, void *fd, samkv_cu_handle_type type)
{
    MAY_FAIL(cuMemImportFromShareableHandle);
    if (type != SAMKV_CU_HANDLE_POSIX_FD || !fake_cuda.current)
        return FAIL;
    int copy = dup((int)(intptr_t)fd);
    if (copy < 0)
        return FAIL;
    fake_cuda.handles++;
    *out = (samkv_cu_handle)copy;
    return SAMKV_CU_SUCCESS;
}

FAKE(cuMemRelease, samkv_cu_handle handle)
{
    fake_cuda.handles--;
    return close((int)handle) ? FAIL : SAMKV_CU_SUCCESS;
}

FAKE(cuMemAddressReserve, samkv_cu_pointer *out, size_t bytes, size_t alignment, samkv_cu_pointer hint,
     unsigned long long flags)
{
    MAY_FAIL(cuMemAddressReserve);
    void *at = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED || alignment || hint || flags)
        return FAIL;
    fake_cuda.ranges++;
    *out = (samkv_cu_pointer)(uintptr_t)at;
    return SAMKV_CU_SUCCESS;
}

FAKE(cuMemAddressFree, samkv_cu_pointer at, size_t bytes)
{
    fake_cuda.ranges--;
    return munmap((void *)(uintptr_t)at, bytes) ? FAIL : SAMKV_CU_SUCCESS;
}

FAKE(cuMemMap, samkv_cu_pointer at, size_t bytes, size_t offset, samkv_cu_handle handle, unsigned long long flags)
{
    struct stat st;
    MAY_FAIL(cuMemMap);
    if (offset || flags || fstat((int)handle, &st) || (size_t)st.st_size < bytes)
        return FAIL;
    if (mmap((void *)(uintptr_t)at, bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, (int)handle, 0) == MAP_FAILED)
        return FAIL;
    fake_cuda.mappings++;
    return SAMKV_CU_SUCCESS;
}

FAKE(cuMemUnmap, samkv_cu_pointer at, size_t bytes)
{
    MAY_FAIL(cuMemUnmap);
    fake_cuda.mappings--;
    return mprotect((void *)(uintptr_t)at, bytes, PROT_NONE) ? FAIL : SAMKV_CU_SUCCESS;
}

FAKE(cuMemSetAccess, samkv_cu_pointer at, size_t bytes, const struct samkv_cu_access *access, size_t count)
{
    MAY_FAIL(cuMemSetAccess);
    if (count != 1 || access->location.type != SAMKV_CU_LOCATION_DEVICE || access->location.id != 41 ||
        access->flags != SAMKV_CU_ACCESS_READWRITE)
        return FAIL;
    return mprotect((void *)(uintptr_t)at, bytes, PROT_READ | PROT_WRITE) ? FAIL : SAMKV_CU_SUCCESS;
}

FAKE(cuMemcpyDtoH_v2, void *out, samkv_cu_pointer from, size_t bytes)
{
    MAY_FAIL(cuMemcpyDtoH_v2);
    memcpy(out, (void *)(uintptr_t)from, bytes);
    return fake_cuda.current ? SAMKV_CU_SUCCESS : FAIL;
}
