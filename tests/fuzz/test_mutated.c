/*
 * Model files that were mutated, as samkvd loads them: GGUF files, and directories of which safetensors, index,
 * config.json or tokenizer.json was changed. Each is refused with one clear line or loads and works; the heap that this
 * takes at most is measured beside the file's size. A seed of its own makes each of them, so a failure can be repeated:
 *   SAMKV_TEST_LONG=1     10,000 of each kind instead of 250
 *   SAMKV_TEST_SEED=N     begin with this one
 */
#include <errno.h>

#include <jansson.h>

#include "daemon/model/model.h"
#include "daemon/model/weights.h"
#include "tests/fuzz/heap.h"
#include "tests/unit/model_writer.h"

enum { SHORT_RUNS = 250, LONG_RUNS = 10000 };

/* ------------------------------------------------------------------ mutations */

struct random {
    uint64_t state;
};

static uint64_t next(struct random *r)
{
    uint64_t z = (r->state += 0x9e3779b97f4a7c15u);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static size_t below(struct random *r, size_t limit)
{
    return limit ? (size_t)(next(r) % limit) : 0;
}

static void replace(struct bytes *b, size_t at, size_t removed, const void *with, size_t count)
{
    struct bytes out = {0};
    put(&out, b->data, at);
    put(&out, with, count);
    put(&out, b->data + at + removed, b->count - at - removed);
    free(b->data);
    *b = out;
}

/* An integer of 4 or 8 bytes becomes one at a limit, or a little more or less. */
static void change_integer(struct bytes *b, struct random *r)
{
    static const uint64_t extremes[] = {0,          1,          UINT64_MAX, UINT64_MAX / 2,    1ull << 63,
                                        1ull << 62, UINT32_MAX, 0x80000000, UINT32_MAX + 1ull, 1ull << 40,
                                        1 << 20,    64};
    size_t width = next(r) % 2 ? 4 : 8, at = below(r, b->count);
    if (b->count < at + width)
        return;
    uint64_t value = 0;
    memcpy(&value, b->data + at, width);
    value = next(r) % 2 ? extremes[below(r, sizeof extremes / sizeof *extremes)] : value + next(r) % 9 - 4;
    memcpy(b->data + at, &value, width);
}

/* A word of JSON becomes another one: what stands between two marks of its syntax. */
static void change_word(struct bytes *b, struct random *r)
{
    static const char *const words[] = {
        "null",       "true",       "-1",          "0",    "1e308",  "99999999999999999999",
        "\"\"",       "[]",         "{}",          "[[]]", "1.5",    "\"x\"",
        "4294967296", "2147483648", "\"\\u0000\"", "-0.0", "1e-320", "[1,2,3,4,5,6,7,8,9]",
        "\"\\ud800\""};
    static const char marks[] = ",:[]{}";
    size_t at = below(r, b->count), end;
    while (at > 0 && !memchr(marks, b->data[at - 1], sizeof marks - 1))
        at--;
    for (end = at; end < b->count && !memchr(marks, b->data[end], sizeof marks - 1);)
        end++;
    const char *word = words[below(r, sizeof words / sizeof *words)];
    replace(b, at, end - at, word, strlen(word));
}

static void change_bytes(struct bytes *b, struct random *r)
{
    for (size_t n = 1 + below(r, 4); n && b->count; n--)
        b->data[below(r, b->count)] ^= (uint8_t)(1 + next(r) % 255);
}

/* A piece is taken out, put elsewhere, or doubled. */
static void move_piece(struct bytes *b, struct random *r)
{
    size_t at = below(r, b->count), count = below(r, b->count - at < 200 ? b->count - at : 200),
           to = below(r, b->count);
    uint8_t piece[200];
    memcpy(piece, b->data + at, count);
    if (next(r) % 2)
        replace(b, at, count, "", 0);
    if (next(r) % 2)
        replace(b, to < b->count ? to : b->count, 0, piece, count);
}

static void cut(struct bytes *b, struct random *r)
{
    b->count = below(r, b->count);
}

/* Much of one thing: deep or long, whatever it stands for where it is put. */
static void swell(struct bytes *b, struct random *r)
{
    static const char *const units[] = {"[", "{\"a\":", "[],", "{},", "\"a\",", "0", "\xff", "1,", " "};
    struct bytes much = {0};
    const char *unit = units[below(r, sizeof units / sizeof *units)];
    for (size_t n = 1 + below(r, 2000); n; n--)
        put_text(&much, unit);
    replace(b, below(r, b->count), 0, much.data, much.count);
    free(much.data);
}

/* JSON gets more changes that leave it JSON: those lead behind its parser. */
static void mutate(struct bytes *b, struct random *r)
{
    typedef void mutation(struct bytes *, struct random *);
    static mutation *const of_bytes[] = {change_integer, change_integer, change_integer, change_word,
                                         change_bytes,   change_bytes,   move_piece,     cut,
                                         swell};
    static mutation *const of_json[] = {change_word, change_word, change_word, change_word, change_word, change_word,
                                        change_word, move_piece,  cut,         swell,       change_bytes};
    bool json = b->count && b->data[0] == '{';
    for (size_t n = 1 + below(r, 3); n && b->count; n--)
        if (json)
            of_json[below(r, sizeof of_json / sizeof *of_json)](b, r);
        else
            of_bytes[below(r, sizeof of_bytes / sizeof *of_bytes)](b, r);
}

/* ------------------------------------------------------------------ loading */

static struct samkv_device device;

static enum samkv_status plain_alloc(struct samkv_device *d, size_t bytes, void **out)
{
    (void)d;
    *out = malloc(bytes);
    return *out ? SAMKV_OK : SAMKV_NO_MEMORY;
}

static void plain_release(struct samkv_device *d, void *p)
{
    (void)d;
    free(p);
}

static const struct samkv_ops plain_ops = {.alloc = plain_alloc, .release = plain_release};

static void use_tokenizer(const struct samkv_tokenizer *tokenizer)
{
    static const char text[] = "the <bos> caf\u00e9's 12345  \n\n<s>hello \xff\u4e2d";
    struct samkv_ids ids;
    struct samkv_error err;
    char *decoded;
    size_t bytes;
    samkv_ids_init(&ids);
    if (samkv_tokenizer_encode(tokenizer, text, sizeof text - 1, 3, &ids, &err) == SAMKV_OK &&
        samkv_tokenizer_decode(tokenizer, ids.data, ids.count, false, &decoded, &bytes, &err) == SAMKV_OK)
        free(decoded);
    samkv_ids_deinit(&ids);
}

struct tally {
    unsigned refused, loaded;
    double most; /* heap, as a multiple of the mutated file's size, above what every load takes */
    size_t most_bytes;
};

/* What any model takes, however small its files: names, paths, tables of a fixed size. */
#define BASE_BYTES ((size_t)64 << 10)

static void load(const char *path, size_t file_bytes, size_t factor, uint64_t seed, struct tally *tally)
{
    struct samkv_model *m = NULL;
    struct samkv_error err = {0};
    heap_begin();
    enum samkv_status status = samkv_model_load("m", path, &device, &m, &err);
    size_t peak = heap_peak();
    double above = peak > BASE_BYTES ? (double)(peak - BASE_BYTES) / (double)(file_bytes ? file_bytes : 1) : 0;
    tally->most = above > tally->most ? above : tally->most;
    tally->most_bytes = peak > tally->most_bytes ? peak : tally->most_bytes;
    if (peak > factor * file_bytes + BASE_BYTES)
        ck_abort_msg("seed %llu: %zu bytes of heap for %zu of file", (unsigned long long)seed, peak, file_bytes);
    tally->refused += status != SAMKV_OK;
    tally->loaded += status == SAMKV_OK;
    if (status && (err.status != status || strlen(err.text) < 10 || strchr(err.text, '\n')))
        ck_abort_msg("seed %llu: %s: '%s'", (unsigned long long)seed, samkv_status_name(status), err.text);
    if (!status && m->tokenizer)
        use_tokenizer(m->tokenizer);
    samkv_model_free(m);
}

static struct bytes read_all(const char *file)
{
    struct bytes b = {0};
    uint8_t part[4096];
    FILE *f = fopen(path_of(file), "rb");
    ck_assert_ptr_nonnull(f);
    for (size_t n; (n = fread(part, 1, sizeof part, f)) > 0;)
        put(&b, part, n);
    fclose(f);
    return b;
}

/* The tokenizer of the tests, of the given name. */
static char *tokenizer_text(const char *name)
{
    json_error_t error;
    json_t *root = json_load_file(SAMKV_TEST_DATA "/tokenizer_cases.json", 0, &error);
    ck_assert_msg(root, "%s", error.text);
    json_t *made = json_object_get(json_object_get(root, "tokenizers"), name);
    json_object_set(
        made, "model",
        json_object_get(json_object_get(root, "models"), json_string_value(json_object_get(made, "model"))));
    char *text = json_dumps(made, JSON_COMPACT);
    json_decref(root);
    return text;
}

/* model.safetensors under another name, and an index that leads there. */
static void write_index(void)
{
    struct bytes b = read_all("model.safetensors"), index = {0};
    uint64_t header_bytes;
    memcpy(&header_bytes, b.data, 8);
    json_t *header = json_loadb((const char *)b.data + 8, (size_t)header_bytes, 0, NULL), *unused;
    const char *name;
    put_text(&index, "{\"metadata\":{\"total_size\":1},\"weight_map\":{");
    json_object_foreach(header, name, unused)
    {
        (void)unused;
        put_text(&index, index.data[index.count - 1] == '{' ? "\"" : ",\"");
        put_text(&index, name);
        put_text(&index, "\":\"part.safetensors\"");
    }
    put_text(&index, "}}");
    write_file("part.safetensors", b.data, b.count);
    write_file("model.safetensors.index.json", index.data, index.count);
    unlink(path_of("model.safetensors"));
    json_decref(header);
    free(b.data);
    free(index.data);
}

/* Heap a load may take for each byte of the mutated file. JSON in memory takes many times its text: an empty list or
 * object of three bytes takes 200 and more. Weights take twice theirs where f16 becomes f32. */
static const struct kind_of_file {
    const char *what, *file;
    bool is_gguf, indexed;
    size_t factor;
} kinds[] = {
    {"GGUF", "m.gguf", true, false, 16},
    {"safetensors", "model.safetensors", false, false, 100},
    {"index of shards", "model.safetensors.index.json", false, true, 100},
    {"config.json", "config.json", false, false, 100},
    {"tokenizer.json", "tokenizer.json", false, false, 100},
};
#define KINDS (sizeof kinds / sizeof *kinds)

static void write_model(const struct kind_of_file *kind, unsigned which)
{
    static const char *const tokenizers[] = {"llama3", "llama2", "first", "qwen"};
    static const enum kind families[] = {LLAMA, QWEN2, QWEN3, LLAMA};
    if (kind->is_gguf) {
        write_gguf((enum kind)which, which % 2, NULL);
        return;
    }
    write_hf(families[which], (struct hf_options){.dtype = (enum samkv_dtype)(which % 3), .tied = which % 2});
    if (strcmp(kind->file, "tokenizer.json") == 0) {
        char *text = tokenizer_text(tokenizers[which]);
        write_text("tokenizer.json", text);
        free(text);
    }
    if (kind->indexed)
        write_index();
}

START_TEST(every_mutation_is_refused_or_loads)
{
    const struct kind_of_file *kind = &kinds[_i];
    const char *first = getenv("SAMKV_TEST_SEED"), *is_long = getenv("SAMKV_TEST_LONG");
    uint64_t begin = first ? strtoull(first, NULL, 10) : 0;
    uint64_t runs = is_long && *is_long && strcmp(is_long, "0") ? LONG_RUNS : SHORT_RUNS;
    struct tally tally = {0};
    device = (struct samkv_device){.ops = &plain_ops, .dtype = SAMKV_F32, .unified = true, .name = "plain"};
    for (unsigned which = 0; which < 4; which++) {
        write_model(kind, which);
        struct bytes whole = read_all(kind->file);
        char path[512];
        snprintf(path, sizeof path, "%s", kind->is_gguf ? path_of(kind->file) : dir);
        struct tally unharmed = {0};
        load(path, whole.count, kind->factor, 0, &unharmed);
        ck_assert_msg(unharmed.loaded == 1, "%s %u does not load as it is", kind->what, which);
        for (uint64_t i = which; i < runs; i += 4) {
            struct random r = {(begin + i) * 1000003 + (uint64_t)_i};
            struct bytes b = {0};
            put(&b, whole.data, whole.count);
            mutate(&b, &r);
            write_file(kind->file, b.data, b.count);
            load(path, b.count, kind->factor, begin + i, &tally);
            free(b.data);
        }
        free(whole.data);
        teardown();
        mkdir(dir, 0700);
    }
    printf("%-16s %6u refused, %6u loaded; heap at most %s", kind->what, tally.refused, tally.loaded,
           heap_is_counted() ? "" : "not counted without a sanitizer\n");
    if (heap_is_counted())
        printf("%zu bytes; above %zu KiB, %.1f bytes a byte of file (allowed: %zu)\n", tally.most_bytes,
               BASE_BYTES >> 10, tally.most, kind->factor);
    fflush(stdout);
    ck_assert_uint_eq(tally.refused + tally.loaded, runs);
    ck_assert_uint_gt(tally.refused, runs / 5); /* the mutations reach what is checked */
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("mutated");
    TCase *tests = tcase_create("mutated");
    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_set_timeout(tests, 3000);
    tcase_add_loop_test(tests, every_mutation_is_refused_or_loads, 0, (int)KINDS);
    suite_add_tcase(suite, tests);
    return run_tests(suite);
}
