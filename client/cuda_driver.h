#pragma once
/*
 * The part of the CUDA Driver API that libsamkv calls, declared here so that it is built without the CUDA toolkit and
 * runs without a driver. Its reference is NVIDIA's "CUDA Driver API": Initialization, Error Handling, Device
 * Management, Primary Context Management, Context Management, Memory Management (cuMemcpyDtoH) and Virtual Memory
 * Management (the others). Sizes, offsets and numbers are part of the driver's binary interface and do not change under
 * a symbol's name (a new form gets a new suffix); where the toolkit is, tests/device/test_cuda_driver_abi.c compares
 * them with cuda.h.
 */
#include <stddef.h>
#include <stdint.h>

enum {
    SAMKV_CU_SUCCESS = 0,          /* CUDA_SUCCESS */
    SAMKV_CU_OUT_OF_MEMORY = 2,    /* CUDA_ERROR_OUT_OF_MEMORY */
    SAMKV_CU_HANDLE_POSIX_FD = 1,  /* CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR */
    SAMKV_CU_LOCATION_DEVICE = 1,  /* CU_MEM_LOCATION_TYPE_DEVICE */
    SAMKV_CU_ACCESS_READWRITE = 3, /* CU_MEM_ACCESS_FLAGS_PROT_READWRITE */
};

typedef int samkv_cu_result;        /* CUresult */
typedef int samkv_cu_device;        /* CUdevice */
typedef void *samkv_cu_context;     /* CUcontext */
typedef uint64_t samkv_cu_pointer;  /* CUdeviceptr */
typedef uint64_t samkv_cu_handle;   /* CUmemGenericAllocationHandle */
typedef int samkv_cu_handle_type;   /* CUmemAllocationHandleType */
typedef int samkv_cu_location_type; /* CUmemLocationType */
typedef int samkv_cu_access_flags;  /* CUmemAccess_flags */

/* CUuuid */
struct samkv_cu_uuid {
    uint8_t bytes[16];
};

/* CUmemLocation */
struct samkv_cu_location {
    samkv_cu_location_type type;
    int id;
};

/* CUmemAccessDesc */
struct samkv_cu_access {
    struct samkv_cu_location location;
    samkv_cu_access_flags flags;
};

/* Member, symbol, arguments; all give a samkv_cu_result. Suffixes are those that cuda.h's macros have put behind the
 * plain names since CUDA 4.0 (contexts, copies) and 11.0 (primary contexts). */
/* clang-format off */
#define SAMKV_CUDA_DRIVER_MAP(X)                                                                                       \
    X(init, cuInit, (unsigned flags))                                                                                  \
    X(error_string, cuGetErrorString, (samkv_cu_result, const char **))                                                \
    X(device_count, cuDeviceGetCount, (int *))                                                                         \
    X(device_get, cuDeviceGet, (samkv_cu_device *, int ordinal))                                                       \
    X(context_retain, cuDevicePrimaryCtxRetain, (samkv_cu_context *, samkv_cu_device))                                 \
    X(context_release, cuDevicePrimaryCtxRelease_v2, (samkv_cu_device))                                                \
    X(context_push, cuCtxPushCurrent_v2, (samkv_cu_context))                                                           \
    X(context_pop, cuCtxPopCurrent_v2, (samkv_cu_context *))                                                           \
    X(import, cuMemImportFromShareableHandle, (samkv_cu_handle *, void *fd, samkv_cu_handle_type))                     \
    X(release, cuMemRelease, (samkv_cu_handle))                                                                        \
    X(reserve, cuMemAddressReserve,                                                                                    \
      (samkv_cu_pointer *, size_t bytes, size_t alignment, samkv_cu_pointer hint, unsigned long long flags))           \
    X(unreserve, cuMemAddressFree, (samkv_cu_pointer, size_t bytes))                                                   \
    X(map, cuMemMap, (samkv_cu_pointer, size_t bytes, size_t offset, samkv_cu_handle, unsigned long long flags))       \
    X(unmap, cuMemUnmap, (samkv_cu_pointer, size_t bytes))                                                             \
    X(set_access, cuMemSetAccess, (samkv_cu_pointer, size_t bytes, const struct samkv_cu_access *, size_t count))      \
    X(copy_to_host, cuMemcpyDtoH_v2, (void *, samkv_cu_pointer, size_t bytes))
/* clang-format on */

struct samkv_cuda_driver {
#define SAMKV_CUDA_DRIVER_MEMBER(member, symbol, arguments) samkv_cu_result(*member) arguments;
    SAMKV_CUDA_DRIVER_MAP(SAMKV_CUDA_DRIVER_MEMBER)
#undef SAMKV_CUDA_DRIVER_MEMBER
    /* cuDeviceGetUuid_v2 (since 11.4; knows the parts of a divided GPU), else cuDeviceGetUuid */
    samkv_cu_result (*device_uuid)(struct samkv_cu_uuid *, samkv_cu_device);
};
