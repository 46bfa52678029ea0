/* The CPU with a memory of its own: what it shares, what it refuses, and that it computes as the CPU does. */
#include "tests/kernels/cpu_fixture.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static void open_discrete(int set, int threads)
{
    struct samkv_error err;
    setenv("SAMKV_CPU_ISA", cpu_sets[set], 1);
    ck_assert_msg(samkv_cpu_discrete_new(threads, &device, &err) == SAMKV_OK, "%s", err.text);
    ck_assert_int_eq(device->ops->stream_new(device, &stream), SAMKV_OK);
}

static void *device_memory(size_t bytes)
{
    void *p = NULL;
    ck_assert_int_eq(device->ops->alloc(device, bytes, &p), SAMKV_OK);
    ck_assert_ptr_nonnull(p);
    return p;
}

START_TEST(test_opens)
{
    static const uint8_t none[16];
    struct samkv_error err = {0};
    open_discrete(_i, 3);
    ck_assert_ptr_nonnull(strstr(device->name, "cpu (discrete, "));
    ck_assert_ptr_nonnull(strstr(device->name, "3 threads"));
    ck_assert(device->dtype == SAMKV_F32 && !device->unified && device->shares);
    ck_assert_int_eq(memcmp(device->uuid, none, sizeof none), 0);
    close_cpu();
    ck_assert_int_eq(samkv_cpu_discrete_new(-1, &device, &err), SAMKV_INVALID);
    ck_assert_ptr_null(device);
    ck_assert_int_eq(samkv_device_open("cpu:discrete", SAMKV_BF16, &device, NULL, 0, &err), SAMKV_OK);
    ck_assert(!device->unified);
    device->ops->device_free(device);
    ck_assert_int_eq(samkv_device_open("cpu:discreet", SAMKV_BF16, &device, NULL, 0, &err), SAMKV_INVALID);
}
END_TEST

START_TEST(test_memory_begins_as_nan)
{
    open_discrete(_i, 0);
    float *p = device_memory(1000 * sizeof *p);
    ck_assert(isnan(p[0]) && isnan(p[999]));
    device->ops->release(device, p);
    device->ops->release(device, NULL);
    void *none = &none;
    ck_assert_int_eq(device->ops->alloc(device, SIZE_MAX, &none), SAMKV_NO_MEMORY);
    ck_assert_ptr_null(none);
    close_cpu();
}
END_TEST

/* sync says DEVICE and why, once. */
static void check_refused(const char *why)
{
    struct samkv_error err = {0};
    ck_assert_int_eq(device->ops->sync(stream, &err), SAMKV_DEVICE);
    ck_assert_msg(strstr(err.text, why) != NULL, "%s", err.text);
    ck_assert_int_eq(device->ops->sync(stream, &err), SAMKV_OK);
}

START_TEST(test_copies_look_at_their_pointers)
{
    char host[300], back[300];
    for (int i = 0; i < 300; i++)
        host[i] = (char)i, back[i] = 0;
    open_discrete(_i, 0);
    const struct samkv_ops *ops = device->ops;
    char *a = device_memory(300), *b = device_memory(300);
    ops->upload(stream, a, host, 300);
    ops->copy(stream, b + 1, a, 299);
    ops->zero(stream, b + 200, 100);
    ops->download(stream, back, b + 1, 299);
    ck_assert_int_eq(memcmp(back, host, 199), 0);
    ck_assert(back[199] == 0 && back[298] == 0);
    ops->upload(stream, host, host, 0);
    ck_assert_int_eq(ops->sync(stream, NULL), SAMKV_OK);

    ops->upload(stream, a + 1, host, 300), check_refused("upload to what");
    ops->upload(stream, host, back, 300), check_refused("upload to what");
    ops->upload(stream, a, b, 300), check_refused("upload from");
    ops->download(stream, host, back, 1), check_refused("download from");
    ops->download(stream, b + 299, a, 1), check_refused("download to");
    ops->copy(stream, host, a, 1), check_refused("copy to");
    ops->copy(stream, a, host, 1), check_refused("copy from");
    ops->zero(stream, host, 1), check_refused("zero of");
    ck_assert_int_eq(host[0], 0);
    ck_assert_int_eq(host[299], (char)299);
    ops->release(device, a);
    ops->zero(stream, a, 1), check_refused("zero of"); /* what was given back is no longer ours */
    ops->release(device, b);
    close_cpu();
}
END_TEST

/* What another process does with the descriptor. */
static const uint8_t *map(int fd, size_t bytes)
{
    struct stat info;
    ck_assert_int_eq(fstat(fd, &info), 0);
    ck_assert_uint_eq((size_t)info.st_size, bytes);
    ck_assert_int_eq(fcntl(fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
    void *p = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
    ck_assert_ptr_ne(p, MAP_FAILED);
    return p;
}

START_TEST(test_shared_memory)
{
    enum { WANTED = 10001 };
    open_discrete(_i, 0);
    const struct samkv_ops *ops = device->ops;
    size_t bytes = WANTED, page = (size_t)sysconf(_SC_PAGESIZE);
    uint8_t *host = malloc(WANTED), *mine;
    void *shared = NULL;
    int fd = -1, second = -1;
    for (int i = 0; i < WANTED; i++)
        host[i] = (uint8_t)(i * 7);
    ck_assert_int_eq(ops->shared_alloc(device, &bytes, &shared), SAMKV_OK);
    ck_assert_uint_ge(bytes, WANTED);
    ck_assert_uint_eq(bytes % page, 0);
    ops->upload(stream, shared, host, WANTED);
    ck_assert_int_eq(ops->shared_export(device, shared, &fd), SAMKV_OK);
    ck_assert_int_eq(ops->shared_export(device, shared, &second), SAMKV_OK);
    ck_assert_int_ne(fd, second);
    const uint8_t *theirs = map(fd, bytes);
    ck_assert_int_eq(memcmp(theirs, host, WANTED), 0);
    ops->zero(stream, shared, 1000);
    ck_assert_int_eq(theirs[999], 0); /* the same memory, no copy of it */

    ops->shared_release(device, shared);
    ops->zero(stream, shared, 1), check_refused("zero of");
    ck_assert_int_eq(memcmp(theirs + 1000, host + 1000, WANTED - 1000), 0);
    ck_assert_int_eq(munmap((void *)(uintptr_t)theirs, bytes), 0);
    const uint8_t *late = map(second, bytes); /* also for who maps it only now */
    ck_assert_int_eq(memcmp(late + 1000, host + 1000, WANTED - 1000), 0);
    munmap((void *)(uintptr_t)late, bytes);
    close(fd), close(second);

    mine = device_memory(64);
    ck_assert_int_ne(ops->shared_export(device, mine, &fd), SAMKV_OK);
    ck_assert_int_eq(fd, -1);
    ops->release(device, mine);
    ops->shared_release(device, NULL);
    bytes = SIZE_MAX;
    ck_assert_int_eq(ops->shared_alloc(device, &bytes, &shared), SAMKV_NO_MEMORY);
    ck_assert_ptr_null(shared);
    bytes = 0;
    ck_assert_int_eq(ops->shared_alloc(device, &bytes, &shared), SAMKV_OK);
    ck_assert_uint_eq(bytes, page);
    ops->shared_release(device, shared);
    free(host);
    close_cpu();
}
END_TEST

START_TEST(test_computes_as_the_cpu)
{
    enum { N = 33, WIDTH = 67 };
    float *x = numbers(N * WIDTH, 1), *gain = numbers(WIDTH, 2), *got = poison(N * WIDTH), *want = poison(N * WIDTH);
    open_cpu(_i, 0);
    device->ops->rmsnorm(stream, x, WIDTH, gain, 1e-5f, N, WIDTH, want, WIDTH);
    close_cpu();
    open_discrete(_i, 0);
    float *there[3] = {device_memory(N * WIDTH * 4), device_memory(WIDTH * 4), device_memory(N * WIDTH * 4)};
    device->ops->upload(stream, there[0], x, N * WIDTH * 4);
    device->ops->upload(stream, there[1], gain, WIDTH * 4);
    device->ops->rmsnorm(stream, there[0], WIDTH, there[1], 1e-5f, N, WIDTH, there[2], WIDTH);
    device->ops->download(stream, got, there[2], N * WIDTH * 4);
    check_same_bytes(got, want, N * WIDTH);
    for (int i = 0; i < 3; i++)
        device->ops->release(device, there[i]);
    close_cpu();
    free(x), free(gain), free(got), free(want);
}
END_TEST

/* Each thread has a stream of its own; memory comes and goes under the others. */
static void *work_on_a_stream(void *seed)
{
    enum { WIDTH = 1024, ROUNDS = 200 };
    struct samkv_stream *own = NULL;
    float host[WIDTH], back[WIDTH];
    size_t failures = device->ops->stream_new(device, &own) != SAMKV_OK;
    for (int r = 0; r < ROUNDS && !failures; r++) {
        void *a = NULL, *b = NULL;
        size_t bytes = sizeof host;
        for (int i = 0; i < WIDTH; i++)
            host[i] = (float)((uintptr_t)seed * 1000 + (size_t)r + (size_t)i);
        failures += device->ops->alloc(device, sizeof host, &a) != SAMKV_OK;
        failures += device->ops->shared_alloc(device, &bytes, &b) != SAMKV_OK;
        device->ops->upload(own, a, host, sizeof host);
        device->ops->copy(own, b, a, sizeof host);
        device->ops->download(own, back, b, sizeof back);
        failures += device->ops->sync(own, NULL) != SAMKV_OK;
        failures += memcmp(host, back, sizeof host) != 0;
        device->ops->release(device, a);
        device->ops->shared_release(device, b);
    }
    device->ops->stream_free(own);
    return (void *)failures;
}

START_TEST(test_streams_of_several_threads)
{
    pthread_t threads[4];
    open_discrete(_i, 1);
    for (size_t i = 0; i < 4; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, work_on_a_stream, (void *)(i + 1)), 0);
    for (size_t i = 0; i < 4; i++) {
        void *failures = NULL;
        ck_assert_int_eq(pthread_join(threads[i], &failures), 0);
        ck_assert_ptr_null(failures);
    }
    close_cpu();
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {test_opens,         test_memory_begins_as_nan, test_copies_look_at_their_pointers,
                                  test_shared_memory, test_computes_as_the_cpu,  test_streams_of_several_threads};
    return run_cpu_suite("cpu_discrete", tests, sizeof tests / sizeof *tests);
}
