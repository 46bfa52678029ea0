/* Caches as llama.cpp's sequence states: every byte by a reader of the test's own, and layouts from hostile bytes. */
#include <math.h>

#include "samkv/samkv_llama.h"
#include "tests/unit/fake_daemon.h"

enum { LAYERS = 2, ROWS = 3, HEADS = 3, DIM = 6, WIDTH = HEADS * DIM, MAGIC_BYTES = 4 };

struct columns {
    int32_t tokens[ROWS], doc[ROWS], index[ROWS], position[ROWS];
};

static const struct columns good = {
    .tokens = {11, 12, 13}, .doc = {-1, 0, 0}, .index = {0, 4, 5}, .position = {0, 5, 60}};

/* What the daemon of one test answers. */
struct script {
    enum samkv_dtype dtype;
    struct columns columns;
    uint32_t next_position;
};

/* Exact in bf16: eight bits of mantissa. */
static float value(int l, int v, int r, int i)
{
    return (float)((v ? -1 : 1) * (1 + l * 64 + r * 20 + i)) / 4.0f;
}

static int make_memfd(const struct script *script, size_t *bytes)
{
    uint8_t memory[2 * LAYERS * ROWS * WIDTH * sizeof(float) + sizeof(struct columns)], *at = memory;
    for (int n = 0; n < 2 * LAYERS; n++)
        for (int r = 0; r < ROWS; r++)
            for (int i = 0; i < WIDTH; i++) {
                float f = value(n % LAYERS, n / LAYERS, r, i);
                uint16_t half = script->dtype == SAMKV_F16 ? samkv_f32_to_f16(f) : samkv_f32_to_bf16(f);
                if (script->dtype == SAMKV_F32)
                    memcpy(at, &f, sizeof f);
                else
                    memcpy(at, &half, sizeof half);
                at += samkv_dtype_bytes(script->dtype);
            }
    memcpy(at, &script->columns, sizeof script->columns);
    *bytes = (size_t)(at - memory) + sizeof script->columns;
    int fd = memfd_create("fake", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    ck_assert_int_eq(write(fd, memory, *bytes), (ssize_t)*bytes);
    ck_assert_int_eq(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL), 0);
    return fd;
}

static void serve(struct fake_daemon *d)
{
    const struct script *script = d->arg;
    Samkv__FetchReply m = SAMKV__FETCH_REPLY__INIT;
    size_t bytes, layer_bytes = ROWS * WIDTH * samkv_dtype_bytes(script->dtype);
    int fd = make_memfd(script, &bytes);
    m.memory_bytes = bytes, m.dtype = script->dtype;
    m.layers = LAYERS, m.rows = ROWS, m.kv_heads = HEADS, m.head_dim = DIM;
    m.layer_stride = layer_bytes, m.v_offset = LAYERS * layer_bytes;
    m.tokens_offset = 2 * LAYERS * layer_bytes + offsetof(struct columns, tokens);
    m.doc_offset = 2 * LAYERS * layer_bytes + offsetof(struct columns, doc);
    m.index_offset = 2 * LAYERS * layer_bytes + offsetof(struct columns, index);
    m.position_offset = 2 * LAYERS * layer_bytes + offsetof(struct columns, position);
    m.next_position = script->next_position;
    m.backend = (char *)"cpu";
    fake_greet(d);
    uint64_t id = fake_await(d);
    fake_send(d, SAMKV_TYPE_FETCH, SAMKV_FLAG_REPLY | SAMKV_FLAG_FD, id, &m.base, fd);
    close(fd);
}

static struct samkv_cache *fetch(const struct script *script)
{
    static const char *const ids[] = {"a"};
    struct fake_daemon d = {.arg = script};
    struct samkv_cache *cache;
    struct samkv_error err = {.text = ""};
    struct samkv_fetch_options options;
    samkv_fetch_options_init(&options);
    options.ids = ids, options.id_count = 1, options.query = "q", options.query_bytes = 1;
    struct samkv_client *client = fake_connect(&d, serve);
    enum samkv_status status = samkv_client_fetch(client, &options, &cache, &err);
    ck_assert_msg(!status, "%s", err.text);
    fake_end(&d, client);
    return cache;
}

static struct samkv_cache *fetch_good(enum samkv_dtype dtype)
{
    return fetch(&(struct script){.dtype = dtype, .columns = good, .next_position = 61});
}

/* ------------------------------------------------------------------ a reader of its own */

static const uint8_t *at;

static uint64_t number(size_t bytes)
{
    uint64_t out = 0;
    for (size_t i = 0; i < bytes; i++)
        out |= (uint64_t)*at++ << 8 * i;
    return out;
}

static float element(int32_t type)
{
    if (type == SAMKV_LLAMA_F32) {
        uint32_t bits = (uint32_t)number(4);
        float f;
        memcpy(&f, &bits, sizeof f);
        return f;
    }
    uint16_t half = (uint16_t)number(2);
    return type == SAMKV_LLAMA_F16 ? samkv_f16_to_f32(half) : samkv_bf16_to_f32(half);
}

static size_t element_bytes(int32_t type)
{
    return type == SAMKV_LLAMA_F32 ? 4 : 2;
}

/* Which of Hugging Face's elements of a row stands at place i. */
static int source_of(int i, int rope_type)
{
    int head = i / DIM, e = i % DIM;
    return rope_type == SAMKV_LLAMA_ROPE_NEOX ? i : head * DIM + (e % 2 ? DIM / 2 : 0) + e / 2;
}

static void check_k(const struct samkv_llama_layout *layout)
{
    for (int l = 0; l < LAYERS; l++) {
        ck_assert_int_eq((int32_t)number(4), layout->k_type);
        ck_assert_uint_eq(number(8), WIDTH * element_bytes(layout->k_type));
        for (int r = 0; r < ROWS; r++)
            for (int i = 0; i < WIDTH; i++)
                ck_assert_float_eq(element(layout->k_type), value(l, 0, r, source_of(i, layout->rope_type)));
    }
}

static void check_v(const struct samkv_llama_layout *layout)
{
    for (int l = 0; l < LAYERS; l++) {
        ck_assert_int_eq((int32_t)number(4), layout->v_type);
        if (!layout->v_transposed) {
            ck_assert_uint_eq(number(8), WIDTH * element_bytes(layout->v_type));
            for (int r = 0; r < ROWS; r++)
                for (int i = 0; i < WIDTH; i++)
                    ck_assert_float_eq(element(layout->v_type), value(l, 1, r, i));
            continue;
        }
        ck_assert_uint_eq(number(4), element_bytes(layout->v_type));
        ck_assert_uint_eq(number(4), WIDTH);
        for (int i = 0; i < WIDTH; i++)
            for (int r = 0; r < ROWS; r++)
                ck_assert_float_eq(element(layout->v_type), value(l, 1, r, i));
    }
}

static void check_state(const uint8_t *state, size_t bytes, const struct samkv_llama_layout *layout, int32_t sequence)
{
    at = state;
    ck_assert_uint_eq(number(4), 0xaf143cd8);
    ck_assert_int_eq((int32_t)number(4), sequence);
    ck_assert_uint_eq(number(4), layout->streams);
    ck_assert_uint_eq(number(4), ROWS);
    for (int r = 0; r < ROWS; r++) {
        ck_assert_int_eq((int32_t)number(4), good.position[r]);
        ck_assert_uint_eq(number(4), 1);
        ck_assert_int_eq((int32_t)number(4), sequence);
    }
    ck_assert_uint_eq(number(4), layout->v_transposed);
    ck_assert_uint_eq(number(4), LAYERS);
    check_k(layout);
    check_v(layout);
    for (uint32_t s = 1; s < layout->streams; s++)
        ck_assert_uint_eq(number(4), 0);
    ck_assert_ptr_eq(at, state + bytes);
}

/* ------------------------------------------------------------------ truth */

static const int32_t types[] = {SAMKV_LLAMA_F32, SAMKV_LLAMA_F16, SAMKV_LLAMA_BF16};

/* The caller frees. Exactly as many bytes, so that a sanitizer sees one too many. */
static uint8_t *write_state(const struct samkv_cache *cache, const struct samkv_llama_layout *layout, int32_t sequence,
                            size_t *bytes)
{
    struct samkv_error err = {.text = ""};
    ck_assert_msg(!samkv_llama_state_bytes(cache, layout, bytes, &err), "%s", err.text);
    uint8_t *state = malloc(*bytes);
    memset(state, 0xee, *bytes);
    ck_assert_msg(!samkv_llama_state_write(cache, layout, sequence, state, *bytes, &err), "%s", err.text);
    return state;
}

static void check_round_trip(const struct samkv_cache *cache, struct samkv_llama_layout layout)
{
    size_t bytes;
    struct samkv_llama_layout again;
    struct samkv_error err = {.text = ""};
    uint8_t *state = write_state(cache, &layout, 7, &bytes);
    check_state(state, bytes, &layout, 7);
    ck_assert_msg(!samkv_llama_layout_read(state, bytes, layout.rope_type, &again, &err), "%s", err.text);
    ck_assert_mem_eq(&again, &layout, sizeof layout);
    free(state);
}

START_TEST(every_layout_of_every_cache)
{
    static const enum samkv_dtype dtypes[] = {SAMKV_F32, SAMKV_F16, SAMKV_BF16};
    struct samkv_cache *cache = fetch_good(dtypes[_i]);
    for (int k = 0; k < 3; k++)
        for (int v = 0; v < 3; v++)
            for (int form = 0; form < 8; form++) {
                struct samkv_llama_layout layout;
                memset(&layout, 0, sizeof layout);
                layout.streams = form & 1 ? 3 : 1, layout.layers = LAYERS, layout.width = WIDTH;
                layout.k_type = types[k], layout.v_type = types[v], layout.v_transposed = form & 2;
                layout.rope_type = form & 4 ? SAMKV_LLAMA_ROPE_NEOX : SAMKV_LLAMA_ROPE_NORM;
                check_round_trip(cache, layout);
            }
    samkv_cache_free(cache);
}

/* ------------------------------------------------------------------ refusals */

static const struct samkv_llama_layout usual = {
    .streams = 1, .layers = LAYERS, .width = WIDTH, .k_type = SAMKV_LLAMA_F16, .v_type = SAMKV_LLAMA_F16};

static void refuse(const struct samkv_cache *cache, const struct samkv_llama_layout *layout, enum samkv_status status)
{
    size_t bytes = 1;
    uint8_t state[64];
    struct samkv_error err = {.text = ""};
    ck_assert_int_eq(samkv_llama_state_bytes(cache, layout, &bytes, &err), status);
    ck_assert_uint_eq(bytes, 0);
    ck_assert_uint_gt(strlen(err.text), 20);
    ck_assert_int_eq(samkv_llama_state_write(cache, layout, 0, state, sizeof state, NULL), status);
}

START_TEST(another_model_is_refused)
{
    struct samkv_cache *cache = fetch_good(SAMKV_F32);
    struct samkv_llama_layout layout = usual;
    layout.layers++;
    refuse(cache, &layout, SAMKV_MISMATCH);
    layout = usual, layout.width--;
    refuse(cache, &layout, SAMKV_MISMATCH);
    layout = usual, layout.k_type = 8;
    refuse(cache, &layout, SAMKV_INVALID);
    layout = usual, layout.streams = 0;
    refuse(cache, &layout, SAMKV_INVALID);
    samkv_cache_free(cache);
}

START_TEST(positions_that_llama_cannot_hold_are_refused)
{
    struct script script = {.columns = good, .next_position = 61};
    script.columns.position[1] = 60;
    struct samkv_cache *cache = fetch(&script);
    refuse(cache, &usual, SAMKV_PROTOCOL);
    samkv_cache_free(cache);
    script.columns.position[0] = -1, script.columns.position[1] = 5;
    cache = fetch(&script);
    refuse(cache, &usual, SAMKV_PROTOCOL);
    samkv_cache_free(cache);
    script.columns = good, script.next_position = 62; /* a gap in front of the query */
    cache = fetch(&script);
    refuse(cache, &usual, SAMKV_INVALID);
    samkv_cache_free(cache);
}

START_TEST(room_of_another_size_is_refused)
{
    size_t bytes;
    uint8_t state[4096];
    struct samkv_cache *cache = fetch_good(SAMKV_F32);
    ck_assert_int_eq(samkv_llama_state_bytes(cache, &usual, &bytes, NULL), SAMKV_OK);
    ck_assert_uint_lt(bytes, sizeof state);
    ck_assert_int_eq(samkv_llama_state_write(cache, &usual, 0, state, bytes - 1, NULL), SAMKV_INVALID);
    ck_assert_int_eq(samkv_llama_state_write(cache, &usual, 0, state, bytes + 1, NULL), SAMKV_INVALID);
    ck_assert_int_eq(samkv_llama_state_write(cache, &usual, -1, state, bytes, NULL), SAMKV_INVALID);
    samkv_cache_free(cache);
}

/* ------------------------------------------------------------------ hostile states */

static enum samkv_status read_layout(const uint8_t *state, size_t bytes)
{
    struct samkv_llama_layout layout;
    uint8_t *exact = malloc(bytes + !bytes);
    memcpy(exact, state, bytes);
    enum samkv_status status = samkv_llama_layout_read(exact, bytes, SAMKV_LLAMA_ROPE_NORM, &layout, NULL);
    free(exact);
    return status;
}

START_TEST(no_prefix_of_a_state_is_one)
{
    size_t bytes;
    struct samkv_llama_layout layout = usual;
    layout.v_transposed = _i & 1, layout.streams = 1 + (_i & 2);
    struct samkv_cache *cache = fetch_good(SAMKV_F32);
    uint8_t *state = write_state(cache, &layout, 0, &bytes);
    for (size_t n = 0; n < bytes; n++)
        ck_assert_int_eq(read_layout(state, n), SAMKV_UNSUPPORTED);
    state = realloc(state, bytes + 1);
    ck_assert_int_eq(read_layout(state, bytes + 1), SAMKV_UNSUPPORTED);
    free(state);
    samkv_cache_free(cache);
}

/* Every byte of what is no data, changed in every bit: read as something sound, or refused. */
START_TEST(changed_headers_do_no_harm)
{
    size_t bytes;
    int refused = 0;
    struct samkv_llama_layout layout = usual;
    layout.v_transposed = _i;
    struct samkv_cache *cache = fetch_good(SAMKV_F32);
    uint8_t *state = write_state(cache, &layout, 0, &bytes);
    for (size_t n = 0; n < bytes; n++)
        for (int bit = 0; bit < 8; bit++) {
            state[n] ^= (uint8_t)(1 << bit);
            refused += read_layout(state, bytes) != SAMKV_OK;
            state[n] ^= (uint8_t)(1 << bit);
        }
    ck_assert_int_gt(refused, 8 * (MAGIC_BYTES + 4 + 4 + 4 + 8));
    free(state);
    samkv_cache_free(cache);
}

START_TEST(what_is_unknown_is_named)
{
    struct samkv_llama_layout layout;
    struct samkv_error err;
    const uint8_t empty[16] = {0xd8, 0x3c, 0x14, 0xaf, 0, 0, 0, 0, 1};
    ck_assert_int_eq(samkv_llama_layout_read(empty, sizeof empty, SAMKV_LLAMA_ROPE_NORM, &layout, &err), SAMKV_INVALID);
    ck_assert_ptr_nonnull(strstr(err.text, "decode one token"));
    ck_assert_int_eq(samkv_llama_layout_read(empty, sizeof empty, 8, &layout, &err), SAMKV_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(err.text, "rope type is 8"));
    uint8_t old[16] = {1, 0, 0, 0}; /* no magic */
    ck_assert_int_eq(samkv_llama_layout_read(old, sizeof old, SAMKV_LLAMA_ROPE_NORM, &layout, &err), SAMKV_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(err.text, "form that is not known"));

    size_t bytes;
    struct samkv_cache *cache = fetch_good(SAMKV_F32);
    uint8_t *state = write_state(cache, &usual, 0, &bytes);
    state[12 + 4 + 12 * ROWS + 8] = 8; /* K as Q8_0 */
    ck_assert_int_eq(samkv_llama_layout_read(state, bytes, SAMKV_LLAMA_ROPE_NORM, &layout, &err), SAMKV_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(err.text, "ggml type 8"));
    free(state);
    samkv_cache_free(cache);
}

int main(void)
{
    Suite *suite = suite_create("llama_state");
    TCase *tcase = tcase_create("llama_state");
    tcase_add_loop_test(tcase, every_layout_of_every_cache, 0, 3);
    tcase_add_test(tcase, another_model_is_refused);
    tcase_add_test(tcase, positions_that_llama_cannot_hold_are_refused);
    tcase_add_test(tcase, room_of_another_size_is_refused);
    tcase_add_loop_test(tcase, no_prefix_of_a_state_is_one, 0, 4);
    tcase_add_loop_test(tcase, changed_headers_do_no_harm, 0, 2);
    tcase_add_test(tcase, what_is_unknown_is_named);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
