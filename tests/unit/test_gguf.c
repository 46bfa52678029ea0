/* GGUF: metadata and tensors of files made here, the configuration from them, and hostile bytes. */
#include <math.h>

#include "daemon/model/config.h"
#include "daemon/model/gguf.h"
#include "tests/unit/model_files.h"

static struct samkv_error why;

static struct samkv_gguf *open_good(const struct bytes *b)
{
    struct samkv_gguf *g;
    enum samkv_status status = samkv_gguf_from_bytes(b->data, b->count, &g, &why);
    ck_assert_msg(status == SAMKV_OK, "%s", why.text);
    return g;
}

static enum samkv_status open_status(const struct bytes *b)
{
    struct samkv_gguf *g;
    enum samkv_status status = samkv_gguf_from_bytes(b->data, b->count, &g, &why);
    samkv_gguf_close(g);
    return status;
}

/* Every value type, arrays of integers, floats and strings, three tensors. */
static struct bytes make_mixed(uint32_t version, uint32_t alignment)
{
    struct gguf_maker g = {.version = version, .alignment = alignment};
    static const uint64_t bits[] = {0xff, 0xff, 0xfffe, 0xfffe, 0xfffffffd, 0xfffffffd, 0, 1, 0, 0, ~1ull, ~1ull};
    static const uint8_t widths[] = {1, 1, 2, 2, 4, 4, 0, 1, 0, 0, 8, 8};
    for (uint32_t type = 0; type < 12; type++) {
        char key[16];
        snprintf(key, sizeof key, "v.%u", type);
        if (!widths[type])
            continue;
        gguf_key(&g, key, type);
        put_int(&g.pairs, bits[type], widths[type]);
    }
    gguf_f32(&g, "v.6", 2.5f);
    gguf_f32(&g, "v.whole", 8192);
    gguf_key(&g, "v.12", 12);
    put(&g.pairs, &(double){-0.125}, 8);
    gguf_string(&g, "v.8", "hello");
    gguf_key(&g, "a.i16", 9);
    put_int(&g.pairs, 3, 4);
    put_int(&g.pairs, 2, 8);
    put_int(&g.pairs, 0xffff, 2);
    put_int(&g.pairs, 7, 2);
    gguf_key(&g, "a.f32", 9);
    put_int(&g.pairs, 6, 4);
    put_int(&g.pairs, 1, 8);
    put(&g.pairs, &(float){0.5f}, 4);
    gguf_key(&g, "a.s", 9);
    put_int(&g.pairs, 8, 4);
    put_int(&g.pairs, 3, 8);
    put_string(&g.pairs, "x");
    put_string(&g.pairs, "");
    put_string(&g.pairs, "yz");
    if (alignment)
        gguf_u32(&g, "general.alignment", alignment);
    uint8_t q8[3 * 34];
    memset(q8, 1, sizeof q8);
    gguf_tensor(&g, "second", SAMKV_GGML_Q8_0, 32, 3, q8, sizeof q8);
    gguf_tensor(&g, "first", SAMKV_GGML_F32, 2, 0, (float[]){1, 2}, 8);
    gguf_tensor(&g, "other", 20 /* IQ4_NL */, 32, 1, q8, 18);
    return gguf_finish(&g);
}

static void check_mixed(const struct samkv_gguf *g)
{
    static const struct {
        const char *key;
        bool is_u64;
        uint64_t u64;
        double f64;
    } scalars[] = {
        {"v.0", true, 255, 255},
        {"v.1", false, 0, -1},
        {"v.2", true, 0xfffe, 0xfffe},
        {"v.3", false, 0, -2},
        {"v.4", true, 0xfffffffd, 0xfffffffd},
        {"v.5", false, 0, -3},
        {"v.6", false, 0, 2.5},
        {"v.7", true, 1, 1},
        {"v.10", true, ~1ull, 0x1p64},
        {"v.11", false, 0, -2},
        {"v.12", false, 0, -0.125},
        {"v.whole", true, 8192, 8192},
    };
    uint64_t u;
    double f;
    for (size_t i = 0; i < sizeof scalars / sizeof *scalars; i++) {
        ck_assert_msg(samkv_gguf_u64(g, scalars[i].key, &u) == scalars[i].is_u64, "%s", scalars[i].key);
        ck_assert(!scalars[i].is_u64 || u == scalars[i].u64);
        ck_assert_msg(samkv_gguf_f64(g, scalars[i].key, &f) && f == scalars[i].f64, "%s", scalars[i].key);
    }
    ck_assert(!samkv_gguf_u64(g, "v.8", &u) && !samkv_gguf_f64(g, "v.8", &f) && !samkv_gguf_u64(g, "v", &u));
    bool b;
    ck_assert(samkv_gguf_bool(g, "v.7", &b) && b && !samkv_gguf_bool(g, "v.0", &b));
    const char *s;
    size_t n;
    ck_assert(samkv_gguf_string(g, "v.8", &s, &n) && n == 5 && !memcmp(s, "hello", 5));
    ck_assert(!samkv_gguf_string(g, "v.0", &s, &n));
}

static void check_arrays(const struct samkv_gguf *g)
{
    struct samkv_gguf_array a;
    int64_t i;
    double f;
    const char *s;
    size_t n;
    ck_assert(!samkv_gguf_array(g, "v.0", &a));
    ck_assert(samkv_gguf_array(g, "a.i16", &a) && a.count == 2);
    ck_assert(!samkv_gguf_array_next_string(&a, &s, &n));
    ck_assert(samkv_gguf_array_next_i64(&a, &i) && i == -1);
    ck_assert(samkv_gguf_array_next_f64(&a, &f) && f == 7);
    ck_assert(!samkv_gguf_array_next_i64(&a, &i));
    ck_assert(samkv_gguf_array(g, "a.f32", &a) && !samkv_gguf_array_next_i64(&a, &i));
    ck_assert(samkv_gguf_array_next_f64(&a, &f) && f == 0.5 && !samkv_gguf_array_next_f64(&a, &f));
    ck_assert(samkv_gguf_array(g, "a.s", &a) && a.count == 3 && !samkv_gguf_array_next_i64(&a, &i));
    ck_assert(samkv_gguf_array_next_string(&a, &s, &n) && n == 1 && *s == 'x');
    ck_assert(samkv_gguf_array_next_string(&a, &s, &n) && n == 0);
    ck_assert(samkv_gguf_array_next_string(&a, &s, &n) && n == 2 && !memcmp(s, "yz", 2));
    ck_assert(!samkv_gguf_array_next_string(&a, &s, &n));
}

START_TEST(test_good)
{
    static const uint32_t alignments[] = {0, 8, 64};
    struct bytes b = make_mixed(_i % 2 ? 2 : 3, alignments[_i / 2]);
    struct samkv_gguf *g = open_good(&b);
    check_mixed(g);
    check_arrays(g);
    struct samkv_gguf_tensor t;
    ck_assert_int_eq(samkv_gguf_tensor(g, "first", &t, &why), SAMKV_OK);
    ck_assert(t.type == SAMKV_GGML_F32 && t.dims == 1 && t.shape[0] == 2 && t.bytes == 8);
    float value;
    memcpy(&value, (const char *)t.data + 4, sizeof value);
    ck_assert(value == 2);
    ck_assert_int_eq(samkv_gguf_tensor(g, "second", &t, &why), SAMKV_OK);
    ck_assert(t.dims == 2 && t.shape[0] == 32 && t.shape[1] == 3 && t.bytes == 102 && *(const uint8_t *)t.data == 1);
    ck_assert_int_eq(samkv_gguf_tensor(g, "other", &t, &why), SAMKV_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(why.text, "IQ4_NL"));
    ck_assert_int_eq(samkv_gguf_tensor(g, "none", &t, &why), SAMKV_NOT_FOUND);
    size_t n;
    ck_assert(samkv_gguf_tensor_count(g) == 3 && !memcmp(samkv_gguf_tensor_name(g, 0, &n), "second", 6) && n == 6);
    samkv_gguf_close(g);
    samkv_gguf_close(NULL);
    free(b.data);
}
END_TEST

/* All that a loader may read of an opened file. */
static void read_all(const uint8_t *data, size_t count)
{
    struct samkv_gguf *g;
    if (samkv_gguf_from_bytes(data, count, &g, &why))
        return;
    static const char *const arrays[] = {"a.i16", "a.f32", "a.s"};
    volatile uint64_t sum = 0;
    struct samkv_gguf_array a;
    for (int i = 0; i < 3; i++) {
        const char *s;
        size_t n;
        int64_t v;
        double f;
        if (samkv_gguf_array(g, arrays[i], &a))
            while (samkv_gguf_array_next_string(&a, &s, &n))
                for (size_t j = 0; j < n; j++)
                    sum += (uint8_t)s[j];
        if (samkv_gguf_array(g, arrays[i], &a))
            while (samkv_gguf_array_next_i64(&a, &v) || samkv_gguf_array_next_f64(&a, &f))
                sum++;
    }
    for (size_t i = 0; i < samkv_gguf_tensor_count(g); i++) {
        char name[32] = "";
        size_t n;
        const char *at = samkv_gguf_tensor_name(g, i, &n);
        memcpy(name, at, n < 31 ? n : 31);
        struct samkv_gguf_tensor t;
        if (samkv_gguf_tensor(g, name, &t, &why))
            continue;
        for (uint64_t j = 0; j < t.bytes; j++)
            sum += ((const uint8_t *)t.data)[j];
    }
    struct samkv_model_config c;
    (void)!samkv_config_from_gguf(g, &c, &why);
    samkv_gguf_close(g);
}

static void refuse(const uint8_t *data, size_t count)
{
    struct samkv_gguf *g;
    enum samkv_status status = samkv_gguf_from_bytes(data, count, &g, &why);
    ck_assert_msg(status == SAMKV_CORRUPT, "%zu bytes: %s", count, samkv_status_name(status));
}

static void cut_and_flip(struct bytes *b, size_t whole_bytes)
{
    for (size_t n = 0; n < whole_bytes; n++)
        with_exact_copy(b->data, n, refuse);
    static const uint8_t values[] = {0, 1, 2, 3, 8, 9, 0x1f, 0x40, 0x7f, 0x80, 0xfe, 0xff};
    for (size_t n = 0; n < b->count; n++) {
        uint8_t was = b->data[n];
        for (size_t i = 0; i < sizeof values; i++) {
            b->data[n] = values[i];
            with_exact_copy(b->data, b->count, read_all);
        }
        b->data[n] = was;
    }
}

static const char *extra_key; /* one more in make_llama's metadata */
static uint32_t extra_value;
static struct bytes make_llama(uint32_t freqs_type, float freq, const char *scaling);

START_TEST(test_every_cut_and_flip)
{
    struct bytes b = make_mixed(3, 0);
    cut_and_flip(&b, b.count - 18); /* an unknown encoding has no length: its tail is not missed */
    free(b.data);
    b = make_llama(SAMKV_GGML_F32, 8, "linear");
    cut_and_flip(&b, b.count);
    free(b.data);
}
END_TEST

/* A header and one lie. */
static struct bytes header(uint64_t tensors, uint64_t pairs)
{
    struct bytes b = {0};
    put_int(&b, 0x46554747, 4);
    put_int(&b, 3, 4);
    put_int(&b, tensors, 8);
    put_int(&b, pairs, 8);
    return b;
}

START_TEST(test_lying_counts)
{
    static const uint64_t counts[] = {1, 1ull << 32, 1ull << 59, 1ull << 60, UINT64_MAX / 56, UINT64_MAX};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        struct bytes b = header(counts[i], 0);
        put_int(&b, 0, 8);
        ck_assert_int_eq(open_status(&b), SAMKV_CORRUPT);
        free(b.data);
        b = header(0, counts[i]);
        put_int(&b, 0, 8);
        ck_assert_int_eq(open_status(&b), SAMKV_CORRUPT);
        free(b.data);
        for (int type = 0; type < 14; type++) { /* an array with too many elements, of every type */
            b = header(0, 1);
            put_string(&b, "k");
            put_int(&b, 9, 4);
            put_int(&b, (uint64_t)type, 4);
            put_int(&b, counts[i] + (i == 0 ? 16 : 0), 8);
            put_int(&b, ~0ull, 8);
            ck_assert_msg(open_status(&b) == SAMKV_CORRUPT, "%d", type);
            free(b.data);
        }
    }
}
END_TEST

START_TEST(test_refused_headers)
{
    struct bytes b = header(0, 0);
    struct samkv_gguf *g = open_good(&b); /* nothing in it, but honest */
    samkv_gguf_close(g);
    b.data[4] = 1;
    ck_assert_int_eq(open_status(&b), SAMKV_UNSUPPORTED);
    b.data[4] = 4;
    ck_assert_int_eq(open_status(&b), SAMKV_UNSUPPORTED);
    memcpy(b.data + 4, "\0\0\0\3", 4);
    ck_assert_int_eq(open_status(&b), SAMKV_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(why.text, "big-endian"));
    b.data[0] = 'X';
    ck_assert_int_eq(open_status(&b), SAMKV_CORRUPT);
    free(b.data);
    for (int i = 0; i < 3; i++) {
        struct gguf_maker m = {0};
        gguf_u32(&m, "general.alignment", (uint32_t[]){0, 3, 1u << 31}[i]);
        b = gguf_finish(&m);
        ck_assert_int_eq(open_status(&b), SAMKV_CORRUPT);
        free(b.data);
    }
    struct gguf_maker m = {0};
    gguf_u32(&m, "twice", 1);
    gguf_u32(&m, "twice", 1);
    b = gguf_finish(&m);
    ck_assert_int_eq(open_status(&b), SAMKV_CORRUPT);
    free(b.data);
}
END_TEST

/* dims, shape, type, offset over 64 bytes of data, beside an honest F32 (8) at offset 0 */
static enum samkv_status open_tensor(uint32_t dims, const uint64_t shape[4], uint32_t type, uint64_t offset,
                                     const char *name)
{
    struct gguf_maker g = {0};
    gguf_tensor(&g, "honest", SAMKV_GGML_F32, 8, 0, (float[16]){0}, 64);
    put_string(&g.table, name);
    put_int(&g.table, dims, 4);
    for (uint32_t i = 0; i < dims && i < 4; i++)
        put_int(&g.table, shape[i], 8);
    put_int(&g.table, type, 4);
    put_int(&g.table, offset, 8);
    g.tensor_count++;
    struct bytes b = gguf_finish(&g);
    enum samkv_status status = open_status(&b);
    free(b.data);
    return status;
}

START_TEST(test_lying_tensors)
{
    const uint64_t huge = 1ull << 62;
#define SHAPE(...) ((const uint64_t[4]){__VA_ARGS__})
    ck_assert_int_eq(open_tensor(1, SHAPE(8), 0, 32, "t"), SAMKV_OK);
    ck_assert_int_eq(open_tensor(2, SHAPE(0, 4), 0, 32, "t"), SAMKV_OK); /* empty is not a lie */
    ck_assert_int_eq(open_tensor(1, SHAPE(8), 0, 32, "honest"), SAMKV_CORRUPT);
    ck_assert_int_eq(open_tensor(1, SHAPE(9), 0, 32, "t"), SAMKV_CORRUPT);
    ck_assert_int_eq(open_tensor(1, SHAPE(8), 0, 0, "t"), SAMKV_CORRUPT);  /* overlaps */
    ck_assert_int_eq(open_tensor(1, SHAPE(1), 0, 16, "t"), SAMKV_CORRUPT); /* not aligned */
    ck_assert_int_eq(open_tensor(1, SHAPE(1), 0, 64, "t"), SAMKV_CORRUPT);
    ck_assert_int_eq(open_tensor(1, SHAPE(8), 0, UINT64_MAX - 31, "t"), SAMKV_CORRUPT);
    ck_assert_int_eq(open_tensor(1, SHAPE(huge), 0, 32, "t"), SAMKV_CORRUPT); /* · 4 wraps to 0 */
    ck_assert_int_eq(open_tensor(4, SHAPE(huge, huge, huge, 2), 0, 32, "t"), SAMKV_CORRUPT);
    ck_assert_int_eq(open_tensor(1, SHAPE(31), SAMKV_GGML_Q8_0, 32, "t"), SAMKV_CORRUPT); /* no whole block */
    ck_assert_int_eq(open_tensor(0, SHAPE(0), 0, 32, "t"), SAMKV_CORRUPT);
    ck_assert_int_eq(open_tensor(5, SHAPE(1, 1, 1, 1), 0, 32, "t"), SAMKV_CORRUPT);
    ck_assert_int_eq(open_tensor(UINT32_MAX, SHAPE(1, 1, 1, 1), 0, 32, "t"), SAMKV_CORRUPT);
    ck_assert_int_eq(open_tensor(1, SHAPE(8), 77, 32, "t"), SAMKV_OK); /* refused when it is asked for */
}
END_TEST

/* Metadata and the tensors that a configuration is read from; no weights. */
static struct bytes make_llama(uint32_t freqs_type, float freq, const char *scaling)
{
    struct gguf_maker g = {0};
    gguf_string(&g, "general.architecture", "llama");
    gguf_u32(&g, "llama.block_count", 2);
    gguf_u32(&g, "llama.embedding_length", 8);
    gguf_u32(&g, "llama.feed_forward_length", 12);
    gguf_u32(&g, "llama.attention.head_count", 2);
    gguf_u32(&g, "llama.attention.head_count_kv", 1);
    gguf_u32(&g, "llama.context_length", 100);
    gguf_f32(&g, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    gguf_f32(&g, "llama.rope.freq_base", 100);
    gguf_u32(&g, "llama.rope.dimension_count", 4);
    gguf_u32(&g, "tokenizer.ggml.bos_token_id", 2);
    gguf_u32(&g, "tokenizer.ggml.eos_token_id", 5);
    if (extra_key)
        gguf_u32(&g, extra_key, extra_value);
    if (scaling) {
        gguf_string(&g, "llama.rope.scaling.type", scaling);
        gguf_f32(&g, "llama.rope.scaling.factor", 4);
    }
    float embedding[5 * 8] = {0};
    gguf_tensor(&g, "token_embd.weight", SAMKV_GGML_F32, 8, 5, embedding, sizeof embedding);
    if (freq != 0)
        gguf_tensor(&g, "rope_freqs.weight", freqs_type, 2, 0, (float[]){1, freq}, freqs_type ? 4 : 8);
    return gguf_finish(&g);
}

static enum samkv_status read_config(struct bytes b, struct samkv_model_config *c)
{
    struct samkv_gguf *g = open_good(&b);
    enum samkv_status status = samkv_config_from_gguf(g, c, &why);
    samkv_gguf_close(g);
    free(b.data);
    return status;
}

START_TEST(test_config)
{
    struct samkv_model_config c;
    ck_assert_int_eq(read_config(make_llama(0, 0, NULL), &c), SAMKV_OK);
    ck_assert(c.family == SAMKV_FAMILY_LLAMA && c.layers == 2 && c.hidden == 8 && c.ffn == 12 && c.heads == 2);
    ck_assert(c.kv_heads == 1 && c.head_dim == 4 && c.vocab == 5 && c.context_tokens == 100 && c.rms_eps == 1e-5f);
    ck_assert(c.tied_embeddings && !c.qkv_bias && !c.qk_norm && c.bos == 2 && c.eos == -1);
    ck_assert(c.inv_freq[0] == 1 && fabs(c.inv_freq[1] - 0.1) < 1e-15);
    ck_assert_int_eq(read_config(make_llama(0, 8, "none"), &c), SAMKV_OK);
    ck_assert(c.inv_freq[0] == 1 && fabs(c.inv_freq[1] - 0.0125) < 1e-15);
    ck_assert_int_eq(read_config(make_llama(0, 8, "linear"), &c), SAMKV_OK);
    ck_assert(c.inv_freq[0] == 0.25 && fabs(c.inv_freq[1] - 0.003125) < 1e-15);
    ck_assert_int_eq(read_config(make_llama(0, 0, "yarn"), &c), SAMKV_OK);
    ck_assert(c.inv_freq[0] == 1 && c.inv_freq[1] < 0.1 && fabs(c.rope_scale - 1.1386294) < 1e-6);
    ck_assert_int_eq(read_config(make_llama(0, 8, "longrope"), &c), SAMKV_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(why.text, "longrope"));
    ck_assert_int_eq(read_config(make_llama(0, -8, NULL), &c), SAMKV_CORRUPT);
    ck_assert_int_eq(read_config(make_llama(0, NAN, NULL), &c), SAMKV_CORRUPT);
    ck_assert_int_eq(read_config(make_llama(SAMKV_GGML_F16, 8, NULL), &c), SAMKV_CORRUPT);
}
END_TEST

/* A good file, but with one more key. */
static enum samkv_status with_key(const char *key, uint32_t value)
{
    struct samkv_model_config c;
    extra_key = key;
    extra_value = value;
    struct bytes b = make_llama(0, 0, NULL);
    extra_key = NULL;
    return read_config(b, &c);
}

START_TEST(test_config_refusals)
{
    ck_assert_int_eq(with_key("llama.neutral", 1), SAMKV_OK);
    ck_assert_int_eq(with_key("llama.expert_count", 0), SAMKV_OK);
    ck_assert_int_eq(with_key("llama.expert_count", 8), SAMKV_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(why.text, "llama.expert_count"));
    ck_assert_int_eq(with_key("llama.attention.sliding_window", 100), SAMKV_OK);
    ck_assert_int_eq(with_key("llama.attention.sliding_window", 50), SAMKV_OK);
    ck_assert_int_eq(with_key("llama.rope.scaling.yarn_log_multiplier", 1), SAMKV_UNSUPPORTED);
    ck_assert_int_eq(with_key("llama.attention.key_length", 2), SAMKV_UNSUPPORTED); /* the rotation is still 4 */
    ck_assert_int_eq(with_key("llama.attention.value_length", 4), SAMKV_OK);
    ck_assert_int_eq(with_key("llama.attention.value_length", 2), SAMKV_UNSUPPORTED);
    struct gguf_maker g = {0};
    struct samkv_model_config c;
    ck_assert_int_eq(read_config(gguf_finish(&g), &c), SAMKV_CORRUPT);
    gguf_string(&g, "general.architecture", "gemma");
    ck_assert_int_eq(read_config(gguf_finish(&g), &c), SAMKV_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(why.text, "gemma"));
    gguf_string(&g, "general.architecture", "qwen2");
    ck_assert_int_eq(read_config(gguf_finish(&g), &c), SAMKV_CORRUPT);
    ck_assert_ptr_nonnull(strstr(why.text, "qwen2.block_count"));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("gguf");
    TCase *cases = tcase_create("gguf");
    tcase_add_loop_test(cases, test_good, 0, 6);
    tcase_add_test(cases, test_every_cut_and_flip);
    tcase_add_test(cases, test_lying_counts);
    tcase_add_test(cases, test_refused_headers);
    tcase_add_test(cases, test_lying_tensors);
    tcase_add_test(cases, test_config);
    tcase_add_test(cases, test_config_refusals);
    tcase_set_timeout(cases, 120);
    suite_add_tcase(suite, cases);
    return run_tests(suite);
}
