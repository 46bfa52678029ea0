/* Opening devices, memory, streams. */
#include "tests/kernels/cpu_fixture.h"

#include <pthread.h>
#include <sched.h>

START_TEST(test_names)
{
    open_cpu(_i, 3);
    ck_assert_ptr_nonnull(strstr(device->name, "3 threads"));
    ck_assert_int_eq(device->dtype, SAMKV_F32);
    ck_assert(device->unified);
    close_cpu();
}
END_TEST

START_TEST(test_refuses_thread_counts)
{
    struct samkv_error err = {0};
    struct samkv_device *none = (struct samkv_device *)&err;
    ck_assert_int_eq(samkv_cpu_device_new(-1, &none, &err), SAMKV_INVALID);
    ck_assert_ptr_null(none);
    ck_assert_int_eq(samkv_cpu_device_new(1 << 20, &none, NULL), SAMKV_INVALID);
    (void)_i;
}
END_TEST

START_TEST(test_memory)
{
    static const size_t sizes[] = {0, 1, 63, 64, 65, 100000};
    open_cpu(_i, 0);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        void *p = NULL, *h = NULL;
        ck_assert_int_eq(device->ops->alloc(device, sizes[i], &p), SAMKV_OK);
        ck_assert_int_eq(device->ops->host_alloc(device, sizes[i], &h), SAMKV_OK);
        ck_assert(p && h && (uintptr_t)p % 64 == 0);
        memset(p, 1, sizes[i]);
        memset(h, 1, sizes[i]);
        device->ops->release(device, p);
        device->ops->host_release(device, h);
    }
    device->ops->release(device, NULL);
    device->ops->host_release(device, NULL);
    close_cpu();
}
END_TEST

START_TEST(test_free_memory)
{
    uint64_t available = 0, total = 0;
    open_cpu(_i, 0);
    device->ops->memory(device, &available, &total);
    ck_assert_uint_gt(available, (uint64_t)1 << 20);
    ck_assert_uint_gt(total, available);
    ck_assert_uint_lt(total, (uint64_t)1 << 50);
    ck_assert(!device->shares && !device->ops->shared_alloc && !device->ops->shared_export);
    close_cpu();
}
END_TEST

struct handover {
    struct samkv_event *event;
    int ready, value;
};

static void *wait_for_event(void *arg)
{
    struct handover *h = arg;
    while (!__atomic_load_n(&h->ready, __ATOMIC_RELAXED)) /* relaxed: it is the event that orders `value` */
        sched_yield();
    return device->ops->event_sync(h->event, NULL) == SAMKV_OK && h->value == 7 ? NULL : h;
}

/* Waiting before anything was recorded, again and again, and from another thread. */
START_TEST(test_events)
{
    struct handover h = {0};
    struct samkv_stream *second = NULL;
    struct samkv_error err = {0};
    float before = 1, after = 0;
    pthread_t thread;
    void *failure = NULL;
    open_cpu(_i, 1);
    const struct samkv_ops *ops = device->ops;
    ck_assert_int_eq(ops->stream_new(device, &second), SAMKV_OK);
    ck_assert_int_eq(ops->event_new(device, &h.event), SAMKV_OK);
    ck_assert_ptr_eq(h.event->device, device);
    ops->await(second, h.event);
    ck_assert_int_eq(ops->event_sync(h.event, &err), SAMKV_OK);
    for (int i = 0; i < 3; i++) {
        before = (float)i;
        ops->record(stream, h.event);
        ops->await(second, h.event);
        ops->copy(second, &after, &before, sizeof after);
        ck_assert(after == (float)i);
    }
    ck_assert_int_eq(pthread_create(&thread, NULL, wait_for_event, &h), 0);
    h.value = 7;
    ops->record(stream, h.event);
    __atomic_store_n(&h.ready, 1, __ATOMIC_RELAXED);
    ck_assert_int_eq(pthread_join(thread, &failure), 0);
    ck_assert_ptr_null(failure);
    ops->event_free(h.event);
    ops->event_free(NULL);
    ck_assert_int_eq(ops->sync(second, &err), SAMKV_OK);
    ops->stream_free(second);
    close_cpu();
}
END_TEST

/* A sanitizer would end the process where malloc says no. */
const char *__asan_default_options(void);
__attribute__((visibility("default"))) const char *__asan_default_options(void)
{
    return "allocator_may_return_null=1";
}

/* Sizes that wrap when rounded up, or that no machine has, are a status. */
START_TEST(test_huge_memory)
{
    void *p = &p;
    open_cpu(_i, 0);
    ck_assert_int_eq(device->ops->alloc(device, SIZE_MAX, &p), SAMKV_NO_MEMORY);
    ck_assert_ptr_null(p);
    ck_assert_int_eq(device->ops->alloc(device, SIZE_MAX - 62, &p), SAMKV_NO_MEMORY);
    ck_assert_int_eq(device->ops->alloc(device, PTRDIFF_MAX - 63, &p), SAMKV_NO_MEMORY);
    close_cpu();
}
END_TEST

START_TEST(test_transfers)
{
    char source[200], middle[200], target[201];
    for (int i = 0; i < 200; i++)
        source[i] = (char)i;
    target[200] = 'x';
    open_cpu(_i, 0);
    device->ops->upload(stream, middle, source, sizeof source);
    device->ops->copy(stream, middle, middle, sizeof middle);
    device->ops->download(stream, target, middle, sizeof middle);
    ck_assert_int_eq(memcmp(source, target, sizeof source), 0);
    device->ops->zero(stream, target + 1, 198);
    ck_assert(target[0] == 0 && target[1] == 0 && target[198] == 0 && target[199] == source[199] && target[200] == 'x');
    device->ops->copy(stream, NULL, NULL, 0);
    close_cpu();
}
END_TEST

START_TEST(test_open_by_name)
{
    static const char *const bad[] = {
        "gpu", "cpu:1", "cuda:", "cuda:x", "cuda:1x", "cuda:-1", "cuda:99999999999999999999"};
    struct samkv_device *opened;
    struct samkv_error err;
    char note[200] = "old";
    ck_assert_int_eq(samkv_device_open("cpu", SAMKV_BF16, &opened, note, sizeof note, &err), SAMKV_OK);
    ck_assert_str_eq(note, "");
    ck_assert_int_eq(opened->dtype, SAMKV_F32);
    opened->ops->device_free(opened);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ck_assert_int_eq(samkv_device_open(bad[i], SAMKV_BF16, &opened, NULL, 0, &err), SAMKV_INVALID);
        ck_assert_ptr_null(opened);
    }
    (void)_i;
}
END_TEST

/* On a machine with a GPU and the module, "auto" takes it; elsewhere it falls back and says why. Never an error. */
START_TEST(test_auto_never_fails)
{
    struct samkv_device *opened;
    struct samkv_error err = {0};
    char note[300] = "";
    ck_assert_msg(samkv_device_open("auto", SAMKV_BF16, &opened, note, sizeof note, &err) == SAMKV_OK, "%s", err.text);
    ck_assert((strncmp(opened->name, "cpu", 3) == 0) == (note[0] != '\0'));
    opened->ops->device_free(opened);
    ck_assert_int_eq(samkv_device_open("auto", SAMKV_BF16, &opened, note, 10, NULL), SAMKV_OK);
    ck_assert(strlen(note) < 10);
    opened->ops->device_free(opened);
    if (samkv_device_open("cuda:1000", SAMKV_BF16, &opened, NULL, 0, &err) == SAMKV_OK)
        ck_abort_msg("there is no such GPU");
    ck_assert_uint_gt(strlen(err.text), 10);
    (void)_i;
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {test_names,       test_refuses_thread_counts, test_memory,
                                  test_huge_memory, test_free_memory,           test_events,
                                  test_transfers,   test_open_by_name,          test_auto_never_fails};
    return run_cpu_suite("cpu_device", tests, sizeof tests / sizeof *tests);
}
