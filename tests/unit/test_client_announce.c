/*
 * Device memory that is announced before the reply: when it is mapped, which memory a cache gets, and that the lease
 * goes back at once, and nothing stays mapped, however else the request ends.
 */
#include <sched.h>
#include <stdio.h>

#include "tests/unit/fake_cache.h"

/* ------------------------------------------------------------------ a daemon that announces */

enum ending { ANSWER, WHOLE /* three descriptors */, BARE /* none */, FAIL, HANG_UP, ON_PING /* the answer, then */ };

struct deed {
    bool cuda;
    int more; /* announcements behind the first */
    /* About the first one: */
    bool refused; /* the client returns it at once */
    bool unsealed, no_device, garbage, miscounted;
    int fds; /* when miscounted */
    enum ending ending;
    void (*lie)(Samkv__FetchReply *); /* in the last reply */
};

static int leases[3];       /* the daemon's ends: of the announcements; WHOLE: its own one is the last */
static bool was_returned;   /* of the first one, when that was awaited here */
static int memory_to_write; /* of the last announcement */

static bool is_mapped(int announcement)
{
    char name[40], line[500];
    bool found = false;
    snprintf(name, sizeof name, "/memfd:announced-%d", announcement);
    FILE *maps = fopen("/proc/self/maps", "r");
    while (fgets(line, sizeof line, maps))
        found |= strstr(line, name) != NULL;
    fclose(maps);
    return found;
}

static void fill_reply(const struct deed *deed, Samkv__FetchReply *m, Samkv__DeviceMemory *device)
{
    make_reply(m, device);
    if (deed->cuda) {
        device->kind = SAMKV__MEMORY_KIND__CUDA;
        device->uuid.data = (uint8_t *)"0123456789abcdef";
        device->uuid.len = 16;
    }
}

static int make_file(void)
{
    return make_memfd("columns", &columns, sizeof columns, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL);
}

static int make_lease(int number)
{
    int pair[2];
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    leases[number] = pair[0];
    return pair[1];
}

/* The memory has nothing yet, and of the message only what the layout of K and V is. */
static void announce(struct fake_daemon *d, uint64_t id, int number)
{
    static const struct deed good = {0};
    const struct deed *deed = number ? &good : d->arg;
    const uint16_t flags = SAMKV_FLAG_REPLY | SAMKV_FLAG_MORE | SAMKV_FLAG_FD;
    Samkv__FetchReply m;
    Samkv__DeviceMemory device;
    struct kv kv;
    char name[40];
    fill_reply(d->arg, &m, &device);
    m.memory_bytes = m.tokens_offset = 0;
    if (deed->no_device)
        m.device = NULL;
    memset(&kv, 0xff, sizeof kv);
    snprintf(name, sizeof name, "announced-%d", number);
    int memory = make_memfd(name, &kv, sizeof kv, deed->unsealed ? F_SEAL_GROW : F_SEAL_SHRINK | F_SEAL_GROW);
    int file = make_file(), lease = make_lease(number);
    struct samkv_fds fds = {.fd = {memory, lease}, .count = 2};
    if (deed->miscounted && deed->fds == 3)
        fds = (struct samkv_fds){.fd = {file, memory, lease}};
    if (deed->miscounted)
        fds.count = deed->fds;
    if (deed->garbage) {
        uint8_t frame[SAMKV_FRAME_HEADER_BYTES + 3];
        memset(frame, 0xff, sizeof frame);
        samkv_frame_encode(
            &(struct samkv_frame){.payload_bytes = 3, .type = SAMKV_TYPE_FETCH, .flags = flags, .request_id = id},
            frame);
        fake_send_bytes_with(d, frame, sizeof frame, &fds);
    } else {
        fake_send_with(d, SAMKV_TYPE_FETCH, flags, id, &m.base, &fds);
    }
    close(file);
    close(lease);
    if (number)
        close(memory_to_write);
    memory_to_write = memory;
}

/* K and V come into the memory when the client has mapped it. */
static void answer(struct fake_daemon *d, uint64_t id)
{
    const struct deed *deed = d->arg;
    Samkv__FetchReply m;
    Samkv__DeviceMemory device;
    struct kv kv;
    fill_kv(&kv);
    ck_assert_int_eq(pwrite(memory_to_write, &kv, sizeof kv, 0), (ssize_t)sizeof kv);
    fill_reply(deed, &m, &device);
    if (deed->lie)
        deed->lie(&m);
    struct samkv_fds fds = {.fd = {make_file()}, .count = 1};
    if (deed->ending == WHOLE)
        fds = (struct samkv_fds){.fd = {fds.fd[0], dup(memory_to_write), make_lease(2)}, .count = 3};
    struct samkv_fds sent = fds;
    if (deed->ending == BARE)
        sent.count = 0;
    fake_send_with(d, SAMKV_TYPE_FETCH, SAMKV_FLAG_REPLY | SAMKV_FLAG_FD, id, &m.base, &sent);
    samkv_fds_close(&fds);
}

/* Until the client has taken the announcement, or returned it. */
static void await_client(const struct deed *deed, int number)
{
    if (deed->refused && !number) {
        was_returned = lease_was_returned(leases[0]);
        ck_assert(!is_mapped(0));
        return;
    }
    while (!is_mapped(number))
        sched_yield();
    ck_assert(lease_is_held(leases[number]));
    if (!number || (deed->refused && number == 1))
        return;
    ck_assert(lease_was_returned(leases[number - 1]));
    ck_assert(!is_mapped(number - 1));
}

static void serve(struct fake_daemon *d)
{
    const struct deed *deed = d->arg;
    struct fake_request ping;
    fake_greet(d);
    uint64_t id = fake_await(d);
    for (int i = 0; i <= deed->more; i++) {
        announce(d, id, i);
        if (deed->ending != ON_PING)
            await_client(deed, i);
    }
    if (deed->ending == FAIL)
        fake_error(d, SAMKV_TYPE_FETCH, id, SAMKV_CORRUPT, "no");
    else if (deed->ending == ON_PING) {
        if (fake_receive(d, &ping)) {
            Samkv__PingReply pong = SAMKV__PING_REPLY__INIT;
            answer(d, id);
            fake_reply(d, ping.frame.type, ping.frame.request_id, &pong.base);
        }
        free(ping.payload);
    } else if (deed->ending != HANG_UP)
        answer(d, id);
    close(memory_to_write);
    if (deed->ending != HANG_UP)
        fake_serve_pings(d);
}

/* ------------------------------------------------------------------ what becomes a cache */

static const struct deed good[] = {
    {0},
    {.cuda = true},
    {.more = 1},
    {.cuda = true, .more = 1},
    {.more = 2},
    /* A good announcement makes up for a bad one. */
    {.more = 1, .refused = true, .unsealed = true},
    {.more = 1, .refused = true, .no_device = true},
    {.more = 1, .refused = true, .garbage = true},
    {.more = 1, .refused = true, .miscounted = true, .fds = 1},
    {.more = 2, .refused = true, .miscounted = true, .fds = 3},
};

/* That it is mapped before the answer comes is what the daemon waits for. */
START_TEST(announced_memory)
{
    const struct deed *deed = &good[_i];
    int before = fake_open_descriptors();
    struct fake_daemon d = {.arg = deed};
    struct samkv_client *client = fake_connect(&d, serve);
    struct samkv_cache *cache;
    struct samkv_error err = {.text = ""};
    enum samkv_status status = samkv_client_fetch(client, some_options(SAMKV_FETCH_DEVICE), &cache, &err);
    ck_assert_msg(!status, "%s", err.text);
    fake_end(&d, client); /* caches need neither */
    check_contents(cache);
    ck_assert_int_eq(cache->device, deed->cuda ? 1 : -1);
    ck_assert(is_mapped(deed->more));
    ck_assert(lease_is_held(leases[deed->more]));
    samkv_cache_free(cache);
    ck_assert(lease_was_returned(leases[deed->more]));
    ck_assert(!is_mapped(deed->more));
    if (deed->cuda)
        expect_nothing_open(cuda(), 1);
    ck_assert_int_eq(fake_open_descriptors(), before);
}
END_TEST

/* ------------------------------------------------------------------ what does not */

static void lie_bytes(Samkv__FetchReply *m)
{
    m->device->bytes--;
}
static void lie_bytes_more(Samkv__FetchReply *m)
{
    m->device->bytes += 4096;
}
static void lie_host(Samkv__FetchReply *m)
{
    m->device = NULL;
}
static void lie_k(Samkv__FetchReply *m)
{
    m->k_offset = sizeof(struct kv) - 4;
}
static void lie_file(Samkv__FetchReply *m)
{
    m->memory_bytes++;
}

static const struct {
    struct deed deed;
    enum samkv_status status;
} bad[] = {
    {{.ending = FAIL}, SAMKV_CORRUPT},
    {{.ending = FAIL, .cuda = true}, SAMKV_CORRUPT},
    {{.ending = FAIL, .more = 1}, SAMKV_CORRUPT},
    {{.ending = FAIL, .refused = true, .unsealed = true}, SAMKV_CORRUPT}, /* the daemon's reason comes first */
    {{.ending = WHOLE}, SAMKV_PROTOCOL},
    {{.ending = WHOLE, .cuda = true}, SAMKV_PROTOCOL},
    {{.ending = WHOLE, .refused = true, .unsealed = true}, SAMKV_PROTOCOL},
    {{.ending = BARE}, SAMKV_PROTOCOL},
    {{.lie = lie_bytes}, SAMKV_PROTOCOL},
    {{.lie = lie_bytes_more}, SAMKV_PROTOCOL},
    {{.lie = lie_bytes_more, .cuda = true}, SAMKV_PROTOCOL},
    {{.lie = lie_host}, SAMKV_PROTOCOL},
    {{.lie = lie_k}, SAMKV_PROTOCOL},
    {{.lie = lie_file}, SAMKV_PROTOCOL},
    {{.refused = true, .unsealed = true}, SAMKV_PROTOCOL},
    {{.refused = true, .no_device = true}, SAMKV_PROTOCOL},
    {{.refused = true, .garbage = true}, SAMKV_PROTOCOL},
    {{.refused = true, .miscounted = true, .fds = 0}, SAMKV_PROTOCOL},
    {{.refused = true, .miscounted = true, .fds = 1}, SAMKV_PROTOCOL},
    {{.refused = true, .miscounted = true, .fds = 3}, SAMKV_PROTOCOL},
};

/* It costs its own request, and nothing else. */
static void check_refusal(const struct deed *deed, enum samkv_status expected)
{
    int before = fake_open_descriptors();
    struct fake_daemon d = {.arg = deed};
    struct samkv_client *client = fake_connect(&d, serve);
    struct samkv_cache *cache = (void *)&d;
    struct samkv_error err = {.text = ""};
    enum samkv_status status = samkv_client_fetch(client, some_options(SAMKV_FETCH_DEVICE), &cache, &err);
    ck_assert_msg(status == expected, "%s: %s", samkv_status_name(status), err.text);
    ck_assert_ptr_null(cache);
    ck_assert(*err.text && !strchr(err.text, '\n'));
    ck_assert(!is_mapped(deed->more));
    if (!deed->refused)
        was_returned = lease_was_returned(leases[deed->more]);
    ck_assert_int_eq(was_returned, !deed->miscounted || deed->fds > 1); /* when it came */
    if (deed->ending == WHOLE)
        ck_assert(lease_was_returned(leases[2]));
    ck_assert_int_eq(samkv_client_ping(client, &err), SAMKV_OK);
    fake_end(&d, client);
    ck_assert_int_eq(fake_open_descriptors(), before);
}

START_TEST(refused)
{
    check_refusal(&bad[_i].deed, bad[_i].status);
    if (bad[_i].deed.cuda)
        expect_nothing_open(cuda(), 1);
}
END_TEST

static const struct {
    const char *symbol;
    enum samkv_status status;
} failures[] = {
    {"cuInit", SAMKV_UNSUPPORTED}, {"cuDeviceGet", SAMKV_UNSUPPORTED}, {"cuMemImportFromShareableHandle", SAMKV_DEVICE},
    {"cuMemMap", SAMKV_DEVICE},    {"cuMemSetAccess", SAMKV_DEVICE},
};

/* The lease goes back before the answer comes, the failure comes with it. */
START_TEST(failing_driver)
{
    struct fake_cuda *fake = cuda();
    fake->failing = failures[_i].symbol;
    check_refusal(&(struct deed){.cuda = true, .refused = true}, failures[_i].status);
    expect_nothing_open(fake, 0);
}
END_TEST

/* Nothing that follows can be trusted. */
START_TEST(an_announcement_without_asking)
{
    int before = fake_open_descriptors();
    struct fake_daemon d = {.arg = &(struct deed){.refused = true}};
    struct samkv_client *client = fake_connect(&d, serve);
    struct samkv_cache *cache;
    struct samkv_error err = {.text = ""};
    ck_assert_int_eq(samkv_client_fetch(client, some_options(SAMKV_FETCH_HOST), &cache, &err), SAMKV_PROTOCOL);
    ck_assert_ptr_null(cache);
    ck_assert_int_eq(samkv_client_fd(client), -1);
    ck_assert_int_eq(samkv_client_ping(client, &err), SAMKV_PROTOCOL);
    fake_end(&d, client);
    ck_assert(was_returned);
    ck_assert_int_eq(fake_open_descriptors(), before);
}
END_TEST

START_TEST(a_daemon_that_dies)
{
    const struct deed deed = {.cuda = _i, .ending = HANG_UP};
    int before = fake_open_descriptors();
    struct fake_daemon d = {.arg = &deed};
    struct samkv_client *client = fake_connect(&d, serve);
    struct samkv_cache *cache;
    struct samkv_error err = {.text = ""};
    ck_assert_int_eq(samkv_client_fetch(client, some_options(SAMKV_FETCH_DEVICE), &cache, &err), SAMKV_CLOSED);
    ck_assert_ptr_null(cache);
    ck_assert(!is_mapped(0));
    ck_assert(lease_was_returned(leases[0]));
    if (_i)
        expect_nothing_open(cuda(), 1);
    fake_end(&d, client);
    ck_assert_int_eq(fake_open_descriptors(), before);
}
END_TEST

/* ------------------------------------------------------------------ nobody waits any more */

/* A fetch whose answer comes with the next ping. */
static struct samkv_client *submit(struct fake_daemon *d, int timeout_ms, uint64_t *request)
{
    static const struct deed deed = {.ending = ON_PING};
    struct samkv_error err;
    *d = (struct fake_daemon){.arg = &deed};
    struct samkv_client *client = fake_connect(d, serve);
    samkv_client_set_timeout_ms(client, timeout_ms);
    ck_assert_int_eq(samkv_client_submit_fetch(client, some_options(SAMKV_FETCH_DEVICE), request, &err), SAMKV_OK);
    samkv_client_set_timeout_ms(client, 0);
    return client;
}

static void process(struct samkv_client *client)
{
    struct samkv_error err;
    struct pollfd p = {.fd = samkv_client_fd(client), .events = POLLIN};
    poll(&p, 1, samkv_client_wait_ms(client));
    ck_assert_int_eq(samkv_client_process(client, &err), SAMKV_OK);
}

START_TEST(closed_meanwhile)
{
    int before = fake_open_descriptors();
    struct fake_daemon d;
    uint64_t request;
    struct samkv_client *client = submit(&d, 0, &request);
    while (!is_mapped(0))
        process(client);
    ck_assert(lease_is_held(leases[0]));
    fake_end(&d, client);
    ck_assert(!is_mapped(0));
    ck_assert(lease_was_returned(leases[0]));
    ck_assert_int_eq(fake_open_descriptors(), before);
}
END_TEST

/* Before the announcement comes, or between it and the answer: then the memory goes back at once. */
START_TEST(abandoned_meanwhile)
{
    int before = fake_open_descriptors();
    struct fake_daemon d;
    struct samkv_error err;
    struct samkv_reply reply;
    uint64_t request;
    struct samkv_client *client = submit(&d, 0, &request);
    while (_i && !is_mapped(0))
        process(client);
    samkv_client_abandon(client, request);
    ck_assert(!is_mapped(0));
    if (_i)
        ck_assert(lease_was_returned(leases[0]));
    ck_assert_int_eq(samkv_client_ping(client, &err), SAMKV_OK); /* the announcement and the answer came before */
    ck_assert(!samkv_client_next(client, &reply));
    if (!_i)
        ck_assert(lease_was_returned(leases[0]));
    fake_end(&d, client);
    ck_assert_int_eq(fake_open_descriptors(), before);
}
END_TEST

START_TEST(timed_out_meanwhile)
{
    int before = fake_open_descriptors();
    struct fake_daemon d;
    struct samkv_error err;
    struct samkv_reply reply;
    uint64_t request;
    struct samkv_client *client = submit(&d, 100, &request);
    while (!samkv_client_next(client, &reply))
        process(client);
    ck_assert_int_eq(reply.status, SAMKV_TIMEOUT);
    samkv_reply_deinit(&reply);
    ck_assert(!is_mapped(0)); /* though there is no answer yet */
    ck_assert_int_eq(samkv_client_ping(client, &err), SAMKV_OK);
    ck_assert(!samkv_client_next(client, &reply));
    ck_assert(lease_was_returned(leases[0]));
    fake_end(&d, client);
    ck_assert_int_eq(fake_open_descriptors(), before);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("client_announce");
    TCase *truth = tcase_create("truth"), *end = tcase_create("end");
    tcase_set_timeout(truth, 30);
    tcase_set_timeout(end, 30);
    tcase_add_loop_test(truth, announced_memory, 0, sizeof good / sizeof *good);
    tcase_add_loop_test(end, refused, 0, sizeof bad / sizeof *bad);
    tcase_add_loop_test(end, failing_driver, 0, sizeof failures / sizeof *failures);
    tcase_add_test(end, an_announcement_without_asking);
    tcase_add_loop_test(end, a_daemon_that_dies, 0, 2);
    tcase_add_test(end, closed_meanwhile);
    tcase_add_loop_test(end, abandoned_meanwhile, 0, 2);
    tcase_add_test(end, timed_out_meanwhile);
    suite_add_tcase(suite, truth);
    suite_add_tcase(suite, end);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
