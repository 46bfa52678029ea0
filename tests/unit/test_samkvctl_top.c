/* `samkvctl top` and `samkvctl trace` against a daemon that says what the test wants. */
#include "tests/unit/ctl_host.h"

static const double bounds[] = {0.1, 0.2, 0.4};

struct scene {
    uint64_t counts[2][4]; /* of the histogram, at each reading */
    double fetches[2];
    double hits[2], misses[2];
};

static void answer_status(struct fake_daemon *d, const struct scene *scene, int reading)
{
    Samkv__StatusReply reply = SAMKV__STATUS_REPLY__INIT;
    Samkv__Histogram h = SAMKV__HISTOGRAM__INIT, *histograms[] = {&h};
    const struct {
        const char *name;
        double value;
    } numbers[] = {{"requests_fetch", scene->fetches[reading]},
                   {"host_cache_limit_bytes", 1000},
                   {"host_cache_bytes", 500},
                   {"host_cache_hits", scene->hits[reading]},
                   {"host_cache_misses", scene->misses[reading]},
                   {"\033[31m", 1}};
    Samkv__Counter counters[6], *pointers[6];
    for (int i = 0; i < 6; i++) {
        samkv__counter__init(&counters[i]);
        counters[i].name = (char *)numbers[i].name;
        counters[i].value = numbers[i].value;
        pointers[i] = &counters[i];
    }
    h.name = (char *)"fetch_phase_seconds";
    h.phase = (char *)"read";
    h.bounds = (double *)bounds;
    h.n_bounds = 3;
    h.counts = (uint64_t *)scene->counts[reading];
    h.n_counts = 4;
    reply.histograms = histograms;
    reply.n_histograms = 1;
    reply.counters = pointers;
    reply.n_counters = 6;
    reply.bytes_used = 7;
    fake_reply(d, SAMKV_TYPE_STATUS, fake_await(d), &reply.base);
}

static void answer_trace(struct fake_daemon *d)
{
    Samkv__TraceReply reply = SAMKV__TRACE_REPLY__INIT;
    Samkv__TracedRequest rows[3], *pointers[3];
    Samkv__Span span = SAMKV__SPAN__INIT, *spans[] = {&span};
    char *documents[] = {(char *)"a\033[31m"};
    span.phase = (char *)"read";
    span.start_ms = 5;
    span.ms = 10;
    for (int i = 0; i < 3; i++) {
        samkv__traced_request__init(&rows[i]);
        rows[i].id = (uint64_t)i + 1;
        rows[i].type = (char *)"FETCH";
        rows[i].ms = 20 * (i + 1);
        rows[i].documents = documents;
        rows[i].n_documents = 1;
        rows[i].document_count = 4;
        rows[i].spans = spans;
        rows[i].n_spans = 1;
        pointers[i] = &rows[i];
    }
    rows[1].status = SAMKV_BUSY;
    rows[1].error = (char *)"try\033 again";
    reply.requests = pointers;
    reply.n_requests = 3;
    fake_reply(d, SAMKV_TYPE_TRACE, fake_await(d), &reply.base);
}

static void two_readings(struct fake_daemon *d)
{
    fake_greet(d);
    for (int i = 0; i < 2; i++) {
        answer_status(d, d->arg, i);
        answer_trace(d);
    }
    fake_await(d);
}

static struct run top_of(const struct scene *scene, const char *arguments)
{
    struct host host;
    host_start(&host, two_readings, scene);
    struct run run = run_tool(arguments);
    host_end(&host);
    return run;
}

/* Between the readings ten values: two at most 0.1, eight in (0.1, 0.2]: the median is 3/8 into that bucket. */
START_TEST(quantiles_of_what_came_between)
{
    const struct scene scene = {.counts = {{5, 0, 0, 1}, {7, 8, 0, 1}}, .hits = {10, 13}, .misses = {4, 5}};
    struct run run = top_of(&scene, "top --json --interval 0.1");
    ck_assert_int_eq(run.code, 0);
    ASSERT_HAS(run.out, "\"recent\": {\"p50_ms\": 137.5, \"p99_ms\": 198.75, \"count\": 10}");
    /* Of all 16, the last is beyond the bounds: no more can be said than the last bound. */
    ASSERT_HAS(run.out, "\"p99_ms\": 400.0, \"count\": 16}");
    ASSERT_HAS(run.out, "\"tier\": \"host\", \"used_bytes\": 500.0, \"limit_bytes\": 1000.0, \"hit_rate\": 0.75}");
    ASSERT_HAS(run.out, "\"slowest\": [{\"request\": 3,");
}
END_TEST

/* A daemon that began anew in between has counted less: what it counted is what came. */
START_TEST(a_daemon_that_began_anew)
{
    const struct scene scene = {.counts = {{50, 9, 0, 0}, {4, 0, 0, 0}}, .fetches = {1000, 3}};
    struct run run = top_of(&scene, "top --json --interval 0.1");
    ck_assert_int_eq(run.code, 0);
    ASSERT_HAS(run.out, "\"fetches_per_s\": 0.0");
    ASSERT_HAS(run.out, "\"recent\": {\"p50_ms\": 50.0, \"p99_ms\": 99.0, \"count\": 4}");
}
END_TEST

START_TEST(nothing_yet)
{
    const struct scene scene = {.fetches = {0, 0}};
    struct run run = top_of(&scene, "top --json --interval 0.1");
    ck_assert_int_eq(run.code, 0);
    ASSERT_HAS(run.out, "\"p50_ms\": null, \"p99_ms\": null, \"count\": 0}");
    ASSERT_HAS(run.out, "\"hit_rate\": null");
}
END_TEST

/* Not to a terminal: once, without codes, and what others wrote does no harm. */
START_TEST(top_prints_once)
{
    const struct scene scene = {.counts = {{5, 0, 0, 1}, {7, 8, 0, 1}}};
    struct run run = top_of(&scene, "top --interval 0.1");
    ck_assert_int_eq(run.code, 0);
    ASSERT_HAS(run.out, "fetch read              10");
    ASSERT_HAS(run.out, "slowest   req 3 fetch 60.0 ms, pid 0: default: a?[31m and 3 more\n");
    ck_assert_ptr_null(strchr(run.out, '\033'));
}
END_TEST

static void one_trace(struct fake_daemon *d)
{
    fake_greet(d);
    answer_trace(d);
    fake_await(d);
}

START_TEST(trace_lists)
{
    struct host host;
    host_start(&host, one_trace, NULL);
    struct run run = run_tool("trace");
    host_end(&host);
    ck_assert_int_eq(run.code, 0);
    ASSERT_HAS(run.out, "\tfetch\t0\t20.0 ms\tOK\tdefault: a?[31m and 3 more\n");
    ASSERT_HAS(run.out, "\tBUSY\ttry? again\n");
}
END_TEST

/* 80 columns where no terminal says otherwise: 45 of them for 20, 40 and 60 ms. */
START_TEST(trace_draws_to_scale)
{
    struct host host;
    host_start(&host, one_trace, NULL);
    struct run run = run_tool("trace 1");
    host_end(&host);
    ck_assert_int_eq(run.code, 0);
    char bar[400] = "read             5.00     10.00  |";
    for (int i = 0; i < 45; i++)
        strcat(bar, i >= 11 && i < 34 ? "█" : " ");
    strcat(bar, "|\n");
    ASSERT_HAS(run.out, bar);
    ck_assert_ptr_null(strchr(run.out, '\033'));
}
END_TEST

static void lie(struct fake_daemon *d)
{
    Samkv__StatusReply reply = SAMKV__STATUS_REPLY__INIT;
    Samkv__Histogram h = SAMKV__HISTOGRAM__INIT, *histograms[] = {&h};
    h.bounds = (double *)bounds;
    h.n_bounds = 3;
    reply.histograms = histograms;
    reply.n_histograms = 1;
    fake_greet(d);
    fake_reply(d, SAMKV_TYPE_STATUS, fake_await(d), &reply.base);
    fake_await(d);
}

START_TEST(a_histogram_without_counts)
{
    struct host host;
    host_start(&host, lie, NULL);
    struct run run = run_tool("top --once");
    host_end(&host);
    ck_assert_int_eq(run.code, 1);
    ASSERT_HAS(run.err, "one count more than bounds");
}
END_TEST

static void old_daemon(struct fake_daemon *d)
{
    fake_greet(d);
    fake_error(d, SAMKV_TYPE_TRACE, fake_await(d), SAMKV_UNSUPPORTED, "requests of type 17 are not known here");
    fake_await(d);
}

START_TEST(an_older_daemon_says_so)
{
    struct host host;
    host_start(&host, old_daemon, NULL);
    struct run run = run_tool("trace");
    host_end(&host);
    ck_assert_int_eq(run.code, 1);
    ASSERT_HAS(run.err, "type 17");
}
END_TEST

START_TEST(wrong_numbers)
{
    static const char *const bad[] = {
        "trace 0",        "trace x", "trace -1", "trace 1 2", "top --interval 0", "top x", "trace 99999999999999999999",
        "trace --limit 0"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        ck_assert_int_eq(run_tool(bad[i]).code, 2);
}
END_TEST

int main(void)
{
    TCase *tc = tcase_create("top");
    tcase_add_test(tc, quantiles_of_what_came_between);
    tcase_add_test(tc, a_daemon_that_began_anew);
    tcase_add_test(tc, nothing_yet);
    tcase_add_test(tc, top_prints_once);
    tcase_add_test(tc, trace_lists);
    tcase_add_test(tc, trace_draws_to_scale);
    tcase_add_test(tc, a_histogram_without_counts);
    tcase_add_test(tc, an_older_daemon_says_so);
    tcase_add_test(tc, wrong_numbers);
    TCase *const all[] = {tc};
    return run_cases("samkvctl_top", all, 1);
}
