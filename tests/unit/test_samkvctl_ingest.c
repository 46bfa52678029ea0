/* samkvctl ingest: all kinds of input, against a daemon that is busy, slow, stubborn or dying. */
#include <signal.h>
#include <sys/stat.h>

#include "tests/unit/ctl_host.h"

#define IN_FLIGHT 8 /* documents that the tool sends before it has an answer */

/* Answers a document; its bytes as tokens. */
static void acknowledge(struct fake_daemon *d, const struct fake_request *request)
{
    Samkv__IngestRequest *m = samkv__ingest_request__unpack(NULL, request->frame.payload_bytes, request->payload);
    Samkv__IngestedDocument document = SAMKV__INGESTED_DOCUMENT__INIT, *documents[] = {&document};
    Samkv__IngestReply reply = SAMKV__INGEST_REPLY__INIT;
    document.id = m->id;
    document.tokens = (uint32_t)(m->tokens ? m->tokens->n_ids : m->text.len);
    document.skipped = !strcmp(m->id, "known.txt");
    document.bytes_raw = 100;
    document.bytes_stored = 50;
    reply.documents = documents;
    reply.n_documents = 1;
    fake_reply(d, SAMKV_TYPE_INGEST, request->frame.request_id, &reply.base);
    samkv__ingest_request__free_unpacked(m, NULL);
}

static void acknowledge_all(struct fake_daemon *d)
{
    struct fake_request request;
    fake_greet(d);
    while (fake_receive(d, &request)) {
        acknowledge(d, &request);
        free(request.payload);
    }
    free(request.payload);
}

/* Takes five documents, then answers them from the last to the first. */
static void acknowledge_backwards(struct fake_daemon *d)
{
    struct fake_request requests[5];
    fake_greet(d);
    for (int i = 0; i < 5; i++)
        ck_assert(fake_receive(d, &requests[i]));
    for (int i = 4; i >= 0; i--) {
        acknowledge(d, &requests[i]);
        free(requests[i].payload);
    }
    fake_await(d);
}

static void make_corpus(void)
{
    char path[160];
    snprintf(path, sizeof path, "%s/d", directory);
    ck_assert_int_eq(mkdir(path, 0700), 0);
    strcat(path, "/sub");
    ck_assert_int_eq(mkdir(path, 0700), 0);
    strcat(path, "/.git");
    ck_assert_int_eq(mkdir(path, 0700), 0);
    write_file("d/b.txt",
               "\xef\xbb\xbf"
               "bee",
               6); /* the mark is no part of the text */
    write_file("d/known.txt", "known", 5);
    write_file("d/sub/a.txt", "\xc3\xa4", 2);
    write_file("d/sub/.git/config", "no document", 11);
    write_file("d/.hidden", "no document", 11);
    write_file("d/binary", "a\0b", 3);
    write_file("d/latin1", "\xe4", 1);
    write_file("d/empty", "", 0);
    static const char lines[] = "{\"id\": \"one\", \"text\": \"1\"}\n"
                                "\n"
                                "{\"id\": \"broken\n"
                                "{\"id\": 2, \"tokens\": [1, 2, 3], \"title\": \"Two\"}\r\n"
                                "{\"id\": \"x\"}\n"
                                "{\"id\": \"x\", \"tokens\": [-1]}\n"
                                "[]\n"
                                "{\"id\": \"nul\\u0000\", \"text\": \"x\"}"; /* no newline at the end */
    write_file("d/z.jsonl", lines, sizeof lines - 1);
}

START_TEST(ingest_of_a_directory)
{
    struct host host;
    make_corpus();
    host_start(&host, acknowledge_backwards, NULL);
    struct run run = run_tool("ingest d --json");
    host_end(&host);
    ck_assert_int_eq(run.code, 1); /* lines are broken */
    ASSERT_HAS(run.out, "\"ids\": [\"b.txt\", \"known.txt\", \"sub/a.txt\", \"one\", \"2\"]");
    ASSERT_HAS(run.out, "\"ingested\": 4, \"skipped\": 1, \"failed\": 5, \"ignored\": 3, \"tokens\": 9,");
    ASSERT_HAS(run.out, "\"bytes_raw\": 400, \"bytes_stored\": 200,");
    ASSERT_HAS(run.err, "d/z.jsonl:3: broken JSON");
    ASSERT_HAS(run.err, "d/z.jsonl:5: the document must have one of");
    ASSERT_HAS(run.err, "d/z.jsonl:6: \"tokens\"[0]");
    ASSERT_HAS(run.err, "d/z.jsonl:7: a line must be an object");
    ASSERT_HAS(run.err, "d/z.jsonl:8: \"id\" holds a NUL");
    ASSERT_HAS(run.err, "d/binary: not a text");
    ASSERT_HAS(run.err, "d/latin1: not a text in UTF-8");
    ASSERT_LINES(run.err, 8);
}
END_TEST

/* What is named must be a document; what is only found need not. */
START_TEST(ingest_of_named_files)
{
    struct host host;
    make_corpus();
    host_start(&host, acknowledge_all, NULL);
    struct run run = run_tool("ingest --json d/binary d/sub/a.txt nowhere d/empty");
    host_end(&host);
    ck_assert_int_eq(run.code, 1);
    ASSERT_HAS(run.out, "\"ids\": [\"a.txt\"], \"ingested\": 1, \"skipped\": 0, \"failed\": 3, \"ignored\": 0,");
    ASSERT_HAS(run.err, "nowhere: cannot read: No such file");
}
END_TEST

START_TEST(ingest_from_standard_input)
{
    struct host host;
    static const char lines[] = "{\"id\":\"a\",\"text\":\"aa\"}\n{\"id\":\"b\",\"text\":\"b\"}\n";
    write_file("lines", lines, sizeof lines - 1);
    host_start(&host, acknowledge_all, NULL);
    struct run run = run_tool("ingest - <lines");
    host_end(&host);
    ck_assert_int_eq(run.code, 0);
    ASSERT_HAS(run.out, "2 ingested: 3 tokens");
    ck_assert_str_eq(run.err, "");
}
END_TEST

static void be_busy_first(struct fake_daemon *d)
{
    struct fake_request request;
    fake_greet(d);
    for (int i = 0; fake_receive(d, &request); i++) {
        if (i < 3)
            fake_error(d, SAMKV_TYPE_INGEST, request.frame.request_id, SAMKV_BUSY, "try again");
        else
            acknowledge(d, &request);
        free(request.payload);
    }
    free(request.payload);
}

START_TEST(ingest_tries_again_when_busy)
{
    struct host host;
    write_file("a", "a", 1);
    write_file("b", "b", 1);
    host_start(&host, be_busy_first, NULL);
    struct run run = run_tool("ingest a b --json");
    host_end(&host);
    ck_assert_int_eq(run.code, 0);
    ASSERT_HAS(run.out, "\"ids\": [\"a\", \"b\"], \"ingested\": 2, \"skipped\": 0, \"failed\": 0,");
}
END_TEST

static void write_many_lines(int count)
{
    char text[16384];
    size_t at = 0;
    for (int i = 0; i < count; i++)
        at += (size_t)snprintf(text + at, sizeof text - at, "{\"id\":\"%d\",\"text\":\"x\"}\n", i);
    write_file("many.jsonl", text, at);
}

static void die_after_three(struct fake_daemon *d)
{
    struct fake_request request;
    fake_greet(d);
    for (int i = 0; i < 3 && fake_receive(d, &request); i++) {
        acknowledge(d, &request);
        free(request.payload);
    }
}

START_TEST(daemon_dies_during_ingest)
{
    struct host host;
    write_many_lines(100);
    host_start(&host, die_after_three, NULL);
    struct run run = run_tool("ingest many.jsonl --json");
    host_end(&host);
    ck_assert_int_eq(run.code, 3);
    ASSERT_LINES(run.err, 1);
    ASSERT_HAS(run.err, "3 documents are safely stored");
    ASSERT_HAS(run.out, "\"ids\": [\"0\", \"1\", \"2\"], \"ingested\": 3,");
}
END_TEST

static void mismatch(struct fake_daemon *d)
{
    struct fake_request request;
    fake_greet(d);
    while (fake_receive(d, &request)) {
        fake_error(d, SAMKV_TYPE_INGEST, request.frame.request_id, SAMKV_MISMATCH, "block size 8, not 16");
        free(request.payload);
    }
    free(request.payload);
}

START_TEST(hopeless_ingest_stops)
{
    struct host host;
    write_many_lines(100);
    host_start(&host, mismatch, NULL);
    struct run run = run_tool("ingest many.jsonl");
    host_end(&host);
    ck_assert_int_eq(run.code, 1);
    ASSERT_HAS(run.err, "many.jsonl:1: block size 8, not 16");
    ASSERT_HAS(run.err, "the rest was not sent");
    ck_assert_int_lt(count_lines(run.err), IN_FLIGHT + 12);
}
END_TEST

/* Interrupts the tool once its documents are in flight, then answers them. */
static void interrupt_then_acknowledge(struct fake_daemon *d)
{
    struct fake_request requests[IN_FLIGHT], more;
    fake_greet(d);
    for (int i = 0; i < IN_FLIGHT; i++)
        ck_assert(fake_receive(d, &requests[i]));
    /* A signal is taken before anything that is sent after it. */
    const volatile pid_t *pid = d->arg;
    while (!*pid)
        usleep(1000);
    kill(*pid, SIGINT);
    for (int i = 0; i < IN_FLIGHT; i++) {
        acknowledge(d, &requests[i]);
        free(requests[i].payload);
    }
    ck_assert(!fake_receive(d, &more)); /* it sends no more, and leaves */
    free(more.payload);
}

START_TEST(interrupt_keeps_what_is_finished)
{
    struct host host;
    static volatile pid_t pid;
    write_many_lines(100);
    pid = 0;
    host_start(&host, interrupt_then_acknowledge, (const void *)&pid);
    pid = start("ingest many.jsonl --json");
    struct run run = finish(pid);
    host_end(&host);
    ck_assert_int_eq(run.code, 1);
    ASSERT_HAS(run.err, "interrupted");
    ASSERT_HAS(run.out, "\"ingested\": 8, \"skipped\": 0, \"failed\": 0,");
    ASSERT_HAS(run.out, "\"interrupted\": true");
}
END_TEST

int main(void)
{
    TCase *input = tcase_create("input"), *daemon = tcase_create("daemon");
    tcase_add_test(input, ingest_of_a_directory);
    tcase_add_test(input, ingest_of_named_files);
    tcase_add_test(input, ingest_from_standard_input);
    tcase_add_test(daemon, ingest_tries_again_when_busy);
    tcase_add_test(daemon, daemon_dies_during_ingest);
    tcase_add_test(daemon, hopeless_ingest_stops);
    tcase_add_test(daemon, interrupt_keeps_what_is_finished);
    TCase *const all[] = {input, daemon};
    return run_cases("samkvctl_ingest", all, sizeof all / sizeof *all);
}
