/* samkvctl as a person runs it: mistakes, and commands against a daemon that is scripted. */
#include "tests/unit/ctl_host.h"

/* ------------------------------------------------------------------ usage */

static const struct {
    const char *arguments, *says;
} mistakes[] = {
    {"fech", "did you mean fetch?"},
    {"ping --cuont 3", "did you mean --count?"},
    {"ping --count 0", "from 1 to"},
    {"ping --count 3x", "not a whole number"},
    {"ping --count", "needs a value"},
    {"ping now", "too many arguments"},
    {"fetch --docs a --query q --ratio nan", "not a number"},
    {"fetch --docs a --query q --ratio 0.5x", "not a number"},
    {"fetch --docs a --query q --ratio 0", "above 0"},
    {"fetch --docs a --query q --ratio 2", "from 0 to 1"},
    {"fetch --docs a --query q --update soft", "overwrite, cosine"},
    {"fetch --docs a --query q --update 1.5", "overwrite, cosine"},
    {"fetch --docs a --query q --selection some", "dynamic, fixed"},
    {"fetch --docs a --query q --stable-layers 1,-1", "from 0"},
    {"fetch --docs a, --query q", "empty"},
    {"fetch --docs a --query-tokens 1,2147483648", "to 2147483647"},
    {"fetch --docs a --query-tokens 1 --query q", "one of --query"},
    {"fetch --docs a", "one of --query"},
    {"fetch --query q", "--docs"},
    {"fetch --docs a --query q --placement gpu", "host, device"},
    {"ask --docs a", "missing arguments"},
    {"ingest", "missing arguments"},
    {"ingest --preamble a --preamble-tokens 1 .", "one of --preamble"},
    {"ls --json=yes", "takes no value"},
};

START_TEST(mistake_is_told_in_one_line)
{
    struct run run = run_tool(mistakes[_i].arguments);
    ck_assert_int_eq(run.code, 2);
    ASSERT_HAS(run.err, mistakes[_i].says);
    ASSERT_LINES(run.err, 1);
    ck_assert_str_eq(run.out, "");
}
END_TEST

START_TEST(help_is_no_mistake)
{
    static const char *const ways[] = {"help", "--help", "help ingest", "ingest --help", "--version"};
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        struct run run = run_tool(ways[i]);
        ck_assert_int_eq(run.code, 0);
        ASSERT_HAS(run.out, "samkvctl");
        ck_assert_str_eq(run.err, "");
    }
}
END_TEST

START_TEST(no_daemon)
{
    struct run run = run_tool("ping");
    ck_assert_int_eq(run.code, 3);
    ASSERT_LINES(run.err, 1);
    ASSERT_HAS(run.err, socket_path);
}
END_TEST

/* ------------------------------------------------------------------ the other commands */

static void answer_a_question(struct fake_daemon *d)
{
    Samkv__AskReply piece = SAMKV__ASK_REPLY__INIT, last = SAMKV__ASK_REPLY__INIT;
    fake_greet(d);
    uint64_t id = fake_await(d);
    piece.text.data = (uint8_t *)"Alan \xc3\x9c";
    piece.text.len = 7;
    fake_send(d, SAMKV_TYPE_ASK, SAMKV_FLAG_REPLY | SAMKV_FLAG_MORE, id, &piece.base, -1);
    last.answer_tokens = 2;
    last.total_ms = 1.5;
    fake_reply(d, SAMKV_TYPE_ASK, id, &last.base);
    fake_await(d);
}

START_TEST(ask)
{
    struct host host;
    host_start(&host, answer_a_question, NULL);
    struct run run = run_tool("ask --docs a 'Who?' --method full --stats");
    host_end(&host);
    ck_assert_int_eq(run.code, 0);
    ck_assert_str_eq(run.out, "Alan \xc3\x9c\n");
    ASSERT_HAS(run.err, "full: first token");
    host_start(&host, answer_a_question, NULL);
    run = run_tool("ask --docs a 'Who?' --method full --json");
    host_end(&host);
    ASSERT_HAS(run.out, "{\"answer\": \"Alan \xc3\x9c\", \"method\": \"full\", \"answer_tokens\": 2,");
}
END_TEST

static void list_two_pages(struct fake_daemon *d)
{
    static const char *const ids[] = {"a", "b"};
    fake_greet(d);
    for (int i = 0; i < 2; i++) {
        struct fake_request request;
        ck_assert(fake_receive(d, &request));
        Samkv__ListRequest *m = samkv__list_request__unpack(NULL, request.frame.payload_bytes, request.payload);
        ck_assert_str_eq(m->after, i ? "a" : "");
        samkv__list_request__free_unpacked(m, NULL);
        free(request.payload);
        Samkv__Document document = SAMKV__DOCUMENT__INIT, *documents[] = {&document};
        Samkv__ListReply reply = SAMKV__LIST_REPLY__INIT;
        document.id = (char *)ids[i];
        document.title = (char *)"\x1b[31m"; /* nothing that a terminal would obey may get through */
        reply.documents = documents;
        reply.n_documents = 1;
        reply.more = !i;
        fake_reply(d, SAMKV_TYPE_LIST, request.frame.request_id, &reply.base);
    }
    fake_await(d);
}

START_TEST(ls_turns_pages)
{
    struct host host;
    host_start(&host, list_two_pages, NULL);
    struct run run = run_tool("ls");
    host_end(&host);
    ck_assert_int_eq(run.code, 0);
    ck_assert_str_eq(run.out, "a\t0\t0\t0\t?\t?[31m\nb\t0\t0\t0\t?\t?[31m\n");
}
END_TEST

static void find_damage(struct fake_daemon *d)
{
    char *ids[] = {(char *)"default/a"};
    Samkv__VerifyReply reply = SAMKV__VERIFY_REPLY__INIT;
    fake_greet(d);
    reply.damaged = 1;
    reply.damaged_ids = ids;
    reply.n_damaged_ids = 1;
    fake_reply(d, SAMKV_TYPE_VERIFY, fake_await(d), &reply.base);
    fake_await(d);
}

START_TEST(verify_fails_on_damage)
{
    struct host host;
    host_start(&host, find_damage, NULL);
    struct run run = run_tool("verify --json");
    host_end(&host);
    ck_assert_int_eq(run.code, 1);
    ASSERT_HAS(run.out, "\"damaged\": 1, \"repaired\": 0, \"damaged_ids\": [\"default/a\"]");
    ASSERT_HAS(run.err, "--repair");
}
END_TEST

int main(void)
{
    TCase *usage = tcase_create("usage"), *commands = tcase_create("commands");
    tcase_add_loop_test(usage, mistake_is_told_in_one_line, 0, sizeof mistakes / sizeof *mistakes);
    tcase_add_test(usage, help_is_no_mistake);
    tcase_add_test(usage, no_daemon);
    tcase_add_test(commands, ask);
    tcase_add_test(commands, ls_turns_pages);
    tcase_add_test(commands, verify_fails_on_damage);
    TCase *const all[] = {usage, commands};
    return run_cases("samkvctl", all, sizeof all / sizeof *all);
}
