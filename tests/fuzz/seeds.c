/*
 * usage: fuzz_seeds FOLDER: writes FOLDER/TARGET/NAME for every target: small inputs that are whole, for fuzzers to
 * begin with and for ctest to run. What can be made is made here; corpus/ holds what was found.
 */
#include <errno.h>
#include <sys/stat.h>

#include <jansson.h>

#include "daemon/model/gguf.h"
#include "daemon/net/message.h"
#include "daemon/store/codec.h"
#include "tests/unit/bundle_fixture.h"
#include "tests/unit/frame_fixture.h"
#include "tests/unit/model_writer.h"

static const char *folder;

/* One input of a target, with `first` bytes in front. */
static void seed(const char *target, const char *name, const void *first, size_t first_bytes, const void *data,
                 size_t count)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", folder, target);
    ck_assert(!mkdir(path, 0777) || errno == EEXIST);
    snprintf(path, sizeof path, "%s/%s/%s", folder, target, name);
    FILE *f = fopen(path, "wb");
    ck_assert_msg(f, "%s", path);
    ck_assert_uint_eq(fwrite(first, 1, first_bytes, f), first_bytes);
    ck_assert_uint_eq(fwrite(data, 1, count, f), count);
    ck_assert_int_eq(fclose(f), 0);
}

static void text_seed(const char *target, const char *name, const char *text)
{
    seed(target, name, "", 0, text, strlen(text));
}

/* A file that was written to the fixture's folder. */
static void file_seed(const char *target, const char *name, const char *file)
{
    static uint8_t bytes[1 << 17];
    FILE *f = fopen(path_of(file), "rb");
    ck_assert_ptr_nonnull(f);
    size_t count = fread(bytes, 1, sizeof bytes, f);
    ck_assert(count < sizeof bytes && !fclose(f));
    seed(target, name, "", 0, bytes, count);
}

/* ------------------------------------------------------------------ models */

static void model_seeds(void)
{
    static const char *const names[] = {"llama", "llama-bias", "qwen2", "qwen3"};
    for (int kind = 0; kind < 4; kind++) {
        setup();
        write_hf((enum kind)kind, (struct hf_options){.dtype = (enum samkv_dtype)(kind % 3), .tied = kind == 2});
        write_gguf((enum kind)kind, kind == 2, NULL);
        if (kind != LLAMA_BIAS)
            file_seed("config", names[kind], "config.json");
        if (kind < 2)
            file_seed("safetensors", names[kind], "model.safetensors");
        file_seed("gguf", names[kind], "m.gguf");
        teardown();
    }
    text_seed("config", "rope",
              "{\"architectures\":[\"LlamaForCausalLM\"],\"num_hidden_layers\":2,\"hidden_size\":12,"
              "\"num_attention_heads\":3,\"num_key_value_heads\":1,\"head_dim\":6,\"intermediate_size\":10,"
              "\"vocab_size\":7,\"rms_norm_eps\":1e-5,\"rope_theta\":500000.0,\"max_position_embeddings\":4096,"
              "\"bos_token_id\":1,\"eos_token_id\":[2,3],\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8.0,"
              "\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,\"original_max_position_embeddings\":8192}}");
    text_seed("config", "yarn",
              "{\"architectures\":[\"Qwen2ForCausalLM\"],\"num_hidden_layers\":2,\"hidden_size\":12,"
              "\"num_attention_heads\":2,\"intermediate_size\":10,\"vocab_size\":7,\"sliding_window\":null,"
              "\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4.0,\"original_max_position_embeddings\":32,"
              "\"attention_factor\":1.1,\"beta_fast\":32,\"beta_slow\":1}}");
    text_seed("config", "smollm3",
              "{\"architectures\":[\"SmolLM3ForCausalLM\"],\"num_hidden_layers\":4,\"hidden_size\":12,"
              "\"num_attention_heads\":2,\"intermediate_size\":10,\"vocab_size\":7,\"no_rope_layers\":[1,1,1,0],"
              "\"no_rope_layer_interval\":4,\"layer_types\":[\"full_attention\"],\"use_sliding_window\":false}");
    text_seed("config", "phi3",
              "{\"architectures\":[\"Phi3ForCausalLM\"],\"num_hidden_layers\":2,\"hidden_size\":12,"
              "\"num_attention_heads\":2,\"intermediate_size\":10,\"vocab_size\":7,\"partial_rotary_factor\":1.0,"
              "\"sliding_window\":4096,\"max_position_embeddings\":4096}");
    text_seed("safetensors", "empty", "\2\0\0\0\0\0\0\0{}");
    seed("safetensors", "nothing", "\2\0\0\0\0\0\0\0{}", 10, "", 0);
}

/* One tensor of every type that can be read. */
static void tensor_types_seed(void)
{
    static const uint32_t types[] = {0, 1, 2, 3, 6, 7, 8, 10, 11, 12, 13, 14, 30};
    static const uint8_t data[2048] = {1, 2, 3, 200, 255};
    struct gguf_maker g = {0};
    gguf_string(&g, "general.architecture", "llama");
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        uint32_t elements, bytes;
        char name[16];
        ck_assert(samkv_gguf_type_block(types[i], &elements, &bytes));
        snprintf(name, sizeof name, "t%u", types[i]);
        gguf_tensor(&g, name, types[i], elements, 2, data, 2 * (size_t)bytes);
    }
    struct bytes b = gguf_finish(&g);
    seed("gguf", "types", "", 0, b.data, b.count);
    free(b.data);
}

/* ------------------------------------------------------------------ tokenizers */

static json_t *tokenizer_json(const json_t *root, const char *name)
{
    json_t *made = json_deep_copy(json_object_get(json_object_get(root, "tokenizers"), name));
    const json_t *model =
        json_object_get(json_object_get(root, "models"), json_string_value(json_object_get(made, "model")));
    json_object_set_new(made, "model", json_deep_copy(model));
    return made;
}

static void put_array(struct gguf_maker *g, const char *key, uint32_t type, uint64_t count)
{
    gguf_key(g, key, 9);
    put_int(&g->pairs, type, 4);
    put_int(&g->pairs, count, 8);
}

/* The vocabulary and merges of a tokenizer.json as a GGUF file has them. */
static void gguf_tokenizer_seed(const json_t *json, const char *name, const char *model_name)
{
    const json_t *model = json_object_get(json, "model"), *vocab = json_object_get(model, "vocab"), *id, *merge;
    size_t count = json_object_size(vocab), i;
    const char *text;
    struct gguf_maker g = {0};
    gguf_string(&g, "tokenizer.ggml.model", model_name);
    if (strcmp(model_name, "gpt2") == 0)
        gguf_string(&g, "tokenizer.ggml.pre", "smollm");
    const char **tokens = calloc(count, sizeof *tokens);
    json_object_foreach((json_t *)vocab, text, id) if ((size_t)json_integer_value(id) < count)
        tokens[json_integer_value(id)] = text;
    put_array(&g, "tokenizer.ggml.tokens", 8, count);
    for (i = 0; i < count; i++)
        put_string(&g.pairs, tokens[i] ? tokens[i] : "?");
    put_array(&g, "tokenizer.ggml.token_type", 5, count);
    for (i = 0; i < count; i++)
        put_int(&g.pairs, tokens[i] && strlen(tokens[i]) == 6 && tokens[i][0] == '<' ? 6 : i < 3 ? 3 : 1, 4);
    put_array(&g, "tokenizer.ggml.scores", 6, count);
    for (i = 0; i < count; i++)
        put(&g.pairs, &(float){-(float)i}, 4);
    const json_t *merges = json_object_get(model, "merges");
    put_array(&g, "tokenizer.ggml.merges", 8, json_array_size(merges));
    json_array_foreach((json_t *)merges, i, merge)
        put_string(&g.pairs, json_string_value(merge) ? json_string_value(merge) : "a b");
    gguf_u32(&g, "tokenizer.ggml.bos_token_id", 1);
    free(tokens);
    struct bytes b = gguf_finish(&g);
    seed("gguf", name, "", 0, b.data, b.count);
    free(b.data);
}

static void tokenizer_seeds(void)
{
    json_error_t error;
    json_t *root = json_load_file(SAMKV_TEST_DATA "/tokenizer_cases.json", 0, &error), *one;
    ck_assert_msg(root, "%s", error.text);
    const char *name;
    json_object_foreach(json_object_get(root, "tokenizers"), name, one)
    {
        (void)one;
        json_t *json = tokenizer_json(root, name);
        char *text = json_dumps(json, JSON_COMPACT);
        size_t bytes = strlen(text);
        char file[64];
        snprintf(file, sizeof file, "%s", name);
        for (char *at = file; (at = strchr(at, ' '));)
            *at = '-';
        text[bytes] = 0; /* and a text behind it */
        char *whole = malloc(bytes + 32);
        int all = snprintf(whole, bytes + 32, "%s%cHello world's 42 \xc3\xa9", text, 0);
        seed("tokenizer", file, "", 0, whole, (size_t)all);
        if (strcmp(name, "smollm") == 0)
            gguf_tokenizer_seed(json, "tokenizer-bytes", "gpt2");
        if (strcmp(name, "llama2") == 0)
            gguf_tokenizer_seed(json, "tokenizer-pieces", "llama");
        free(whole);
        free(text);
        json_decref(json);
    }
    json_decref(root);
}

/* ------------------------------------------------------------------ the protocol */

static size_t pack(const ProtobufCMessage *message, uint8_t out[4096])
{
    ck_assert_uint_le(protobuf_c_message_get_packed_size(message), 4096);
    return protobuf_c_message_pack(message, out);
}

/* A message as a payload, and within a conversation behind a HELLO. */
static void request_seed(uint16_t type, const ProtobufCMessage *message)
{
    uint8_t payload[4096], stream[5000], hello_payload[4096];
    size_t bytes = pack(message, payload), at;
    Samkv__Hello hello = SAMKV__HELLO__INIT;
    hello.magic.data = (uint8_t *)SAMKV_MAGIC;
    hello.magic.len = strlen(SAMKV_MAGIC);
    hello.version_min = hello.version_max = 1;
    hello.agent = (char *)"seed";
    at = make_frame(stream, SAMKV_TYPE_HELLO, 0, 0, hello_payload, (uint32_t)pack(&hello.base, hello_payload));
    for (uint64_t id = 1; id < 3; id++)
        at += make_frame(stream + at, type, 0, id, payload, (uint32_t)bytes);
    at += make_frame(stream + at, SAMKV_TYPE_PING, 0, 3, "", 0);
    uint8_t first = (uint8_t)type, cut = type % 2 ? 0x7f : 0x83;
    seed("messages", samkv_type_name(type), &first, 1, payload, bytes);
    seed("frames", samkv_type_name(type), &cut, 1, stream, at);
}

static void request_seeds(void)
{
    char *ids[] = {(char *)"a.txt", (char *)"b.txt"};
    int32_t tokens[] = {1, 2, 3, 300};
    uint32_t layers[] = {1, 2};
    Samkv__Tokens list = SAMKV__TOKENS__INIT;
    list.ids = tokens, list.n_ids = 4;
    Samkv__IngestRequest ingest = SAMKV__INGEST_REQUEST__INIT;
    ingest.id = ids[0];
    ingest.title = (char *)"A title";
    ingest.tokens = &list;
    Samkv__CollectionSpec spec = SAMKV__COLLECTION_SPEC__INIT;
    spec.model = (char *)"m";
    spec.codec = (char *)"rans";
    ingest.spec = &spec;
    request_seed(SAMKV_TYPE_INGEST, &ingest.base);
    Samkv__FetchRequest fetch = SAMKV__FETCH_REQUEST__INIT;
    fetch.ids = ids, fetch.n_ids = 2;
    fetch.query_text.data = (uint8_t *)"Who?", fetch.query_text.len = 4;
    fetch.stable_layers = layers, fetch.n_stable_layers = 2;
    request_seed(SAMKV_TYPE_FETCH, &fetch.base);
    Samkv__AskRequest ask = SAMKV__ASK_REQUEST__INIT;
    ask.fetch = &fetch;
    ask.question = fetch.query_text;
    request_seed(SAMKV_TYPE_ASK, &ask.base);
    Samkv__RemoveRequest rm = SAMKV__REMOVE_REQUEST__INIT;
    rm.ids = ids, rm.n_ids = 2;
    request_seed(SAMKV_TYPE_REMOVE, &rm.base);
    Samkv__PinRequest pin = SAMKV__PIN_REQUEST__INIT;
    pin.ids = ids, pin.n_ids = 2;
    request_seed(SAMKV_TYPE_PIN, &pin.base);
    Samkv__ListRequest ls = SAMKV__LIST_REQUEST__INIT;
    ls.collection = (char *)"default";
    ls.after = ids[0];
    request_seed(SAMKV_TYPE_LIST, &ls.base);
    Samkv__ShowRequest show = SAMKV__SHOW_REQUEST__INIT;
    show.id = ids[0];
    request_seed(SAMKV_TYPE_SHOW, &show.base);
    Samkv__ExportRequest export = SAMKV__EXPORT_REQUEST__INIT;
    export.collection = (char *)"default";
    request_seed(SAMKV_TYPE_EXPORT, &export.base);
    Samkv__ImportRequest import = SAMKV__IMPORT_REQUEST__INIT;
    request_seed(SAMKV_TYPE_IMPORT, &import.base);
    Samkv__ConfigureRequest configure = SAMKV__CONFIGURE_REQUEST__INIT;
    configure.collection = (char *)"default";
    request_seed(SAMKV_TYPE_CONFIGURE, &configure.base);
    Samkv__StatusRequest status = SAMKV__STATUS_REQUEST__INIT;
    request_seed(SAMKV_TYPE_STATUS, &status.base);
}

/* A fetched cache of 2 layers, 3 rows, 2 heads of 4 in 8,192 bytes, and an error. */
static void reply_seeds(void)
{
    uint8_t payload[4096], stream[9000];
    uint32_t document_tokens[] = {9}, blocks[] = {0, 2};
    double top_p[] = {0.5};
    Samkv__Kept kept = SAMKV__KEPT__INIT, *keep[] = {&kept};
    kept.blocks = blocks, kept.n_blocks = 2;
    Samkv__FetchReply m = SAMKV__FETCH_REPLY__INIT;
    m.memory_bytes = 8192;
    m.dtype = SAMKV_F32;
    m.layers = 2, m.rows = 3, m.kv_heads = 2, m.head_dim = 4;
    m.k_offset = 64, m.v_offset = 1024, m.layer_stride = 128;
    m.tokens_offset = 2048, m.doc_offset = 2112, m.index_offset = 2176, m.position_offset = 2240;
    m.logits_offset = 4096, m.vocab = 7;
    m.backend = (char *)"cpu";
    m.document_tokens = document_tokens, m.n_document_tokens = 1;
    m.top_p = top_p, m.n_top_p = 1;
    m.keep = keep, m.n_keep = 1;
    uint32_t bytes = (uint32_t)pack(&m.base, payload);
    size_t at = make_frame(stream, SAMKV_TYPE_FETCH, SAMKV_FLAG_REPLY | SAMKV_FLAG_FD, 3, payload, bytes);
    Samkv__Error error = SAMKV__ERROR__INIT;
    error.status = SAMKV_NOT_FOUND;
    error.message = (char *)"no document b";
    bytes = (uint32_t)pack(&error.base, payload);
    at += make_frame(stream + at, SAMKV_TYPE_INGEST, SAMKV_FLAG_REPLY | SAMKV_FLAG_ERROR, 2, payload, bytes);
    seed("replies", "fetch", "\0", 1, stream, at);
    for (uint16_t type = SAMKV_TYPE_PING; type <= SAMKV_TYPE_TRACE; type++) {
        at = make_frame(stream, type, SAMKV_FLAG_REPLY, type - 1u, "", 0);
        if (type != SAMKV_TYPE_FETCH)
            seed("replies", samkv_type_name(type), "\0", 1, stream, at);
    }
    Samkv__DeviceMemory device = SAMKV__DEVICE_MEMORY__INIT;
    device.kind = SAMKV__MEMORY_KIND__SHARED;
    device.bytes = 8192;
    m.device = &device;
    bytes = (uint32_t)pack(&m.base, payload);
    at = make_frame(stream, SAMKV_TYPE_FETCH, SAMKV_FLAG_REPLY | SAMKV_FLAG_FD, 3 + (2 << 8), payload, bytes);
    stream[9] = 0; /* the id is 3 */
    seed("replies", "device", "\1", 1, stream, at);
}

/* ------------------------------------------------------------------ the store */

static void bundle_seeds(void)
{
    static const struct samkv_kv_shape tiny = {1, 1, 2, SAMKV_F32};
    struct samkv_collection c = bundle_collection(tiny, 2, SAMKV_CODEC_ZSTD);
    struct fixture_directory directory;
    struct memory_stream bundle = {0};
    struct samkv_bundle_progress done;
    struct samkv_error err = {0};
    fixture_directory_make(&directory);
    struct samkv_store *store = fixture_open(&directory, 0);
    FIXTURE_OK(samkv_store_collection_put(store, &c, &err));
    for (uint32_t i = 0; i < 3; i++) {
        static const char *const ids[] = {"a", "b", "c"};
        struct fixture_document d;
        fixture_document_make(&d, 1 + i, tiny, 3 + i, 2);
        FIXTURE_OK(fixture_ingest(store, &d, ids[i], &err));
        fixture_document_free(&d);
        if (i == 1)
            continue;
        bundle_export(store, &bundle, &done);
        for (uint8_t how = 0; how < 32; how += 5)
            seed("bundle", (char[]){'0' + (char)i, 'a' + (char)how, 0}, &how, 1, bundle.data, bundle.count);
    }
    memory_free(&bundle);
    samkv_store_close(store);
    fixture_directory_remove(&directory);
}

/* A record of two pieces in every codec and type. */
static void codec_seeds(void)
{
    struct samkv_scratch_pool pool;
    samkv_scratch_pool_init(&pool);
    for (int codec = 0; codec < SAMKV_CODEC_COUNT; codec++)
        for (int dtype = 0; dtype < 3; dtype++) {
            /* The fourth byte chooses 16 channels, the fifth 20 tokens. */
            const uint8_t first[] = {(uint8_t)codec, (uint8_t)dtype, 2, 5, 20};
            const size_t elements = 16 * 20;
            struct samkv_layout layout = {(enum samkv_dtype)dtype, 2, 0, 16};
            layout.bytes = elements * samkv_dtype_bytes(layout.dtype);
            uint8_t *raw = malloc(2 * layout.bytes), *out = malloc(samkv_codec_bound(&layout));
            fixture_fill(layout.dtype, 7, 2 * elements, raw);
            const void *pieces[] = {raw, raw + layout.bytes};
            struct samkv_scratch *scratch = samkv_scratch_take(&pool);
            size_t used;
            ck_assert_int_eq(samkv_codec_encode((enum samkv_codec)codec, 0, &layout, pieces, scratch, out, &used),
                             SAMKV_OK);
            samkv_scratch_give(&pool, scratch);
            seed("codecs", (char[]){'a' + (char)codec, '0' + (char)dtype, 0}, first, sizeof first, out, used);
            free(raw);
            free(out);
        }
    samkv_scratch_pool_deinit(&pool);
}

/* ------------------------------------------------------------------ texts */

static void text_seeds(void)
{
    text_seed("jsonl", "documents",
              "\x0c{\"id\":\"a\",\"text\":\"A text.\",\"title\":\"T\"}\n{\"id\":7,\"tokens\":[1,2,3]}\r\n\n"
              "{\"id\":\"\\u00e9\",\"text\":\"x\\n\\ud83d\\ude00\",\"other\":{\"a\":[1.5,null,true]}}\n{\"id\":\"b\"}");
    text_seed("jsonl", "long", "\1{\"id\":\"a\"}\nshort\nmuch longer than it may be\n{}\n");
    text_seed("settings", "all",
              "; a comment\nsocket = /run/x.sock\n[samkvd]\nstore = /var/lib/samkv\nstore-max-bytes = 200G\n"
              "device = cpu\ndtype = bf16\nthreads = 3\nworkers = 4\ncodec = q8 ; why\nlog-level = debug\n"
              "host-cache-bytes = 1M\nwhen-full = evict\nmetrics = 127.0.0.1:9464\n[model]\nsmall = /m/small.gguf\n"
              "large=/m/large\n");
    text_seed("settings", "wrong", "[samkvd]\nstroe = /x\nthreads: many\nworkers\n[other]\na=b\n[model\n");
}

/* The fixtures are those of tests, and only work in one. */
START_TEST(write_seeds)
{
    ck_assert(!mkdir(folder, 0777) || errno == EEXIST);
    model_seeds();
    tensor_types_seed();
    tokenizer_seeds();
    request_seeds();
    reply_seeds();
    bundle_seeds();
    codec_seeds();
    text_seeds();
}
END_TEST

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: %s FOLDER\n", argv[0]);
        return EXIT_FAILURE;
    }
    folder = argv[1];
    Suite *suite = suite_create("seeds");
    TCase *seeds = tcase_create("seeds");
    tcase_add_test(seeds, write_seeds);
    suite_add_tcase(suite, seeds);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
