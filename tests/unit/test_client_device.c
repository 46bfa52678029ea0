/*
 * Caches in device memory, of plain shared memory and of a fake CUDA driver: what is mapped, when the lease goes back,
 * and that no lie of the daemon and no failure of the driver leaves anything behind.
 */
#include <stdio.h>
#include <sys/stat.h>

#include "tests/unit/fake_cache.h"

/* ------------------------------------------------------------------ a daemon with one reply */

/* What the daemon does otherwise than well. */
struct deed {
    void (*lie)(Samkv__FetchReply *);
    bool cuda, plain_device /* no seals */, no_uuid;
    int fds;     /* how many it sends; 0: as many as it should */
    int surplus; /* beyond three */
    bool hold;   /* answers pings until the client leaves */
};

static int lease; /* the daemon's end */

/* More descriptors than the library's own call can send. */
static void send_with_surplus(int socket, const void *bytes, size_t count, const struct samkv_fds *fds, int surplus)
{
    int all[8];
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof all)];
    } control = {.bytes = {0}};
    size_t n = (size_t)(fds->count + surplus), fd_bytes = n * sizeof(int);
    struct iovec piece = {.iov_base = (void *)bytes, .iov_len = count};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = control.bytes};
    message.msg_controllen = CMSG_SPACE(fd_bytes);
    for (size_t i = 0; i < n; i++)
        all[i] = i < (size_t)fds->count ? fds->fd[i] : STDERR_FILENO;
    struct cmsghdr *c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(fd_bytes);
    memcpy(CMSG_DATA(c), all, fd_bytes);
    ck_assert_int_eq(sendmsg(socket, &message, MSG_NOSIGNAL), (ssize_t)count);
}

static void send_reply(struct fake_daemon *d, uint64_t id, const Samkv__FetchReply *m, const struct samkv_fds *fds,
                       int surplus)
{
    uint8_t frame[1000];
    size_t bytes = samkv__fetch_reply__get_packed_size(m);
    samkv_frame_encode(&(struct samkv_frame){.payload_bytes = (uint32_t)bytes,
                                             .type = SAMKV_TYPE_FETCH,
                                             .flags = SAMKV_FLAG_REPLY | SAMKV_FLAG_FD,
                                             .request_id = id},
                       frame);
    samkv__fetch_reply__pack(m, frame + SAMKV_FRAME_HEADER_BYTES);
    if (surplus)
        send_with_surplus(d->socket, frame, SAMKV_FRAME_HEADER_BYTES + bytes, fds, surplus);
    else
        fake_send_bytes_with(d, frame, SAMKV_FRAME_HEADER_BYTES + bytes, fds);
}

static void serve(struct fake_daemon *d)
{
    const struct deed *deed = d->arg;
    Samkv__FetchReply m;
    Samkv__DeviceMemory device;
    struct kv kv;
    int pair[2];
    make_reply(&m, &device);
    fill_kv(&kv);
    if (deed->cuda) {
        device.kind = SAMKV__MEMORY_KIND__CUDA;
        device.uuid.data = (uint8_t *)"0123456789abcdef";
        device.uuid.len = deed->no_uuid ? 15 : 16;
    }
    if (deed->lie)
        deed->lie(&m);
    fake_greet(d);
    uint64_t id = fake_await(d);
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    lease = pair[0];
    struct samkv_fds all = {
        .fd = {make_memfd("fake", &columns, sizeof columns, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL),
               make_memfd("fake", &kv, sizeof kv, deed->plain_device ? F_SEAL_GROW : F_SEAL_SHRINK | F_SEAL_GROW),
               pair[1]},
        .count = 3};
    struct samkv_fds fds = all;
    fds.count = deed->fds ? deed->fds : 3;
    send_reply(d, id, &m, &fds, deed->surplus);
    samkv_fds_close(&all);
    if (deed->hold)
        fake_serve_pings(d);
}

static struct samkv_cache *fetch_cache(const struct deed *deed)
{
    struct fake_daemon d = {.arg = deed};
    struct samkv_cache *cache;
    struct samkv_error err = {.text = ""};
    struct samkv_client *client = fake_connect(&d, serve);
    enum samkv_status status = samkv_client_fetch(client, some_options(SAMKV_FETCH_DEVICE), &cache, &err);
    ck_assert_msg(!status, "%s", err.text);
    fake_end(&d, client); /* caches need neither */
    return cache;
}

/* ------------------------------------------------------------------ truth */

START_TEST(shared_memory)
{
    int before = fake_open_descriptors();
    struct samkv_cache *cache = fetch_cache(&(struct deed){0});
    struct stat st;
    check_contents(cache);
    ck_assert_int_eq(cache->device, -1);
    ck_assert_int_eq(fstat(samkv_cache_fd(cache), &st), 0);
    ck_assert_int_eq(st.st_size, sizeof columns);
    ck_assert(lease_is_held(lease));
    samkv_cache_free(cache);
    ck_assert(lease_was_returned(lease));
    ck_assert_int_eq(fake_open_descriptors(), before);
}
END_TEST

START_TEST(cuda_memory)
{
    struct fake_cuda *fake = cuda();
    int before = fake_open_descriptors();
    struct samkv_cache *cache = fetch_cache(&(struct deed){.cuda = true});
    check_contents(cache);
    ck_assert_int_eq(cache->device, 1);
    ck_assert_int_eq(fake->contexts, 2); /* the cache's, and the one that stays */
    ck_assert_int_eq(fake->current, 0);  /* the caller's stack is as it was */
    ck_assert_int_eq(fake->handles, 0);
    ck_assert(lease_is_held(lease));
    samkv_cache_free(cache);
    ck_assert(lease_was_returned(lease));
    expect_nothing_open(fake, 1);
    ck_assert_int_eq(fake_open_descriptors(), before);
}
END_TEST

/* The daemon's end hung up long before: no signal, no matter. */
START_TEST(daemon_died_before)
{
    int before = fake_open_descriptors();
    struct samkv_cache *cache = fetch_cache(&(struct deed){0});
    close(lease);
    check_contents(cache);
    samkv_cache_free(cache);
    ck_assert_int_eq(fake_open_descriptors(), before);
}
END_TEST

/* What cannot be unmapped is not given back. */
START_TEST(cuda_memory_that_stays)
{
    struct fake_cuda *fake = cuda();
    struct samkv_cache *cache = fetch_cache(&(struct deed){.cuda = true});
    fake->failing = "cuMemUnmap";
    samkv_cache_free(cache);
    ck_assert(!lease_was_returned(lease));
    ck_assert_int_eq(fake->current, 0);
}
END_TEST

/* ------------------------------------------------------------------ lies */

static void lie_bytes(Samkv__FetchReply *m)
{
    m->device->bytes--;
}
static void lie_bytes_more(Samkv__FetchReply *m)
{
    m->device->bytes++;
}
static void lie_bytes_huge(Samkv__FetchReply *m)
{
    m->device->bytes = UINT64_MAX;
}
static void lie_bytes_none(Samkv__FetchReply *m)
{
    m->device->bytes = 0;
}
static void lie_k(Samkv__FetchReply *m)
{
    m->k_offset = sizeof(struct kv) - 4;
}
static void lie_v(Samkv__FetchReply *m)
{
    m->v_offset = UINT64_MAX - 3;
}
static void lie_stride(Samkv__FetchReply *m)
{
    m->layer_stride = UINT64_MAX - 3;
}
static void lie_stride_wraps(Samkv__FetchReply *m)
{
    m->layers = 3;
    m->layer_stride = 1ull << 63;
}
static void lie_stride_overlaps(Samkv__FetchReply *m)
{
    m->layer_stride = sizeof(float);
}
static void lie_layers(Samkv__FetchReply *m)
{
    m->layers = UINT32_MAX;
    m->layer_stride = 0;
}
/* Inside the device's memory, but it is the file that has the tokens. */
static void lie_tokens(Samkv__FetchReply *m)
{
    m->tokens_offset = sizeof(struct columns);
}
static void lie_file(Samkv__FetchReply *m)
{
    m->memory_bytes = sizeof(struct kv);
}
static void lie_host(Samkv__FetchReply *m)
{
    m->device = NULL;
}
static void lie_kind(Samkv__FetchReply *m)
{
    m->device->kind = (Samkv__MemoryKind)9;
}

static const struct deed lies[] = {
    {.lie = lie_bytes},
    {.lie = lie_bytes_more},
    {.lie = lie_bytes_huge},
    {.lie = lie_bytes_none},
    {.lie = lie_k},
    {.lie = lie_v},
    {.lie = lie_stride},
    {.lie = lie_stride_wraps},
    {.lie = lie_stride_overlaps},
    {.lie = lie_layers},
    {.lie = lie_tokens},
    {.lie = lie_file},
    {.lie = lie_host},
    {.plain_device = true},
    {.fds = 1},
    {.fds = 2},
    {.surplus = 1},
    {.surplus = 4},
    {.cuda = true, .no_uuid = true},
    {.cuda = true, .lie = lie_k},
};

/* It costs its own request, and nothing else. */
static void check_refusal(struct deed deed, enum samkv_fetch_placement asked, enum samkv_status expected)
{
    int before = fake_open_descriptors();
    deed.hold = true;
    struct fake_daemon d = {.arg = &deed};
    struct samkv_client *client = fake_connect(&d, serve);
    struct samkv_cache *cache = (void *)&d;
    struct samkv_error err = {.text = ""};
    enum samkv_status status = samkv_client_fetch(client, some_options(asked), &cache, &err);
    ck_assert_msg(status == expected, "%s: %s", samkv_status_name(status), err.text);
    ck_assert_ptr_null(cache);
    ck_assert(*err.text && !strchr(err.text, '\n'));
    ck_assert_int_eq(samkv_client_ping(client, &err), SAMKV_OK);
    ck_assert_int_eq(lease_was_returned(lease), !deed.fds); /* when it came */
    fake_end(&d, client);
    ck_assert_int_eq(fake_open_descriptors(), before);
}

START_TEST(lie_is_refused)
{
    check_refusal(lies[_i], SAMKV_FETCH_DEVICE, SAMKV_PROTOCOL);
}
END_TEST

START_TEST(device_memory_that_was_not_asked_for)
{
    check_refusal((struct deed){0}, SAMKV_FETCH_HOST, SAMKV_PROTOCOL);
}
END_TEST

START_TEST(a_kind_from_the_future)
{
    check_refusal((struct deed){.lie = lie_kind}, SAMKV_FETCH_DEVICE, SAMKV_UNSUPPORTED);
}
END_TEST

/* Nobody waits for the reply any more, or nobody took it: the memory goes back all the same. */
START_TEST(an_abandoned_reply)
{
    const struct deed deed = {.hold = true};
    struct fake_daemon d = {.arg = &deed};
    struct samkv_client *client = fake_connect(&d, serve);
    struct samkv_error err;
    uint64_t request;
    ck_assert_int_eq(samkv_client_submit_fetch(client, some_options(SAMKV_FETCH_DEVICE), &request, &err), SAMKV_OK);
    if (_i)
        samkv_client_abandon(client, request);
    ck_assert_int_eq(samkv_client_ping(client, &err), SAMKV_OK); /* the reply came before */
    fake_end(&d, client);
    ck_assert(lease_was_returned(lease));
}
END_TEST

/* ------------------------------------------------------------------ drivers that fail */

static const struct {
    const char *symbol;
    enum samkv_status status;
} failures[] = {
    {"cuInit", SAMKV_UNSUPPORTED},
    {"cuDeviceGetCount", SAMKV_DEVICE},
    {"cuDeviceGet", SAMKV_UNSUPPORTED}, /* that GPU is not found */
    {"cuDeviceGetUuid_v2", SAMKV_UNSUPPORTED},
    {"cuDevicePrimaryCtxRetain", SAMKV_DEVICE},
    {"cuCtxPushCurrent_v2", SAMKV_DEVICE},
    {"cuMemImportFromShareableHandle", SAMKV_DEVICE},
    {"cuMemAddressReserve", SAMKV_DEVICE},
    {"cuMemMap", SAMKV_DEVICE},
    {"cuMemSetAccess", SAMKV_DEVICE},
};

START_TEST(failing_driver)
{
    struct fake_cuda *fake = cuda();
    fake->failing = failures[_i].symbol;
    check_refusal((struct deed){.cuda = true}, SAMKV_FETCH_DEVICE, failures[_i].status);
    expect_nothing_open(fake, 0);
}
END_TEST

START_TEST(another_gpu)
{
    struct fake_cuda *fake = cuda();
    fake->uuid[15] = 'x';
    check_refusal((struct deed){.cuda = true}, SAMKV_FETCH_DEVICE, SAMKV_UNSUPPORTED);
    expect_nothing_open(fake, 0);
}
END_TEST

/* ------------------------------------------------------------------ saving */

static char directory[] = "/tmp/samkv-device-XXXXXX";

/* As the daemon's file for the host: header, then K, V, columns and logits without gaps. */
START_TEST(save_copies_from_the_device)
{
    static const char head[] =
        "{\"__metadata__\":{\"format\":\"pt\",\"producer\":\"samkvd\"},\"k.0\":{\"dtype\":\"F32\","
        "\"shape\":[3,2,5],\"data_offsets\":[0,120]},\"k.1\":";
    static const char tail[] = ",\"logits\":{\"dtype\":\"F32\",\"shape\":[7],\"data_offsets\":[528,556]}}";
    char path[64], bytes[4096];
    struct samkv_error err;
    struct kv kv;
    struct samkv_cache *cache = fetch_cache(&(struct deed){.cuda = _i});
    fill_kv(&kv);
    ck_assert_ptr_nonnull(mkdtemp(directory));
    snprintf(path, sizeof path, "%s/out", directory);
    ck_assert_msg(samkv_cache_save(cache, path, &err) == SAMKV_OK, "%s", err.text);
    FILE *file = fopen(path, "r");
    size_t count = fread(bytes, 1, sizeof bytes, file);
    fclose(file);
    size_t header = (unsigned char)bytes[0] + 256u * (unsigned char)bytes[1];
    ck_assert_uint_eq((header + 8) % 64, 0);
    ck_assert_uint_eq(count, 8 + header + 556);
    ck_assert_mem_eq(bytes + 8, head, sizeof head - 1);
    ck_assert_ptr_nonnull(memmem(bytes + 8, header, tail, sizeof tail - 1));
    const char *data = bytes + 8 + header;
    ck_assert_mem_eq(data, kv.k[0].data, 120);
    ck_assert_mem_eq(data + 120, kv.k[1].data, 120);
    ck_assert_mem_eq(data + 240, kv.v[0].data, 120);
    ck_assert_mem_eq(data + 360, kv.v[1].data, 120);
    ck_assert_mem_eq(data + 480, columns.tokens, sizeof columns - 4);
    if (_i) {
        cuda()->failing = "cuMemcpyDtoH_v2";
        ck_assert_int_eq(samkv_cache_save(cache, path, &err), SAMKV_DEVICE);
        ck_assert_int_eq(cuda()->current, 0);
    }
    ck_assert_int_eq(unlink(path), 0);
    ck_assert_int_eq(rmdir(directory), 0); /* nothing else was left there */
    samkv_cache_free(cache);
    ck_assert(lease_was_returned(lease));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("client_device");
    TCase *truth = tcase_create("truth"), *hostile = tcase_create("lies"), *driver = tcase_create("driver");
    tcase_add_test(truth, shared_memory);
    tcase_add_test(truth, cuda_memory);
    tcase_add_test(truth, daemon_died_before);
    tcase_add_test(truth, cuda_memory_that_stays);
    tcase_add_loop_test(truth, an_abandoned_reply, 0, 2);
    tcase_add_loop_test(truth, save_copies_from_the_device, 0, 2);
    tcase_add_loop_test(hostile, lie_is_refused, 0, sizeof lies / sizeof *lies);
    tcase_add_test(hostile, device_memory_that_was_not_asked_for);
    tcase_add_test(hostile, a_kind_from_the_future);
    tcase_add_loop_test(driver, failing_driver, 0, sizeof failures / sizeof *failures);
    tcase_add_test(driver, another_gpu);
    suite_add_tcase(suite, truth);
    suite_add_tcase(suite, hostile);
    suite_add_tcase(suite, driver);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
