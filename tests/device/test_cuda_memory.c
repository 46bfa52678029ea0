/*
 * Memory, order between streams, memory shared with another process, and a device that is lost; run by test_cuda_ops.
 * CUDA does not survive a fork, so other processes are this program again: `test_cuda_ops child WHAT ...`.
 */
#include <cuda.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/device/pair.h"

#define CHILD_FD       9
#define CHILD_SECONDS  120
#define CHAIN          200 /* copies that keep a stream busy while others go on */
#define PATTERN_BYTES  ((size_t)3 << 20)
#define ARGUMENT_BYTES 80

extern char **environ;

void test_events(struct pair *);
void test_host_memory(struct pair *);
void test_shared_memory(struct pair *);
void test_lost_device(struct pair *);
int child_main(int argc, char **argv);

static uint8_t pattern_at(size_t i, unsigned seed)
{
    return (uint8_t)(i * 31 + i / 4096 + seed);
}

static void fill(uint8_t *p, size_t bytes, unsigned seed)
{
    for (size_t i = 0; i < bytes; i++)
        p[i] = pattern_at(i, seed);
}

static bool holds(const uint8_t *p, size_t bytes, unsigned seed)
{
    for (size_t i = 0; i < bytes; i++)
        if (p[i] != pattern_at(i, seed))
            return false;
    return true;
}

/* ------------------------------------------------------------------ order */

/* Two streams, device memory that they hand over, and host memory on both ends. */
struct exchange {
    const struct samkv_ops *ops;
    struct samkv_device *device;
    struct samkv_stream *first, *second;
    struct samkv_event *event;
    uint8_t *source, *target; /* host */
    uint8_t *a, *b, *c;       /* device */
};

static bool exchange_init(struct exchange *x, struct pair *p)
{
    *x = (struct exchange){.ops = p->gpu->ops, .device = p->gpu, .first = p->gpu_stream};
    return !x->ops->stream_new(x->device, &x->second) && !x->ops->event_new(x->device, &x->event) &&
           !x->ops->host_alloc(x->device, PATTERN_BYTES, (void **)&x->source) &&
           !x->ops->host_alloc(x->device, PATTERN_BYTES, (void **)&x->target) &&
           !x->ops->alloc(x->device, PATTERN_BYTES, (void **)&x->a) &&
           !x->ops->alloc(x->device, PATTERN_BYTES, (void **)&x->b) &&
           !x->ops->alloc(x->device, PATTERN_BYTES, (void **)&x->c);
}

static void exchange_deinit(struct exchange *x)
{
    x->ops->release(x->device, x->a);
    x->ops->release(x->device, x->b);
    x->ops->release(x->device, x->c);
    x->ops->host_release(x->device, x->source);
    x->ops->host_release(x->device, x->target);
    x->ops->event_free(x->event);
    x->ops->stream_free(x->second);
}

/* Keeps the first stream busy; `a` holds the source at the end, and did not before. */
static void long_chain(struct exchange *x)
{
    for (int i = 0; i < CHAIN; i++) {
        x->ops->zero(x->first, x->b, PATTERN_BYTES);
        x->ops->copy(x->first, x->a, x->b, PATTERN_BYTES);
    }
    x->ops->upload(x->first, x->a, x->source, PATTERN_BYTES);
}

/* The second stream's copy must come after the first one's chain, round after round with one event. */
static bool hands_over(struct exchange *x)
{
    bool good = true;
    x->ops->await(x->second, x->event); /* nothing was recorded: nothing to wait for */
    good = good && !x->ops->event_sync(x->event, NULL) && !x->ops->sync(x->second, NULL);
    for (unsigned round = 0; round < 3 && good; round++) {
        fill(x->source, PATTERN_BYTES, round);
        memset(x->target, 0xee, PATTERN_BYTES);
        long_chain(x);
        x->ops->record(x->first, x->event);
        x->ops->await(x->second, x->event);
        x->ops->copy(x->second, x->c, x->a, PATTERN_BYTES);
        x->ops->download(x->second, x->target, x->c, PATTERN_BYTES);
        good = !x->ops->sync(x->second, NULL) && holds(x->target, PATTERN_BYTES, round);
    }
    return good;
}

/* The host waits for a point of the stream, with more work behind it; the event is freed while a stream waits. */
static bool host_waits(struct exchange *x)
{
    struct samkv_event *early = NULL;
    fill(x->source, PATTERN_BYTES, 7);
    long_chain(x);
    x->ops->download(x->first, x->target, x->a, PATTERN_BYTES);
    x->ops->record(x->first, x->event);
    x->ops->zero(x->first, x->a, PATTERN_BYTES);
    bool good = !x->ops->event_sync(x->event, NULL) && holds(x->target, PATTERN_BYTES, 7);
    good = good && !x->ops->event_new(x->device, &early);
    fill(x->source, PATTERN_BYTES, 8);
    long_chain(x);
    x->ops->record(x->first, early);
    x->ops->await(x->second, early);
    x->ops->event_free(early);
    x->ops->download(x->second, x->target, x->a, PATTERN_BYTES);
    return good && !x->ops->sync(x->second, NULL) && holds(x->target, PATTERN_BYTES, 8);
}

void test_events(struct pair *p)
{
    struct exchange x;
    bool ready = exchange_init(&x, p);
    pair_expect(p, ready && hands_over(&x), "events: a stream did not wait for another");
    pair_expect(p, ready && host_waits(&x), "events: the host did not wait for a stream");
    pair_expect(p, !x.ops->sync(x.first, NULL), "events: the first stream failed");
    x.ops->event_free(NULL);
    exchange_deinit(&x);
}

/* ------------------------------------------------------------------ host memory */

/* What is given back is used again. Only the double may give other memory each time. */
static bool is_reused(struct exchange *x)
{
    void *before = NULL, *again = NULL;
    if (x->ops->host_alloc(x->device, PATTERN_BYTES * 3, &before))
        return false;
    x->ops->host_release(x->device, before);
    for (int i = 0; i < 1000 && again != before; i++) { /* blocks are passed by until streams are done with them */
        bool good = !x->ops->sync(x->first, NULL) && !x->ops->host_alloc(x->device, PATTERN_BYTES * 3 - 1000, &again);
        x->ops->host_release(x->device, again);
        if (!good)
            return false;
    }
    return again == before || x->device->dtype == SAMKV_F32;
}

/* Two blocks at once, large and small ones, are never the same. */
static bool is_apart(struct exchange *x)
{
    static const size_t sizes[] = {0, 1, 4096, 65536, 65537, 1000000, 5000000, 5000001};
    enum { SIZES = sizeof sizes / sizeof *sizes };
    uint8_t *blocks[2 * SIZES] = {0};
    bool good = true;
    for (int i = 0; i < 2 * SIZES && good; i++) {
        good = !x->ops->host_alloc(x->device, sizes[i % SIZES], (void **)&blocks[i]) && blocks[i];
        if (good)
            fill(blocks[i], sizes[i % SIZES], (unsigned)i);
    }
    for (int i = 0; i < 2 * SIZES; i++) {
        good = good && holds(blocks[i], sizes[i % SIZES], (unsigned)i);
        x->ops->host_release(x->device, blocks[i]);
    }
    void *none = x;
    good = good && x->ops->host_alloc(x->device, SIZE_MAX, &none) == SAMKV_NO_MEMORY && !none;
    x->ops->host_release(x->device, NULL);
    return good;
}

/* A block that is given back under an upload must not be given out before the upload has read it. */
static bool outlives_work(struct exchange *x)
{
    for (unsigned round = 0; round < 20; round++) {
        uint8_t *block = NULL, *next = NULL;
        if (x->ops->host_alloc(x->device, PATTERN_BYTES, (void **)&block))
            return false;
        fill(block, PATTERN_BYTES, round);
        long_chain(x);
        x->ops->upload(x->first, x->a, block, PATTERN_BYTES);
        x->ops->host_release(x->device, block);
        if (x->ops->host_alloc(x->device, PATTERN_BYTES, (void **)&next))
            return false;
        memset(next, 0xee, PATTERN_BYTES);
        x->ops->download(x->first, x->target, x->a, PATTERN_BYTES);
        bool good = !x->ops->sync(x->first, NULL) && holds(x->target, PATTERN_BYTES, round);
        x->ops->host_release(x->device, next);
        if (!good)
            return false;
    }
    return true;
}

void test_host_memory(struct pair *p)
{
    struct exchange x;
    uint64_t available = 0, total = 0;
    bool ready = exchange_init(&x, p);
    pair_expect(p, ready && is_reused(&x), "host memory: what was given back is not used again");
    pair_expect(p, ready && is_apart(&x), "host memory: blocks overlap");
    pair_expect(p, ready && outlives_work(&x), "host memory: given out while a copy still read it");
    p->gpu->ops->memory(p->gpu, &available, &total);
    pair_expect(p, available > 0 && total >= available && total > (uint64_t)1 << 30, "memory: free and total");
    exchange_deinit(&x);
}

/* ------------------------------------------------------------------ processes */

struct child {
    pid_t process;
    int say, hear; /* our ends of its standard input and output */
};

/* Starts this program as `child ARGUMENTS...`; `fd` (or −1) becomes its descriptor CHILD_FD. */
static bool child_start(struct child *c, int fd, char *const *arguments)
{
    char name[] = "test_cuda_ops", role[] = "child", *argv[10] = {name, role};
    int in[2], out[2];
    posix_spawn_file_actions_t actions;
    for (int i = 0; i < 7 && arguments[i]; i++)
        argv[2 + i] = arguments[i];
    if (pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC) || posix_spawn_file_actions_init(&actions))
        return false;
    fflush(stdout);
    signal(SIGPIPE, SIG_IGN); /* a child that is gone is a failed write */
    bool good = !posix_spawn_file_actions_adddup2(&actions, in[0], 0) &&
                !posix_spawn_file_actions_adddup2(&actions, out[1], 1) &&
                (fd < 0 || !posix_spawn_file_actions_adddup2(&actions, fd, CHILD_FD)) &&
                !posix_spawn(&c->process, "/proc/self/exe", &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    close(in[0]), close(out[1]);
    c->say = in[1];
    c->hear = out[0];
    if (!good)
        close(c->say), close(c->hear);
    return good;
}

/* One step: the child says that it did its part. */
static bool child_did(struct child *c)
{
    char byte = 0;
    return read(c->hear, &byte, 1) == 1 && byte == '+';
}

/* True when it came to its end by itself and found everything well. */
static bool child_end(struct child *c)
{
    int status = 0;
    close(c->say);
    close(c->hear);
    return waitpid(c->process, &status, 0) == c->process && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static bool say(char byte)
{
    return write(1, &byte, 1) == 1;
}

/* ------------------------------------------------------------------ shared memory */

/* The driver's functions that another process needs. */
struct driver {
    CUresult (*init)(unsigned);
    CUresult (*count)(int *);
    CUresult (*device)(CUdevice *, int);
    CUresult (*uuid)(CUuuid *, CUdevice);
    CUresult (*retain)(CUcontext *, CUdevice);
    CUresult (*enter)(CUcontext);
    CUresult (*import)(CUmemGenericAllocationHandle *, void *, CUmemAllocationHandleType);
    CUresult (*reserve)(CUdeviceptr *, size_t, size_t, CUdeviceptr, unsigned long long);
    CUresult (*map)(CUdeviceptr, size_t, size_t, CUmemGenericAllocationHandle, unsigned long long);
    CUresult (*allow)(CUdeviceptr, size_t, const CUmemAccessDesc *, size_t);
    CUresult (*read)(void *, CUdeviceptr, size_t);
};

static bool driver_open(struct driver *d)
{
    static const char *const names[] = {"cuInit",
                                        "cuDeviceGetCount",
                                        "cuDeviceGet",
                                        "cuDeviceGetUuid_v2",
                                        "cuDevicePrimaryCtxRetain",
                                        "cuCtxSetCurrent",
                                        "cuMemImportFromShareableHandle",
                                        "cuMemAddressReserve",
                                        "cuMemMap",
                                        "cuMemSetAccess",
                                        "cuMemcpyDtoH_v2"};
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    for (size_t i = 0; library && i < sizeof names / sizeof *names; i++) {
        void *function = dlsym(library, names[i]);
        if (!function)
            return false;
        memcpy((char *)d + i * sizeof function, &function, sizeof function);
    }
    return library && d->init(0) == CUDA_SUCCESS;
}

/* The GPU with this UUID becomes the current one. */
static bool find_device(const struct driver *d, const char *wanted, CUdevice *device)
{
    int count = 0;
    if (d->count(&count) != CUDA_SUCCESS)
        return false;
    for (int i = 0; i < count; i++) {
        CUuuid uuid;
        CUcontext context;
        char text[ARGUMENT_BYTES] = "";
        if (d->device(device, i) != CUDA_SUCCESS || d->uuid(&uuid, *device) != CUDA_SUCCESS)
            return false;
        for (int j = 0; j < 16; j++)
            snprintf(text + 2 * j, sizeof text - 2 * (size_t)j, "%02x", (uint8_t)uuid.bytes[j]);
        if (!strcmp(text, wanted))
            return d->retain(&context, *device) == CUDA_SUCCESS && d->enter(context) == CUDA_SUCCESS;
    }
    return false;
}

static bool map_on_gpu(const struct driver *d, size_t bytes, CUdevice device, CUdeviceptr *out)
{
    CUmemGenericAllocationHandle handle;
    CUmemAccessDesc access = {.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device},
                              .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    return d->import(&handle, (void *)(intptr_t)CHILD_FD, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) == CUDA_SUCCESS &&
           d->reserve(out, bytes, 0, 0, 0) == CUDA_SUCCESS && d->map(*out, bytes, 0, handle, 0) == CUDA_SUCCESS &&
           d->allow(*out, bytes, &access, 1) == CUDA_SUCCESS;
}

/*
 * child map BYTES UUID: maps CHILD_FD, finds the pattern of seed 1 in it; when it is told to, that of seed 2 (the same
 * memory, no copy); and once more when the parent has released it. UUID "memfd": of the double.
 */
static int child_map(int argc, char **argv)
{
    struct driver d;
    CUdevice device = 0;
    CUdeviceptr there = 0;
    const uint8_t *memory = NULL;
    char go = 0;
    if (argc != 2)
        return 2;
    size_t bytes = strtoull(argv[0], NULL, 10);
    uint8_t *seen = malloc(PATTERN_BYTES);
    if (!strcmp(argv[1], "memfd")) {
        memory = mmap(NULL, bytes, PROT_READ, MAP_SHARED, CHILD_FD, 0);
        if (memory == MAP_FAILED)
            return 3;
    } else if (!driver_open(&d) || !find_device(&d, argv[1], &device) || !map_on_gpu(&d, bytes, device, &there)) {
        return 4;
    }
    close(CHILD_FD);
    for (unsigned step = 0; step < 3; step++) {
        if (step && (read(0, &go, 1) != 1 || go != '+'))
            return 5;
        if (memory)
            memcpy(seen, memory, PATTERN_BYTES);
        else if (d.read(seen, there, PATTERN_BYTES) != CUDA_SUCCESS)
            return 6;
        if (!holds(seen, PATTERN_BYTES, step ? 2 : 1) || !say('+'))
            return 7;
    }
    free(seen);
    return 0;
}

static bool put(struct exchange *x, void *shared, unsigned seed)
{
    fill(x->source, PATTERN_BYTES, seed);
    x->ops->upload(x->first, shared, x->source, PATTERN_BYTES);
    return !x->ops->sync(x->first, NULL);
}

/* Releases `shared` on every path. */
static bool is_shared(struct exchange *x, void *shared, size_t bytes)
{
    char size[ARGUMENT_BYTES], uuid[ARGUMENT_BYTES] = "memfd", what[] = "map";
    char *arguments[] = {what, size, uuid, NULL};
    struct child child;
    int fd = -1;
    snprintf(size, sizeof size, "%zu", bytes);
    for (size_t j = 0; j < 16 && x->device->dtype != SAMKV_F32; j++)
        snprintf(uuid + 2 * j, sizeof uuid - 2 * j, "%02x", x->device->uuid[j]);
    bool good = put(x, shared, 1) && !x->ops->shared_export(x->device, shared, &fd) &&
                (fcntl(fd, F_GETFD) & FD_CLOEXEC) && child_start(&child, fd, arguments);
    close(fd);
    if (!good) {
        x->ops->shared_release(x->device, shared);
        return false;
    }
    good = child_did(&child) && put(x, shared, 2) && write(child.say, "+", 1) == 1 && child_did(&child);
    x->ops->shared_release(x->device, shared);
    good = good && !x->ops->sync(x->first, NULL) && write(child.say, "+", 1) == 1 && child_did(&child);
    return child_end(&child) && good;
}

/* A release waits for what is enqueued; the memory itself serves as any other. */
static bool release_waits(struct exchange *x)
{
    void *shared = NULL;
    size_t bytes = PATTERN_BYTES;
    if (x->ops->shared_alloc(x->device, &bytes, &shared))
        return false;
    fill(x->source, PATTERN_BYTES, 3);
    long_chain(x);
    x->ops->copy(x->first, shared, x->a, PATTERN_BYTES);
    x->ops->copy(x->first, x->c, shared, PATTERN_BYTES);
    x->ops->download(x->first, x->target, x->c, PATTERN_BYTES);
    x->ops->shared_release(x->device, shared);
    return !x->ops->sync(x->first, NULL) && holds(x->target, PATTERN_BYTES, 3);
}

static bool refuses_sizes(struct exchange *x)
{
    void *none = x;
    size_t huge = SIZE_MAX, large = (size_t)1 << 46, tiny = 0;
    bool good = x->ops->shared_alloc(x->device, &huge, &none) == SAMKV_NO_MEMORY && !none;
    if (x->device->dtype != SAMKV_F32) /* the double's memory is there when it is touched */
        good = good && x->ops->shared_alloc(x->device, &large, &none) == SAMKV_NO_MEMORY && !none;
    good = good && !x->ops->shared_alloc(x->device, &tiny, &none) && tiny > 0;
    x->ops->shared_release(x->device, none);
    x->ops->shared_release(x->device, NULL);
    return good && !x->ops->sync(x->first, NULL);
}

void test_shared_memory(struct pair *p)
{
    struct exchange x;
    void *shared = NULL;
    size_t bytes = PATTERN_BYTES;
    if (!p->gpu->shares) {
        printf("%s shares no memory: not tested\n", p->gpu->name);
        return;
    }
    bool ready = exchange_init(&x, p) && !x.ops->shared_alloc(p->gpu, &bytes, &shared);
    pair_expect(p, ready && bytes >= PATTERN_BYTES && bytes % 4096 == 0, "shared memory: allocation");
    pair_expect(p, ready && is_shared(&x, shared, bytes), "shared memory: another process does not see it");
    pair_expect(p, ready && release_waits(&x), "shared memory: released under work");
    pair_expect(p, ready && refuses_sizes(&x), "shared memory: sizes");
    exchange_deinit(&x);
}

/* ------------------------------------------------------------------ a lost device */

static bool is_lost(enum samkv_status status, const struct samkv_error *err)
{
    return status == SAMKV_DEVICE && strstr(err->text, "restart samkvd");
}

/* Everything that is asked of the device afterwards; the number of the first answer that is not DEVICE, 0: none. */
static int answers_after_loss(struct exchange *x)
{
    struct samkv_error err = {0};
    struct samkv_stream *stream = NULL;
    struct samkv_event *event = NULL;
    void *memory = NULL;
    size_t bytes = 4096;
    int fd = -1;
    for (int i = 0; i < 2; i++) {
        x->ops->zero(x->first, x->a, 64);
        if (!is_lost(x->ops->sync(x->first, &err), &err))
            return 1;
        x->ops->copy(x->second, x->a, x->b, 64);
        x->ops->record(x->second, x->event);
        x->ops->await(x->second, x->event);
        if (!is_lost(x->ops->sync(x->second, &err), &err))
            return 2;
    }
    if (!is_lost(x->ops->event_sync(x->event, &err), &err))
        return 3;
    if (x->ops->alloc(x->device, 64, &memory) != SAMKV_DEVICE || memory)
        return 4;
    if (x->ops->host_alloc(x->device, 64, &memory) != SAMKV_DEVICE || memory)
        return 5;
    if (x->ops->stream_new(x->device, &stream) != SAMKV_DEVICE || stream)
        return 6;
    if (x->ops->event_new(x->device, &event) != SAMKV_DEVICE || event)
        return 7;
    if (x->device->shares && (x->ops->shared_alloc(x->device, &bytes, &memory) != SAMKV_DEVICE || memory))
        return 8;
    if (x->device->shares && (x->ops->shared_export(x->device, x->c, &fd) != SAMKV_DEVICE || fd != -1))
        return 9;
    return 0;
}

/* child lose MODULE DTYPE: loses the device by a gather from nowhere, and goes on asking it for things. */
static int child_lose(int argc, char **argv)
{
    struct exchange x;
    struct samkv_error err = {0};
    struct pair p = {0};
    size_t bytes = PATTERN_BYTES;
    void *shared = NULL;
    uint64_t available = 1, total = 1;
    p.gpu = argc == 2 ? pair_device(argv[0], argv[1]) : NULL;
    if (!p.gpu || p.gpu->ops->stream_new(p.gpu, &p.gpu_stream) || !exchange_init(&x, &p))
        return 20;
    if (p.gpu->shares && x.ops->shared_alloc(p.gpu, &bytes, &shared))
        return 21;
    x.ops->zero(x.first, x.b, 64);
    x.ops->gather(x.first, (const void *)((uintptr_t)1 << 46), (const int32_t *)(void *)x.b, 16, 64, x.a);
    if (!is_lost(x.ops->sync(x.first, &err), &err)) {
        fprintf(stderr, "no loss: %s\n", err.text);
        return 22;
    }
    int wrong = answers_after_loss(&x);
    x.ops->memory(p.gpu, &available, &total);
    x.ops->shared_release(p.gpu, shared);
    exchange_deinit(&x);
    x.ops->stream_free(p.gpu_stream);
    x.ops->device_free(p.gpu);
    return wrong ? wrong : available || total ? 23 : say('+') ? 0 : 24;
}

void test_lost_device(struct pair *p)
{
    char what[] = "lose", module[1024], dtype[ARGUMENT_BYTES];
    char *arguments[] = {what, module, dtype, NULL};
    struct child child;
    if (p->gpu->dtype == SAMKV_F32)
        return; /* the double would end the process */
    snprintf(module, sizeof module, "%s", p->module);
    snprintf(dtype, sizeof dtype, "%s", p->dtype);
    bool good = child_start(&child, -1, arguments);
    bool did = good && child_did(&child);
    pair_expect(p, good && child_end(&child) && did, "lost device: the process that lost it did not go on well");
}

/* ------------------------------------------------------------------ */

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
} children[] = {{"map", child_map}, {"lose", child_lose}};

/* What this program does as another process. Ends by itself, whatever hangs. */
int child_main(int argc, char **argv)
{
    alarm(CHILD_SECONDS);
    for (size_t i = 0; i < sizeof children / sizeof *children; i++) {
        if (strcmp(children[i].name, argv[0]) != 0)
            continue;
        int result = children[i].run(argc - 1, argv + 1);
        if (result)
            fprintf(stderr, "child %s: step %d failed\n", argv[0], result);
        return result;
    }
    return 2;
}
