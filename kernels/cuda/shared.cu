/*
 * Device memory that other processes can map: physical memory of its own, exported as a file descriptor and mapped
 * into our address space. The calls are the driver's, asked for by name: the module must load where no driver is.
 */
#include <assert.h>
#include <cudaTypedefs.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "kernels/cuda/backend.cuh"

struct piece {
    struct piece *next;
    CUmemGenericAllocationHandle handle;
    CUdeviceptr memory;
    size_t bytes;
};

struct driver {
    PFN_cuDeviceGet_v2000 device_get;
    PFN_cuDeviceGetAttribute_v2000 attribute;
    PFN_cuMemGetAllocationGranularity_v10020 granularity;
    PFN_cuMemCreate_v10020 create;
    PFN_cuMemRelease_v10020 release;
    PFN_cuMemAddressReserve_v10020 reserve;
    PFN_cuMemAddressFree_v10020 unreserve;
    PFN_cuMemMap_v10020 map;
    PFN_cuMemUnmap_v10020 unmap;
    PFN_cuMemSetAccess_v10020 allow;
    PFN_cuMemExportToShareableHandle_v10020 export_handle;
};

struct shared_pool {
    struct driver driver;
    CUmemAllocationProp props;
    size_t granularity;
    pthread_mutex_t lock;
    struct piece *pieces; /* under lock */
};

/* ------------------------------------------------------------------ the driver */

static bool find(const char *name, unsigned version, void *function)
{
    cudaDriverEntryPointQueryResult found;
    void *at = NULL;
    bool there = cudaGetDriverEntryPointByVersion(name, &at, version, cudaEnableDefault, &found) == cudaSuccess &&
                 found == cudaDriverEntryPointSuccess && at;
    *(void **)function = there ? at : NULL;
    (void)cudaGetLastError();
    return there;
}

static bool find_all(struct driver *f)
{
    return find("cuDeviceGet", 2000, &f->device_get) && find("cuDeviceGetAttribute", 2000, &f->attribute) &&
           find("cuMemGetAllocationGranularity", 10020, &f->granularity) && find("cuMemCreate", 10020, &f->create) &&
           find("cuMemRelease", 10020, &f->release) && find("cuMemAddressReserve", 10020, &f->reserve) &&
           find("cuMemAddressFree", 10020, &f->unreserve) && find("cuMemMap", 10020, &f->map) &&
           find("cuMemUnmap", 10020, &f->unmap) && find("cuMemSetAccess", 10020, &f->allow) &&
           find("cuMemExportToShareableHandle", 10020, &f->export_handle);
}

static bool has(const struct driver *f, CUdevice device, CUdevice_attribute attribute)
{
    int value = 0;
    return f->attribute(&value, attribute, device) == CUDA_SUCCESS && value;
}

/* Whether memory can be shared; fills in what allocations need to know. */
static bool prepare(struct shared_pool *pool, int ordinal)
{
    CUdevice device;
    if (!find_all(&pool->driver) || pool->driver.device_get(&device, ordinal) != CUDA_SUCCESS ||
        !has(&pool->driver, device, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED) ||
        !has(&pool->driver, device, CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED))
        return false;
    pool->props.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    pool->props.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    pool->props.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    pool->props.location.id = ordinal;
    return pool->driver.granularity(&pool->granularity, &pool->props, CU_MEM_ALLOC_GRANULARITY_MINIMUM) ==
               CUDA_SUCCESS &&
           pool->granularity > 0;
}

enum samkv_status samkv_cuda_shared_prepare(struct cuda_device *d)
{
    struct shared_pool *pool = (struct shared_pool *)calloc(1, sizeof *pool);
    d->shared = NULL;
    if (!pool)
        return SAMKV_NO_MEMORY;
    if (!prepare(pool, d->ordinal)) {
        free(pool);
        return SAMKV_OK;
    }
    pthread_mutex_init(&pool->lock, NULL);
    d->shared = pool;
    return SAMKV_OK;
}

void samkv_cuda_shared_pool_free(struct shared_pool *pool)
{
    if (!pool)
        return;
    assert(!pool->pieces);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

/* ------------------------------------------------------------------ memory */

static void piece_free(const struct driver *f, struct piece *piece, bool mapped)
{
    if (mapped)
        (void)f->unmap(piece->memory, piece->bytes);
    if (piece->memory)
        (void)f->unreserve(piece->memory, piece->bytes);
    if (piece->handle)
        (void)f->release(piece->handle);
    free(piece);
}

/* When memory is out, what the pool keeps for other allocations is asked back. */
static CUresult create(struct cuda_device *d, struct piece *piece)
{
    struct shared_pool *pool = d->shared;
    CUresult result = pool->driver.create(&piece->handle, piece->bytes, &pool->props, 0);
    if (result != CUDA_ERROR_OUT_OF_MEMORY)
        return result;
    if (cudaStreamSynchronize(d->releases) == cudaSuccess)
        (void)cudaMemPoolTrimTo(d->pool, 0);
    (void)cudaGetLastError();
    return pool->driver.create(&piece->handle, piece->bytes, &pool->props, 0);
}

static CUresult map(struct shared_pool *pool, struct piece *piece, bool *mapped)
{
    CUmemAccessDesc access = {};
    access.location = pool->props.location;
    access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    CUresult result = pool->driver.reserve(&piece->memory, piece->bytes, 0, 0, 0);
    if (result == CUDA_SUCCESS)
        result = pool->driver.map(piece->memory, piece->bytes, 0, piece->handle, 0);
    *mapped = result == CUDA_SUCCESS;
    if (result == CUDA_SUCCESS)
        result = pool->driver.allow(piece->memory, piece->bytes, &access, 1);
    return result;
}

enum samkv_status samkv_cuda_shared_alloc(struct samkv_device *device, size_t *bytes, void **out)
{
    struct cuda_device *d = (struct cuda_device *)device;
    struct shared_pool *pool = d->shared;
    bool mapped = false;
    *out = NULL;
    enum samkv_status status = pool ? samkv_cuda_enter(d) : SAMKV_UNSUPPORTED;
    if (status)
        return status;
    if (*bytes > SIZE_MAX / 2)
        return SAMKV_NO_MEMORY;
    struct piece *piece = (struct piece *)calloc(1, sizeof *piece);
    if (!piece)
        return SAMKV_NO_MEMORY;
    piece->bytes = ((*bytes ? *bytes : 1) + pool->granularity - 1) / pool->granularity * pool->granularity;
    CUresult result = create(d, piece);
    if (result == CUDA_SUCCESS)
        result = map(pool, piece, &mapped);
    if (result != CUDA_SUCCESS) {
        piece_free(&pool->driver, piece, mapped);
        return samkv_cuda_seen(d, (cudaError_t)result);
    }
    pthread_mutex_lock(&pool->lock);
    piece->next = pool->pieces;
    pool->pieces = piece;
    pthread_mutex_unlock(&pool->lock);
    *bytes = piece->bytes;
    *out = (void *)piece->memory;
    return SAMKV_OK;
}

enum samkv_status samkv_cuda_shared_export(struct samkv_device *device, void *memory, int *fd)
{
    struct cuda_device *d = (struct cuda_device *)device;
    struct shared_pool *pool = d->shared;
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    *fd = -1;
    enum samkv_status status = pool ? samkv_cuda_enter(d) : SAMKV_UNSUPPORTED;
    if (status)
        return status;
    pthread_mutex_lock(&pool->lock);
    for (const struct piece *piece = pool->pieces; piece; piece = piece->next)
        if (piece->memory == (CUdeviceptr)memory)
            result = pool->driver.export_handle(fd, piece->handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0);
    pthread_mutex_unlock(&pool->lock);
    if (result != CUDA_SUCCESS) {
        *fd = -1;
        return samkv_cuda_seen(d, (cudaError_t)result);
    }
    if (fcntl(*fd, F_SETFD, FD_CLOEXEC) == 0)
        return SAMKV_OK;
    close(*fd);
    *fd = -1;
    return SAMKV_IO;
}

static struct piece *take(struct shared_pool *pool, const void *memory)
{
    pthread_mutex_lock(&pool->lock);
    struct piece **at = &pool->pieces;
    while (*at && (*at)->memory != (CUdeviceptr)memory)
        at = &(*at)->next;
    struct piece *piece = *at;
    if (piece)
        *at = piece->next;
    pthread_mutex_unlock(&pool->lock);
    assert(piece);
    return piece;
}

void samkv_cuda_shared_release(struct samkv_device *device, void *memory)
{
    struct cuda_device *d = (struct cuda_device *)device;
    struct piece *piece = memory && d->shared ? take(d->shared, memory) : NULL;
    if (!piece)
        return;
    bool alive = samkv_cuda_enter(d) == SAMKV_OK;
    if (alive) { /* unlike a release to the pool, unmapping is not in any stream's order */
        samkv_cuda_wait_for_streams(d);
        alive = samkv_cuda_seen(d, cudaStreamSynchronize(d->releases)) == SAMKV_OK;
        (void)cudaGetLastError();
    }
    if (alive)
        piece_free(&d->shared->driver, piece, true);
    else
        free(piece);
}
