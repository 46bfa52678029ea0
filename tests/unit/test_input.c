#include <stdlib.h>

#include "daemon/net/input.h"
#include "tests/unit/frame_fixture.h"

START_TEST(bytes_may_come_in_any_pieces)
{
    for (size_t piece = 1; piece < 40; piece++) {
        struct samkv_budget budget = {.limit = 1u << 20};
        struct samkv_input in;
        uint8_t bytes[400], text[100];
        memset(text, 'x', sizeof text);
        size_t count = make_frame(bytes, SAMKV_TYPE_HELLO, 0, 1, "h", 1), frames = 0;
        count += make_frame(bytes + count, SAMKV_TYPE_PING, 0, 2, NULL, 0);
        count += make_frame(bytes + count, SAMKV_TYPE_INGEST, 0, 3, text, 99);
        count += make_frame(bytes + count, SAMKV_TYPE_LIST, 0, 4, text, 1);
        const uint32_t sizes[] = {1, 0, 99, 1};
        samkv_input_init(&in, &budget, SAMKV_MAX_FRAME_BYTES);
        for (size_t at = 0; at < count;) {
            struct samkv_frame frame;
            struct samkv_buffer payload;
            size_t used, n = count - at < piece ? count - at : piece;
            enum samkv_input_event event = samkv_input_feed(&in, bytes + at, n, &used, &frame, &payload, NULL);
            at += used;
            if (event == SAMKV_INPUT_MORE) {
                ck_assert_uint_eq(used, n);
                continue;
            }
            ck_assert_int_eq(event, SAMKV_INPUT_FRAME);
            ck_assert_uint_eq(frame.request_id, ++frames);
            ck_assert_uint_eq(payload.count, sizes[frames - 1]);
            samkv_budget_give(&budget, payload.capacity);
            samkv_buffer_deinit(&payload);
            in.greeted = true;
        }
        ck_assert_uint_eq(frames, 4);
        ck_assert(!samkv_input_midway(&in));
        samkv_input_deinit(&in);
        ck_assert_uint_eq(budget.used, 0);
    }
}
END_TEST

/* One header, then bytes of payload; what the parser says to the last of them. */
static enum samkv_input_event feed_claim(struct samkv_input *in, uint32_t claimed, size_t sent, struct samkv_error *err)
{
    uint8_t header[SAMKV_FRAME_HEADER_BYTES], *zeros = calloc(1, sent + 1);
    struct samkv_frame frame;
    struct samkv_buffer payload = {0};
    size_t used;
    const struct samkv_frame claim = {claimed, SAMKV_TYPE_INGEST, 0, 9};
    samkv_frame_encode(&claim, header);
    enum samkv_input_event event = samkv_input_feed(in, header, sizeof header, &used, &frame, &payload, err);
    if (event == SAMKV_INPUT_MORE && sent)
        event = samkv_input_feed(in, zeros, sent, &used, &frame, &payload, err);
    samkv_budget_give(in->budget, payload.capacity);
    samkv_buffer_deinit(&payload);
    free(zeros);
    return event;
}

START_TEST(a_claim_takes_no_memory)
{
    struct samkv_budget budget = {.limit = 1u << 30};
    struct samkv_input in;
    samkv_input_init(&in, &budget, SAMKV_MAX_FRAME_BYTES);
    in.greeted = true;
    ck_assert_int_eq(feed_claim(&in, SAMKV_MAX_FRAME_BYTES, 0, NULL), SAMKV_INPUT_MORE);
    ck_assert_uint_eq(in.payload.capacity, 0);
    samkv_input_deinit(&in);
    samkv_input_init(&in, &budget, SAMKV_MAX_FRAME_BYTES);
    in.greeted = true;
    ck_assert_int_eq(feed_claim(&in, SAMKV_MAX_FRAME_BYTES, 10001, NULL), SAMKV_INPUT_MORE);
    ck_assert_uint_le(in.payload.capacity, 2 * 10001);
    ck_assert_uint_eq(budget.used, in.payload.capacity);
    samkv_input_deinit(&in);
    ck_assert_uint_eq(budget.used, 0);
}
END_TEST

/* Feeds all; returns the events other than MORE as letters. */
static void feed_all(struct samkv_input *in, const uint8_t *bytes, size_t count, char *events)
{
    while (count) {
        struct samkv_frame frame;
        struct samkv_buffer payload;
        struct samkv_error err;
        size_t used;
        enum samkv_input_event event = samkv_input_feed(in, bytes, count, &used, &frame, &payload, &err);
        bytes += used;
        count -= used;
        if (event == SAMKV_INPUT_FRAME) {
            samkv_budget_give(in->budget, payload.capacity);
            samkv_buffer_deinit(&payload);
        }
        if (event != SAMKV_INPUT_MORE)
            *events++ = " FR!"[event];
        *events = 0;
        if (event == SAMKV_INPUT_BROKEN)
            return;
    }
}

START_TEST(too_large_is_dropped_and_the_stream_goes_on)
{
    struct samkv_budget budget = {.limit = 1u << 30};
    struct samkv_input in;
    char events[8];
    size_t large = (size_t)SAMKV_MAX_FRAME_BYTES + 1, total = large + 2 * SAMKV_FRAME_HEADER_BYTES;
    uint8_t *bytes = calloc(1, total);
    const struct samkv_frame claim = {(uint32_t)large, SAMKV_TYPE_INGEST, 0, 7};
    samkv_frame_encode(&claim, bytes);
    make_frame(bytes + SAMKV_FRAME_HEADER_BYTES + large, SAMKV_TYPE_PING, 0, 8, NULL, 0);
    samkv_input_init(&in, &budget, SAMKV_MAX_FRAME_BYTES);
    in.greeted = true;
    feed_all(&in, bytes, total, events);
    ck_assert_str_eq(events, "RF");
    ck_assert_uint_eq(budget.used, 0);
    samkv_input_deinit(&in);
    free(bytes);
}
END_TEST

START_TEST(without_budget_a_request_is_busy_and_dropped)
{
    struct samkv_budget budget = {.used = 0, .limit = 10000};
    struct samkv_input in;
    struct samkv_error err;
    char events[8];
    uint8_t rest[20000 - 12000 + SAMKV_FRAME_HEADER_BYTES] = {0};
    samkv_input_init(&in, &budget, SAMKV_MAX_FRAME_BYTES);
    in.greeted = true;
    ck_assert_int_eq(feed_claim(&in, 20000, 12000, &err), SAMKV_INPUT_REFUSED);
    ck_assert_int_eq(err.status, SAMKV_BUSY);
    ck_assert_uint_eq(budget.used, 0);
    ck_assert(samkv_input_midway(&in));
    /* feed_claim's bytes after the refusal were not taken: the whole payload is still to come */
    uint8_t *payload = calloc(1, 20000);
    feed_all(&in, payload, 20000, events);
    ck_assert_str_eq(events, "");
    ck_assert(!samkv_input_midway(&in));
    feed_all(&in, rest, make_frame(rest, SAMKV_TYPE_PING, 0, 8, NULL, 0), events);
    ck_assert_str_eq(events, "F");
    free(payload);
    samkv_input_deinit(&in);
}
END_TEST

START_TEST(unknown_or_wrong_flags_break_it)
{
    const uint16_t flags[] = {SAMKV_FLAG_REPLY, SAMKV_FLAG_ERROR, SAMKV_FLAG_MORE, SAMKV_FLAG_FD, 16, 0x8000, 0xffff};
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
        struct samkv_budget budget = {.limit = 1000};
        struct samkv_input in;
        char events[8];
        uint8_t bytes[20];
        samkv_input_init(&in, &budget, SAMKV_MAX_FRAME_BYTES);
        in.greeted = true;
        feed_all(&in, bytes, make_frame(bytes, SAMKV_TYPE_PING, flags[i], 1, NULL, 0), events);
        ck_assert_str_eq(events, "!");
        samkv_input_deinit(&in);
    }
}
END_TEST

/* ------------------------------------------------------------------ messages */

START_TEST(a_message_of_many_parts_does_not_explode)
{
    struct samkv_buffer payload = {0};
    struct samkv_unpacked unpacked;
    struct samkv_error err;
    ck_assert_int_eq(samkv_buffer_resize(&payload, 2000000), SAMKV_OK);
    for (payload.count = 0; payload.count < 2000000; payload.count += 2) /* ids = "" */
        memcpy(payload.data + payload.count, "\x12\x00", 2);
    ck_assert_int_eq(samkv_message_unpack(&samkv__fetch_request__descriptor, &payload, &unpacked, &err),
                     SAMKV_TOO_LARGE);
    payload.count = 2 * 10000;
    ck_assert_int_eq(samkv_message_unpack(&samkv__fetch_request__descriptor, &payload, &unpacked, &err), SAMKV_OK);
    ck_assert_uint_eq(((Samkv__FetchRequest *)unpacked.message)->n_ids, 10000);
    samkv_message_free(&unpacked);
    payload.data[2 * 10000 - 1] = 0x7f; /* a string longer than the message */
    ck_assert_int_eq(samkv_message_unpack(&samkv__fetch_request__descriptor, &payload, &unpacked, &err), SAMKV_INVALID);
    samkv_buffer_deinit(&payload);
}
END_TEST

/* A query as large as a frame may be still fits: token ids take one byte there and four here. */
START_TEST(long_token_lists_are_unpacked)
{
    struct samkv_buffer payload = {0};
    struct samkv_unpacked unpacked;
    struct samkv_error err;
    const size_t tokens = 3000000;
    uint8_t head[] = {0x22, 0, 0, 0, 0, 0x0a, 0, 0, 0, 0}; /* query_tokens { ids: packed } */
    for (size_t i = 0, inner = tokens, outer = tokens + 5; i < 4; i++, inner >>= 7, outer >>= 7) {
        head[1 + i] = (uint8_t)((outer & 0x7f) | (i < 3 ? 0x80 : 0));
        head[6 + i] = (uint8_t)((inner & 0x7f) | (i < 3 ? 0x80 : 0));
    }
    ck_assert_int_eq(samkv_buffer_append(&payload, head, sizeof head), SAMKV_OK);
    ck_assert_int_eq(samkv_buffer_resize(&payload, payload.count + tokens), SAMKV_OK);
    memset(payload.data + payload.count, 5, tokens);
    payload.count += tokens;
    ck_assert_int_eq(samkv_message_unpack(&samkv__fetch_request__descriptor, &payload, &unpacked, &err), SAMKV_OK);
    ck_assert_uint_eq(((Samkv__FetchRequest *)unpacked.message)->query_tokens->n_ids, tokens);
    samkv_message_free(&unpacked);
    samkv_buffer_deinit(&payload);
}
END_TEST

/* Unpacked texts end at their first NUL: "a\0b" must not pass for the document "a". */
START_TEST(a_nul_in_a_text_is_seen)
{
    static const uint8_t id[] = {0x12, 3, 'a', 0, 'b'}, nested[] = {0x08, 1, 0x32, 4, 0x0a, 2, 'm', 0},
                         text[] = {0x12, 1, 'a', 0x22, 2, 0, 0}, cut[] = {0x12, 3, 'a'}, good[] = {0x12, 1, 'a'};
    const struct {
        const ProtobufCMessageDescriptor *descriptor;
        const uint8_t *bytes;
        size_t count;
        enum samkv_status status;
    } cases[] = {
        {&samkv__fetch_request__descriptor, id, sizeof id, SAMKV_INVALID},
        {&samkv__ingest_request__descriptor, nested, sizeof nested, SAMKV_INVALID}, /* spec.model */
        {&samkv__ingest_request__descriptor, text, sizeof text, SAMKV_OK},          /* a document's bytes may be any */
        {&samkv__fetch_request__descriptor, cut, sizeof cut, SAMKV_INVALID},
        {&samkv__fetch_request__descriptor, good, sizeof good, SAMKV_OK},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct samkv_buffer payload = {(uint8_t *)cases[i].bytes, cases[i].count, cases[i].count};
        struct samkv_unpacked unpacked = {0};
        ck_assert_int_eq(samkv_message_unpack(cases[i].descriptor, &payload, &unpacked, NULL), cases[i].status);
        samkv_message_free(&unpacked);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("input");
    TCase *tc = tcase_create("input");
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, bytes_may_come_in_any_pieces);
    tcase_add_test(tc, a_claim_takes_no_memory);
    tcase_add_test(tc, too_large_is_dropped_and_the_stream_goes_on);
    tcase_add_test(tc, without_budget_a_request_is_busy_and_dropped);
    tcase_add_test(tc, unknown_or_wrong_flags_break_it);
    tcase_add_test(tc, a_message_of_many_parts_does_not_explode);
    tcase_add_test(tc, long_token_lists_are_unpacked);
    tcase_add_test(tc, a_nul_in_a_text_is_seen);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
