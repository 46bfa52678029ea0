/*
 * Loading whole models, from directories and GGUF files written here, onto a device made here: the device only keeps
 * memory, so what is tested is which bytes arrive where.
 */
#include "daemon/model/model.h"
#include "tests/unit/model_writer.h"

static struct samkv_error why;

/* --- a device that counts what it holds --- */

static int live;         /* allocations and streams */
static size_t allocated; /* by the last allocation */
static struct samkv_device device;

static enum samkv_status fake_alloc(struct samkv_device *d, size_t bytes, void **out)
{
    (void)d;
    *out = aligned_alloc(64, (bytes + 63) / 64 * 64);
    allocated = bytes;
    live += *out != NULL;
    return *out ? SAMKV_OK : SAMKV_NO_MEMORY;
}

static void fake_release(struct samkv_device *d, void *p)
{
    (void)d;
    live -= p != NULL;
    free(p);
}

static enum samkv_status fake_stream_new(struct samkv_device *d, struct samkv_stream **out)
{
    *out = calloc(1, sizeof **out);
    (*out)->device = d;
    live++;
    return SAMKV_OK;
}

static void fake_stream_free(struct samkv_stream *s)
{
    live--;
    free(s);
}

/* As late as a real device may copy: at the next sync. */
static struct {
    void *dst;
    const void *src;
    size_t bytes;
} pending;
static int uploads, fail_sync_after;

static enum samkv_status fake_sync(struct samkv_stream *s, struct samkv_error *err)
{
    (void)s;
    if (pending.bytes)
        memcpy(pending.dst, pending.src, pending.bytes);
    pending.bytes = 0;
    return fail_sync_after && uploads >= fail_sync_after ? samkv_fail(err, SAMKV_DEVICE, "the device is lost")
                                                         : SAMKV_OK;
}

static void fake_upload(struct samkv_stream *s, void *dst, const void *src, size_t bytes)
{
    (void)s;
    ck_assert_uint_eq(pending.bytes, 0);
    pending.dst = dst;
    pending.src = src;
    pending.bytes = bytes;
    uploads++;
}

static const struct samkv_ops ops = {
    .alloc = fake_alloc,
    .release = fake_release,
    .host_alloc = fake_alloc,
    .host_release = fake_release,
    .stream_new = fake_stream_new,
    .stream_free = fake_stream_free,
    .upload = fake_upload,
    .sync = fake_sync,
};

static struct samkv_device *use_device(bool unified, enum samkv_dtype dtype)
{
    device = (struct samkv_device){.ops = &ops, .dtype = dtype, .unified = unified, .name = "fake"};
    uploads = fail_sync_after = 0;
    return &device;
}

/* --- checks --- */

static struct samkv_model *load(const char *path)
{
    struct samkv_model *m;
    enum samkv_status status = samkv_model_load("m", path, &device, &m, &why);
    ck_assert_msg(status == SAMKV_OK, "%s: %s", samkv_status_name(status), why.text);
    return m;
}

static enum samkv_status load_status(const char *path)
{
    struct samkv_model *m = (void *)&why;
    memset(&why, 0, sizeof why);
    enum samkv_status status = samkv_model_load("m", path, &device, &m, &why);
    if (status) {
        ck_assert_ptr_null(m);
        ck_assert_msg(*why.text && !strchr(why.text, '\n'), "%s", why.text);
    }
    samkv_model_free(m);
    ck_assert_int_eq(live, 0);
    return status;
}

static float element(enum samkv_dtype dtype, const void *p, unsigned i)
{
    uint16_t h;
    float f;
    if (dtype == SAMKV_F32) {
        memcpy(&f, (const char *)p + 4 * i, sizeof f);
        return f;
    }
    memcpy(&h, (const char *)p + 2 * i, sizeof h);
    return dtype == SAMKV_BF16 ? samkv_bf16_to_f32(h) : samkv_f16_to_f32(h);
}

static void check_tensor(const struct tensor *t, unsigned number, const void *got)
{
    float values[HIDDEN * HEADS * HEAD_DIM];
    unsigned count = fill(t, number, values);
    enum samkv_dtype dtype = t->rows ? samkv_device_matrix_dtype(&device) : device.dtype;
    ck_assert_ptr_nonnull(got);
    for (unsigned i = 0; i < count; i++)
        ck_assert_msg(element(dtype, got, i) == values[i], "%s: element %u is %g, not %g", t->hf, i,
                      (double)element(dtype, got, i), (double)values[i]);
}

static void check_weights(const struct samkv_model *m, enum kind kind)
{
    ck_assert_uint_eq(m->config.layers, LAYERS);
    check_tensor(&outer[0], 0, m->embedding);
    check_tensor(&outer[1], 1, m->final_norm);
    if (m->config.tied_embeddings)
        ck_assert_ptr_eq(m->lm_head, m->embedding);
    else
        check_tensor(&outer[2], 2, m->lm_head);
    for (unsigned l = 0; l < LAYERS; l++) {
        const struct samkv_layer *y = &m->layers[l];
        const void *got[INNER] = {y->attn_norm, y->wq,     y->wk, y->wv,       y->bq,   y->bk,     y->bv,
                                  y->q_norm,    y->k_norm, y->wo, y->ffn_norm, y->w_up, y->w_gate, y->w_down};
        for (unsigned t = 0; t < INNER; t++)
            if (inner[t].mask >> kind & 1)
                check_tensor(&inner[t], (unsigned)OUTER + l * (unsigned)INNER + t, got[t]);
            else
                ck_assert_ptr_null(got[t]);
    }
}

static void check_fused(const struct samkv_model *m)
{
    size_t e = samkv_dtype_bytes(device.dtype);
    for (unsigned l = 0; l < LAYERS; l++) {
        const struct samkv_layer *y = &m->layers[l];
        ck_assert(y->qkv_fused && y->gate_up_fused);
        ck_assert((const char *)y->wq + e * HEADS * HEAD_DIM * HIDDEN == y->wk);
        ck_assert((const char *)y->wk + e * KV_HEADS * HEAD_DIM * HIDDEN == y->wv);
        ck_assert((const char *)y->w_gate + e * FFN * HIDDEN == y->w_up);
        ck_assert(!y->bq || (const char *)y->bq + e * HEADS * HEAD_DIM == y->bk);
        ck_assert(!y->bq || (const char *)y->bk + e * KV_HEADS * HEAD_DIM == y->bv);
    }
}

static const enum kind hf_kinds[] = {LLAMA, QWEN2, QWEN3};

START_TEST(test_hf_in_place)
{
    enum kind kind = hf_kinds[_i];
    use_device(true, SAMKV_F32);
    write_hf(kind, (struct hf_options){.dtype = SAMKV_F32});
    struct samkv_model *m = load(dir);
    ck_assert_int_eq(live, 0); /* nothing was copied */
    check_weights(m, kind);
    ck_assert(!m->layers[1].gate_up_fused);
    ck_assert(m->layers[1].qkv_fused); /* as they happen to lie in the file */
    ck_assert_ptr_null(m->tokenizer);
    struct samkv_kv_shape s = samkv_model_kv_shape(m, SAMKV_BF16);
    ck_assert(s.layers == LAYERS && s.kv_heads == KV_HEADS && s.head_dim == HEAD_DIM && s.dtype == SAMKV_BF16);
    ck_assert_str_eq(m->name, "m");
    ck_assert_str_eq(m->path, dir);
    samkv_model_free(m);
}
END_TEST

START_TEST(test_hf_converted)
{
    static const enum samkv_dtype dtypes[] = {SAMKV_F32, SAMKV_F16, SAMKV_BF16};
    enum kind kind = hf_kinds[_i % 3];
    enum samkv_dtype from = dtypes[_i / 3 % 3], to = dtypes[_i / 9 % 3];
    bool unified = _i / 27;
    /* Odd padding, so that F32 in place is out of the question. */
    write_hf(kind, (struct hf_options){.dtype = from, .pad = 1, .tied = _i % 2});
    use_device(unified, to);
    struct samkv_model *m = load(dir);
    ck_assert_int_eq(live, 1); /* one allocation holds all, and only that is left */
    ck_assert_int_eq(uploads > 0, !unified);
    unlink(path_of("model.safetensors"));
    check_weights(m, kind);
    check_fused(m);
    samkv_model_free(m);
    ck_assert_int_eq(live, 0);
}
END_TEST

/* Matrices in bf16 beside vectors in f32: the file's own matrices where it has them so, all converted where not. */
START_TEST(test_bf16_matrices)
{
    static const enum samkv_dtype dtypes[] = {SAMKV_F32, SAMKV_F16, SAMKV_BF16};
    enum kind kind = hf_kinds[_i % 3];
    enum samkv_dtype from = dtypes[_i / 3];
    use_device(true, SAMKV_F32);
    device.bf16_matrices = true;
    write_hf(kind, (struct hf_options){.dtype = from});
    struct samkv_model *m = load(dir);
    ck_assert_int_eq(live, 1);
    check_weights(m, kind);
    ck_assert(from == SAMKV_BF16 ? allocated < m->weight_bytes / 2 : allocated >= m->weight_bytes);
    samkv_model_free(m);
    ck_assert_int_eq(live, 0);
}
END_TEST

START_TEST(test_gguf)
{
    enum kind kind = (enum kind)(_i % 4);
    write_gguf(kind, _i / 4 % 2, NULL);
    use_device(_i / 8, SAMKV_F32);
    struct samkv_model *m = load(path_of("m.gguf"));
    ck_assert_int_eq(live, _i / 8 && kind >= QWEN2 ? 0 : 1); /* Qwen's rows need no other order */
    ck_assert_int_eq(m->config.tied_embeddings, _i / 4 % 2);
    check_weights(m, kind);
    if (live)
        check_fused(m);
    samkv_model_free(m);
    ck_assert_int_eq(live, 0);
}
END_TEST

START_TEST(test_weight_bytes)
{
    use_device(true, SAMKV_F32);
    write_hf(LLAMA, (struct hf_options){.dtype = SAMKV_F32, .tied = true});
    struct samkv_model *m = load(dir);
    uint64_t layer = 2 * HIDDEN + 2 * HEADS * HEAD_DIM * HIDDEN + 2 * KV_HEADS * HEAD_DIM * HIDDEN + 3 * FFN * HIDDEN;
    ck_assert_uint_eq(m->weight_bytes, 4 * (VOCAB * HIDDEN + HIDDEN + LAYERS * layer));
    samkv_model_free(m);
}
END_TEST

/* The index that a sharded model has; `where` names the shard of everything else. */
static void write_sharded(const char *where)
{
    write_hf(LLAMA, (struct hf_options){.dtype = SAMKV_F32});
    char from[512], to[512];
    snprintf(from, sizeof from, "%s/model.safetensors", dir);
    snprintf(to, sizeof to, "%s/b.safetensors", dir);
    ck_assert_int_eq(rename(from, to), 0);
    struct st_maker m = {.dtype = SAMKV_BF16};
    float values[VOCAB * HIDDEN];
    fill(&outer[0], 0, values);
    st_add(&m, outer[0].hf, VOCAB, HIDDEN, values);
    st_write(&m, "a.safetensors", 0);
    struct bytes index = {0};
    put_text(&index, "{\"metadata\":{\"total_size\":1},\"weight_map\":{");
    char line[256];
    for (unsigned t = 0; t < OUTER + LAYERS * INNER; t++) {
        const struct tensor *tensor = t < OUTER ? &outer[t] : &inner[(t - OUTER) % INNER];
        if (!(tensor->mask >> LLAMA & 1))
            continue;
        if (t < OUTER)
            snprintf(line, sizeof line, "%s\"%s\":\"%s\"", t ? "," : "", tensor->hf, t ? where : "a.safetensors");
        else
            snprintf(line, sizeof line, ",\"model.layers.%u.%s\":\"%s\"", (unsigned)((t - OUTER) / INNER), tensor->hf,
                     where);
        put_text(&index, line);
    }
    put_text(&index, "}}");
    write_file("model.safetensors.index.json", index.data, index.count);
    free(index.data);
}

START_TEST(test_sharded)
{
    use_device(true, SAMKV_F32);
    write_sharded("b.safetensors");
    struct samkv_model *m = load(dir);
    check_weights(m, LLAMA);
    samkv_model_free(m);
    static const char *const bad[] = {"../b.safetensors", "/etc/passwd", "..", ".", "", "sub/b.safetensors"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        write_sharded(bad[i]);
        ck_assert_msg(load_status(dir) == SAMKV_CORRUPT, "%s", bad[i]);
        ck_assert_ptr_nonnull(strstr(why.text, "not a file name"));
    }
    write_sharded("c.safetensors");
    ck_assert_int_eq(load_status(dir), SAMKV_NOT_FOUND);
    write_sharded("a.safetensors"); /* a shard without these tensors */
    ck_assert_int_eq(load_status(dir), SAMKV_CORRUPT);
    ck_assert_ptr_nonnull(strstr(why.text, "is missing"));
    static const char *const broken[] = {
        "", "{", "[]", "{}", "{\"weight_map\":{}}", "{\"weight_map\":3}", "{\"weight_map\":{\"a\":3}}"};
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++) {
        write_text("model.safetensors.index.json", broken[i]);
        ck_assert_msg(load_status(dir) == SAMKV_CORRUPT, "%s", broken[i]);
    }
}
END_TEST

START_TEST(test_refused_tensors)
{
    use_device(_i, SAMKV_F32);
    const char *down = "model.layers.1.mlp.down_proj.weight", *norm = "model.layers.1.input_layernorm.weight";
    write_hf(LLAMA, (struct hf_options){.leave_out = down});
    ck_assert_int_eq(load_status(dir), SAMKV_CORRUPT);
    ck_assert_msg(strstr(why.text, down) && strstr(why.text, "12, 10"), "%s", why.text);
    write_hf(LLAMA, (struct hf_options){.transpose = down});
    ck_assert_int_eq(load_status(dir), SAMKV_CORRUPT);
    ck_assert_msg(strstr(why.text, down) && strstr(why.text, "(10, 12)") && strstr(why.text, "(12, 10)"), "%s",
                  why.text);
    write_hf(LLAMA, (struct hf_options){.leave_out = norm});
    ck_assert_int_eq(load_status(dir), SAMKV_CORRUPT);
    write_hf(LLAMA, (struct hf_options){.leave_out = "lm_head.weight"});
    ck_assert_int_eq(load_status(dir), SAMKV_CORRUPT);
    write_hf(LLAMA, (struct hf_options){.leave_out = "lm_head.weight", .tied = true});
    ck_assert_int_eq(load_status(dir), SAMKV_OK);
    write_hf(LLAMA, (struct hf_options){.extra_bias = "model.layers.0.self_attn.o_proj.bias"});
    ck_assert_int_eq(load_status(dir), SAMKV_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(why.text, "o_proj.bias"));
    write_hf(LLAMA, (struct hf_options){.extra_bias = "model.layers.0.self_attn.q_proj.bias"});
    ck_assert_int_eq(load_status(dir), SAMKV_UNSUPPORTED);
    write_gguf(LLAMA, false, "blk.1.attn_output.bias");
    ck_assert_int_eq(load_status(path_of("m.gguf")), SAMKV_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(why.text, "blk.1.attn_output.bias"));
    write_gguf(LLAMA, false, "blk.2.attn_norm.weight"); /* a layer too many */
    ck_assert_int_eq(load_status(path_of("m.gguf")), SAMKV_UNSUPPORTED);
}
END_TEST

START_TEST(test_refused_places)
{
    use_device(true, SAMKV_F32);
    ck_assert_int_eq(load_status(path_of("none")), SAMKV_NOT_FOUND);
    ck_assert_int_eq(load_status(dir), SAMKV_NOT_FOUND); /* no config.json */
    write_config(LLAMA, false);
    ck_assert_int_eq(load_status(dir), SAMKV_NOT_FOUND); /* no weights */
    write_text("pytorch_model.bin", "x");
    ck_assert_int_eq(load_status(dir), SAMKV_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(why.text, "pytorch_model.bin"));
    write_text("model.safetensors", "");
    ck_assert_int_eq(load_status(dir), SAMKV_CORRUPT);
    ck_assert_int_eq(load_status(path_of("config.json")), SAMKV_INVALID);
    write_text("m.gguf", "GGUF");
    ck_assert_int_eq(load_status(path_of("m.gguf")), SAMKV_CORRUPT);
    char longest[5000];
    memset(longest, 'x', sizeof longest - 1);
    longest[sizeof longest - 1] = 0;
    struct samkv_model *m;
    ck_assert_int_eq(samkv_model_load("m", longest, &device, &m, &why), SAMKV_INVALID);
    ck_assert_int_eq(samkv_model_load(longest, dir, &device, &m, &why), SAMKV_INVALID);
    ck_assert_int_eq(samkv_model_load("", dir, &device, &m, &why), SAMKV_INVALID);
    ck_assert_ptr_null(m);
}
END_TEST

START_TEST(test_broken_tokenizer)
{
    use_device(true, SAMKV_F32);
    write_hf(LLAMA, (struct hf_options){0});
    write_text("tokenizer.json", "{");
    ck_assert_int_ne(load_status(dir), SAMKV_OK);
}
END_TEST

static void fingerprint(const char *path, uint8_t out[16])
{
    struct samkv_model *m = load(path);
    memcpy(out, m->fingerprint, 16);
    samkv_model_free(m);
}

START_TEST(test_fingerprint)
{
    uint8_t first[16], again[16], other[16];
    use_device(true, SAMKV_F32);
    write_hf(LLAMA, (struct hf_options){0});
    fingerprint(dir, first);
    /* Elsewhere, and on another device: the same. */
    char moved[128];
    snprintf(moved, sizeof moved, "%s-moved", dir);
    ck_assert_int_eq(rename(dir, moved), 0);
    use_device(false, SAMKV_BF16);
    fingerprint(moved, again);
    ck_assert_mem_eq(first, again, 16);
    ck_assert_int_eq(rename(moved, dir), 0);
    /* One bit of a weight, one byte of the configuration: another. */
    FILE *f = fopen(path_of("model.safetensors"), "r+");
    fseek(f, -1, SEEK_END);
    int last = fgetc(f);
    fseek(f, -1, SEEK_END);
    fputc(last ^ 1, f);
    fclose(f);
    fingerprint(dir, other);
    ck_assert_mem_ne(first, other, 16);
    write_hf(LLAMA, (struct hf_options){.tied = true});
    fingerprint(dir, other);
    ck_assert_mem_ne(first, other, 16);
    write_gguf(QWEN3, false, NULL);
    fingerprint(path_of("m.gguf"), first);
    write_gguf(QWEN3, true, NULL);
    fingerprint(path_of("m.gguf"), other);
    ck_assert_mem_ne(first, other, 16);
}
END_TEST

/* A device that fails half way: an error, and nothing stays. */
START_TEST(test_lost_device)
{
    write_hf(QWEN2, (struct hf_options){.dtype = SAMKV_BF16});
    for (int after = 1; after <= 3 + LAYERS * 12; after++) {
        use_device(false, SAMKV_BF16);
        fail_sync_after = after;
        ck_assert_int_eq(load_status(dir), SAMKV_DEVICE);
        pending.bytes = 0;
    }
}
END_TEST

/* An embedding above the size of a staging buffer: sparse, but for rows where pieces can meet. */
START_TEST(test_large_upload)
{
    enum { ROWS = 300001, COLS = 64 };
    char header[256];
    struct st_maker m = {.dtype = SAMKV_BF16};
    write_text("config.json",
               "{\"model_type\":\"llama\",\"num_hidden_layers\":1,\"hidden_size\":64,\"num_attention_heads\":2,"
               "\"intermediate_size\":2,\"vocab_size\":300001,\"tie_word_embeddings\":true}");
    float zeros[COLS * COLS] = {0};
    static const struct {
        const char *name;
        unsigned rows, cols;
    } rest[] = {{"model.norm.weight", 0, 64},
                {"model.layers.0.input_layernorm.weight", 0, 64},
                {"model.layers.0.self_attn.q_proj.weight", 64, 64},
                {"model.layers.0.self_attn.k_proj.weight", 64, 64},
                {"model.layers.0.self_attn.v_proj.weight", 64, 64},
                {"model.layers.0.self_attn.o_proj.weight", 64, 64},
                {"model.layers.0.post_attention_layernorm.weight", 0, 64},
                {"model.layers.0.mlp.gate_proj.weight", 2, 64},
                {"model.layers.0.mlp.up_proj.weight", 2, 64},
                {"model.layers.0.mlp.down_proj.weight", 64, 2}};
    for (size_t i = 0; i < sizeof rest / sizeof *rest; i++)
        st_add(&m, rest[i].name, rest[i].rows, rest[i].cols, zeros);
    size_t begin = m.data.count, bytes = (size_t)ROWS * COLS * 2;
    snprintf(header, sizeof header,
             ",\"model.embed_tokens.weight\":{\"dtype\":\"BF16\",\"shape\":[%d,%d],\"data_offsets\":[%zu,%zu]}", ROWS,
             COLS, begin, begin + bytes);
    put_text(&m.header, header);
    size_t at = 8 + (m.header.count + 1 + 7) / 8 * 8 + begin;
    st_write(&m, "model.safetensors", 0);
    FILE *f = fopen(path_of("model.safetensors"), "r+");
    ck_assert_int_eq(ftruncate(fileno(f), (off_t)(at + bytes)), 0);
    static const long rows[] = {0, 131071, 262143, 262144, 262145, ROWS - 1}; /* 32 MiB end before 262144 */
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        uint16_t mark = samkv_f32_to_bf16((float)(i + 1));
        fseek(f, (long)at + rows[i] * COLS * 2 + 2 * (COLS - 1), SEEK_SET);
        fwrite(&mark, 2, 1, f);
    }
    fclose(f);
    use_device(false, SAMKV_BF16);
    struct samkv_model *model = load(dir);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const uint16_t *row = (const uint16_t *)model->embedding + (size_t)rows[i] * COLS;
        ck_assert(samkv_bf16_to_f32(row[COLS - 1]) == (float)(i + 1) && row[0] == 0);
    }
    samkv_model_free(model);
}
END_TEST

/* Every cut and some flips of a whole GGUF model, through the loader: refused or loaded, never a crash. */
START_TEST(test_hostile_gguf)
{
    struct bytes b = make_gguf(LLAMA_BIAS, true, NULL);
    size_t directory = b.count < 4000 ? b.count : 4000;
    use_device(true, SAMKV_F32);
    struct samkv_model *m;
    for (size_t n = 1; n < b.count; n += n < directory ? 7 : 501) {
        write_file("m.gguf", b.data, n);
        ck_assert_int_eq(load_status(path_of("m.gguf")), SAMKV_CORRUPT);
    }
    for (size_t n = 0; n < directory; n++) {
        uint8_t was = b.data[n];
        b.data[n] ^= (uint8_t)(1u << n % 8);
        write_file("m.gguf", b.data, b.count);
        if (samkv_model_load("m", path_of("m.gguf"), &device, &m, &why) == SAMKV_OK)
            samkv_model_free(m);
        ck_assert_int_eq(live, 0);
        b.data[n] = was;
    }
    free(b.data);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("model");
    TCase *cases = tcase_create("model");
    tcase_add_checked_fixture(cases, setup, teardown);
    tcase_add_loop_test(cases, test_hf_in_place, 0, 3);
    tcase_add_loop_test(cases, test_bf16_matrices, 0, 9);
    tcase_add_loop_test(cases, test_hf_converted, 0, 54);
    tcase_add_loop_test(cases, test_gguf, 0, 16);
    tcase_add_test(cases, test_weight_bytes);
    tcase_add_test(cases, test_sharded);
    tcase_add_loop_test(cases, test_refused_tensors, 0, 2);
    tcase_add_test(cases, test_refused_places);
    tcase_add_test(cases, test_broken_tokenizer);
    tcase_add_test(cases, test_fingerprint);
    tcase_add_test(cases, test_lost_device);
    tcase_add_test(cases, test_large_upload);
    tcase_add_test(cases, test_hostile_gguf);
    tcase_set_timeout(cases, 120);
    suite_add_tcase(suite, cases);
    return run_tests(suite);
}
