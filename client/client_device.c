/*
 * Device memory of a reply: mapped here, without a copy. The CUDA driver is loaded when the first such reply comes, so
 * that engines on the CPU need nothing of it.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/client_internal.h"
#include "client/cuda_driver.h"

#define DRIVER      "libcuda.so.1"
#define ASK_FOR_RAM "ask for host memory (placement HOST)"
#define RETURNED    'R'

/* ------------------------------------------------------------------ the driver */

/* A process has one driver; it is loaded once, and read-only from then on. */
static struct {
    pthread_once_t once;
    _Atomic uint64_t kept; /* GPUs, by ordinal, whose context stays until the process ends */
    struct samkv_cuda_driver calls;
    struct samkv_error failure; /* status OK: it works */
} driver = {.once = PTHREAD_ONCE_INIT};

static const struct {
    const char *symbol;
    size_t offset;
} symbols[] = {
#define SYMBOL(member, symbol, arguments) {#symbol, offsetof(struct samkv_cuda_driver, member)},
    SAMKV_CUDA_DRIVER_MAP(SYMBOL)
#undef SYMBOL
};

static enum samkv_status find_symbols(void *library, struct samkv_error *err)
{
    for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++) {
        void *at = dlsym(library, symbols[i].symbol);
        if (!at)
            return samkv_fail(err, SAMKV_UNSUPPORTED, "the CUDA driver has no %s: update it, or " ASK_FOR_RAM,
                              symbols[i].symbol);
        memcpy((char *)&driver.calls + symbols[i].offset, &at, sizeof at);
    }
    void *uuid = dlsym(library, "cuDeviceGetUuid_v2");
    if (!uuid)
        uuid = dlsym(library, "cuDeviceGetUuid");
    if (!uuid)
        return samkv_fail(err, SAMKV_UNSUPPORTED, "the CUDA driver has no cuDeviceGetUuid: update it, or " ASK_FOR_RAM);
    memcpy(&driver.calls.device_uuid, &uuid, sizeof uuid);
    return SAMKV_OK;
}

static const char *words_of(samkv_cu_result result)
{
    const char *words = NULL;
    return driver.calls.error_string(result, &words) == SAMKV_CU_SUCCESS && words ? words : "unknown error";
}

static void load_driver(void)
{
    struct samkv_error *err = &driver.failure;
    void *library = dlopen(DRIVER, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        samkv_fail(err, SAMKV_UNSUPPORTED, "this process has no CUDA driver (%s): " ASK_FOR_RAM, dlerror());
        return;
    }
    if (find_symbols(library, err))
        return;
    samkv_cu_result result = driver.calls.init(0);
    if (result != SAMKV_CU_SUCCESS)
        samkv_fail(err, SAMKV_UNSUPPORTED, "the CUDA driver does not start (%s): " ASK_FOR_RAM, words_of(result));
}

/* OK, or a sentence: "mapping the daemon's GPU memory failed: …". The one place that knows the driver's codes. */
static enum samkv_status check(samkv_cu_result result, const char *what, struct samkv_error *err)
{
    if (result == SAMKV_CU_SUCCESS)
        return SAMKV_OK;
    enum samkv_status status = result == SAMKV_CU_OUT_OF_MEMORY ? SAMKV_NO_MEMORY : SAMKV_DEVICE;
    return samkv_fail(err, status, "%s failed: %s; " ASK_FOR_RAM, what, words_of(result));
}

/* ------------------------------------------------------------------ CUDA */

static enum samkv_status find_gpu(const uint8_t uuid[16], struct samkv_device_memory *out, struct samkv_error *err)
{
    int count = 0;
    enum samkv_status status = check(driver.calls.device_count(&count), "counting the GPUs", err);
    for (int i = 0; i < count && !status; i++) {
        samkv_cu_device device;
        struct samkv_cu_uuid found;
        if (driver.calls.device_get(&device, i) != SAMKV_CU_SUCCESS ||
            driver.calls.device_uuid(&found, device) != SAMKV_CU_SUCCESS || memcmp(found.bytes, uuid, 16) != 0)
            continue;
        out->ordinal = i;
        out->device = device;
        return SAMKV_OK;
    }
    return status ? status
                  : samkv_fail(err, SAMKV_UNSUPPORTED,
                               "the daemon's GPU is not among the %d that this process sees: see CUDA_VISIBLE_DEVICES, "
                               "or " ASK_FOR_RAM,
                               count);
}

/* With the GPU's context current. Whatever fails, nothing of it is left. */
static enum samkv_status map_handle(samkv_cu_handle handle, struct samkv_device_memory *out, struct samkv_error *err)
{
    const struct samkv_cu_access access = {.location = {.type = SAMKV_CU_LOCATION_DEVICE, .id = out->device},
                                           .flags = SAMKV_CU_ACCESS_READWRITE};
    samkv_cu_pointer at;
    enum samkv_status status =
        check(driver.calls.reserve(&at, out->bytes, 0, 0, 0), "reserving addresses for the daemon's GPU memory", err);
    if (status)
        return status;
    status = check(driver.calls.map(at, out->bytes, 0, handle, 0), "mapping the daemon's GPU memory", err);
    if (!status) {
        status = check(driver.calls.set_access(at, out->bytes, &access, 1), "getting access to the daemon's GPU memory",
                       err);
        if (status)
            driver.calls.unmap(at, out->bytes);
    }
    if (status)
        driver.calls.unreserve(at, out->bytes);
    else
        out->base = (uint8_t *)(uintptr_t)at;
    return status;
}

static enum samkv_status import_and_map(int fd, struct samkv_device_memory *out, struct samkv_error *err)
{
    samkv_cu_handle handle;
    samkv_cu_result result = driver.calls.import(&handle, (void *)(intptr_t)fd, SAMKV_CU_HANDLE_POSIX_FD);
    enum samkv_status status = check(result, "importing the daemon's GPU memory", err);
    if (status)
        return status;
    status = map_handle(handle, out, err);
    driver.calls.release(handle); /* a mapping holds the memory by itself */
    return status;
}

/* Makes the GPU's primary context current, and keeps it: leave_gpu undoes the first, context_release the second. */
static enum samkv_status enter_gpu(samkv_cu_device device, struct samkv_error *err)
{
    samkv_cu_context context;
    enum samkv_status status = check(driver.calls.context_retain(&context, device), "opening the GPU", err);
    if (status)
        return status;
    status = check(driver.calls.context_push(context), "entering the GPU's context", err);
    if (status)
        driver.calls.context_release(device);
    return status;
}

static void leave_gpu(void)
{
    samkv_cu_context context;
    driver.calls.context_pop(&context);
}

/*
 * The first cache on a GPU opens its context, unless the process uses the GPU already, and that takes 150 ms: so one
 * count of it is never given back.
 */
static void keep_context(const struct samkv_device_memory *memory)
{
    samkv_cu_context context;
    uint64_t bit = memory->ordinal < 64 ? (uint64_t)1 << memory->ordinal : 0;
    if (bit && !(atomic_fetch_or(&driver.kept, bit) & bit) &&
        driver.calls.context_retain(&context, memory->device) != SAMKV_CU_SUCCESS)
        atomic_fetch_and(&driver.kept, ~bit);
}

static enum samkv_status map_cuda(const Samkv__DeviceMemory *m, int fd, struct samkv_device_memory *out,
                                  struct samkv_error *err)
{
    if (m->uuid.len != sizeof(struct samkv_cu_uuid))
        return samkv_fail(err, SAMKV_PROTOCOL, "the daemon does not say which GPU its memory is on");
    pthread_once(&driver.once, load_driver);
    if (driver.failure.status)
        return samkv_fail(err, driver.failure.status, "%s", driver.failure.text);
    enum samkv_status status = find_gpu(m->uuid.data, out, err);
    if (!status)
        status = enter_gpu(out->device, err);
    if (status)
        return status;
    status = import_and_map(fd, out, err);
    leave_gpu();
    if (status)
        driver.calls.context_release(out->device);
    else
        keep_context(out);
    return status;
}

/* Whether nothing is mapped any more. */
static bool unmap_cuda(struct samkv_device_memory *memory)
{
    samkv_cu_pointer at = (samkv_cu_pointer)(uintptr_t)memory->base;
    if (enter_gpu(memory->device, NULL))
        return false;
    bool gone = driver.calls.unmap(at, memory->bytes) == SAMKV_CU_SUCCESS;
    if (gone)
        driver.calls.unreserve(at, memory->bytes);
    leave_gpu();
    driver.calls.context_release(memory->device); /* of this function, */
    driver.calls.context_release(memory->device); /* and of map_cuda */
    return gone;
}

static enum samkv_status read_cuda(const struct samkv_device_memory *memory, uint64_t offset, void *out, size_t bytes,
                                   struct samkv_error *err)
{
    enum samkv_status status = enter_gpu(memory->device, err);
    if (status)
        return status;
    samkv_cu_pointer at = (samkv_cu_pointer)(uintptr_t)memory->base + offset;
    status = check(driver.calls.copy_to_host(out, at, bytes), "copying from GPU memory", err);
    leave_gpu();
    driver.calls.context_release(memory->device);
    return status;
}

/* ------------------------------------------------------------------ plain shared memory */

/* Its contents may change, its size must not: a reader would be killed. */
static enum samkv_status map_shared(int fd, struct samkv_device_memory *out, struct samkv_error *err)
{
    struct stat st;
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || !(seals & F_SEAL_SHRINK))
        return samkv_fail(err, SAMKV_PROTOCOL, "the daemon's shared memory is not sealed against shrinking");
    if (fstat(fd, &st))
        return samkv_fail_errno(err, errno, "cannot look at the daemon's shared memory");
    if ((uint64_t)st.st_size != out->bytes)
        return samkv_fail(err, SAMKV_PROTOCOL, "the daemon announced %zu bytes of shared memory and sent %llu",
                          out->bytes, (unsigned long long)st.st_size);
    void *base = mmap(NULL, out->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED)
        return samkv_fail_errno(err, errno, "cannot map %zu bytes of the daemon's shared memory", out->bytes);
    out->base = base;
    return SAMKV_OK;
}

/* ------------------------------------------------------------------ both */

/* Says that the memory is not mapped here, and hangs up. A daemon that is gone does not matter. */
static void give_back(int lease)
{
    const char byte = RETURNED;
    ssize_t ignored = send(lease, &byte, 1, MSG_NOSIGNAL | MSG_DONTWAIT);
    (void)ignored;
    close(lease);
}

void samkv_device_refuse(struct samkv_fds *fds)
{
    if (fds->count == SAMKV_DEVICE_FDS || fds->count == SAMKV_ANNOUNCED_FDS)
        give_back(fds->fd[--fds->count]);
    samkv_fds_close(fds);
}

enum samkv_status samkv_device_map(const Samkv__DeviceMemory *m, struct samkv_fds *fds, struct samkv_device_memory *out,
                                   struct samkv_error *err)
{
    enum samkv_status status;
    if (!m->bytes || m->bytes > SIZE_MAX)
        return samkv_fail(err, SAMKV_PROTOCOL, "the daemon's device memory has an impossible size");
    struct samkv_device_memory memory = {.bytes = (size_t)m->bytes, .ordinal = -1};
    if (m->kind == SAMKV__MEMORY_KIND__CUDA) {
        memory.is_cuda = true;
        status = map_cuda(m, fds->fd[SAMKV_FD_DEVICE], &memory, err);
    } else if (m->kind == SAMKV__MEMORY_KIND__SHARED) {
        status = map_shared(fds->fd[SAMKV_FD_DEVICE], &memory, err);
    } else {
        status = samkv_fail(err, SAMKV_UNSUPPORTED,
                            "device memory of kind %d is not known here: update this library, or " ASK_FOR_RAM,
                            (int)m->kind);
    }
    if (status)
        return status;
    close(fds->fd[SAMKV_FD_DEVICE]);
    memory.lease = fds->fd[SAMKV_FD_LEASE];
    fds->count = SAMKV_FD_DEVICE;
    *out = memory;
    return SAMKV_OK;
}

enum samkv_status samkv_device_map_announced(const Samkv__DeviceMemory *m, struct samkv_fds *fds,
                                             struct samkv_device_memory *out, struct samkv_error *err)
{
    if (!m || fds->count != SAMKV_ANNOUNCED_FDS || fds->surplus) {
        samkv_device_refuse(fds);
        return samkv_fail(err, SAMKV_PROTOCOL, "the daemon announced device memory without saying all of it");
    }
    /* As in a whole answer, but without the file. */
    struct samkv_fds whole = {.fd = {[SAMKV_FD_DEVICE] = fds->fd[0], [SAMKV_FD_LEASE] = fds->fd[1]}};
    whole.count = SAMKV_DEVICE_FDS;
    fds->count = 0;
    enum samkv_status status = samkv_device_map(m, &whole, out, err);
    if (status) {
        give_back(whole.fd[SAMKV_FD_LEASE]);
        close(whole.fd[SAMKV_FD_DEVICE]);
    }
    return status;
}

void samkv_device_unmap(struct samkv_device_memory *memory)
{
    if (!memory->base)
        return;
    bool gone = memory->is_cuda ? unmap_cuda(memory) : munmap(memory->base, memory->bytes) == 0;
    if (gone)
        give_back(memory->lease);
    else
        close(memory->lease); /* unsaid: the daemon then leaves the memory alone */
    *memory = (struct samkv_device_memory){.base = NULL};
}

enum samkv_status samkv_device_read(const struct samkv_device_memory *memory, uint64_t offset, void *out, size_t bytes,
                                    struct samkv_error *err)
{
    if (memory->is_cuda)
        return read_cuda(memory, offset, out, bytes, err);
    memcpy(out, memory->base + offset, bytes);
    return SAMKV_OK;
}
