/* A GGUF model over several files: found by the first one's name, merged, and every mix-up refused by name. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "daemon/model/gguf.h"
#include "tests/unit/model_files.h"

static struct samkv_error why;
static char folder[64];

/* What one part says of itself. */
struct part {
    uint32_t number, count, tensors;
    const char *tensor; /* its one tensor */
    float value;
};

static void write_part(const char *name, const struct part *p)
{
    struct gguf_maker g = {0};
    char path[128];
    gguf_string(&g, "general.architecture", "llama");
    gguf_u32(&g, "split.no", p->number);
    gguf_u32(&g, "split.count", p->count);
    if (p->tensors)
        gguf_u32(&g, "split.tensors.count", p->tensors);
    gguf_tensor(&g, p->tensor, SAMKV_GGML_F32, 1, 0, &p->value, sizeof p->value);
    struct bytes b = gguf_finish(&g);
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    ck_assert_ptr_nonnull(file);
    ck_assert_uint_eq(fwrite(b.data, 1, b.count, file), b.count);
    fclose(file);
    free(b.data);
}

static enum samkv_status open_first(const char *name, struct samkv_gguf **out)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    why = (struct samkv_error){0};
    return samkv_gguf_open(path, out, &why);
}

static void refuse(const char *name, enum samkv_status status, const char *named)
{
    struct samkv_gguf *g;
    enum samkv_status got = open_first(name, &g);
    ck_assert_msg(got == status, "%s: %s: %s", name, samkv_status_name(got), why.text);
    ck_assert_msg(strstr(why.text, named) && !strchr(why.text, '\n'), "%s is not named: %s", named, why.text);
    ck_assert_ptr_null(g);
}

static void setup(void)
{
    strcpy(folder, "/tmp/samkv-split-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    write_part("m-00001-of-00003.gguf", &(struct part){0, 3, 3, "b", 1});
    write_part("m-00002-of-00003.gguf", &(struct part){1, 3, 0, "c", 2});
    write_part("m-00003-of-00003.gguf", &(struct part){2, 3, 0, "a", 3});
}

static void teardown(void)
{
    char command[96];
    snprintf(command, sizeof command, "rm -r %s", folder);
    ck_assert_int_eq(system(command), 0);
}

START_TEST(test_merged)
{
    struct samkv_gguf *g;
    ck_assert_msg(open_first("m-00001-of-00003.gguf", &g) == SAMKV_OK, "%s", why.text);
    ck_assert_uint_eq(samkv_gguf_tensor_count(g), 3);
    ck_assert_uint_eq(samkv_gguf_file_count(g), 3);
    static const char *const names[] = {"b", "c", "a"};
    for (size_t i = 0; i < 3; i++) {
        size_t bytes;
        struct samkv_gguf_tensor t;
        float value;
        ck_assert(*samkv_gguf_tensor_name(g, i, &bytes) == *names[i] && bytes == 1);
        ck_assert_int_eq(samkv_gguf_tensor(g, names[i], &t, &why), SAMKV_OK);
        memcpy(&value, t.data, sizeof value);
        ck_assert(value == (float)i + 1);
        ck_assert_ptr_nonnull(samkv_gguf_bytes(g, i, &bytes));
        ck_assert_uint_gt(bytes, 64);
    }
    samkv_gguf_close(g);
}
END_TEST

START_TEST(test_refused)
{
    char path[128];
    refuse("m-00002-of-00003.gguf", SAMKV_INVALID, "part 2 of a model of 3 files: name the first one");
    write_part("plain.gguf", &(struct part){0, 3, 3, "b", 1});
    refuse("plain.gguf", SAMKV_INVALID, "-00001-of-00003.gguf");
    write_part("m-00002-of-00003.gguf", &(struct part){2, 3, 0, "c", 2});
    refuse("m-00001-of-00003.gguf", SAMKV_CORRUPT, "part 2 of 3");
    write_part("m-00002-of-00003.gguf", &(struct part){1, 3, 0, "a", 2});
    refuse("m-00001-of-00003.gguf", SAMKV_CORRUPT, "tensor a occurs in two files");
    write_part("m-00002-of-00003.gguf", &(struct part){1, 3, 0, "c", 2});
    write_part("m-00001-of-00003.gguf", &(struct part){0, 3, 4, "b", 1});
    refuse("m-00001-of-00003.gguf", SAMKV_CORRUPT, "3 tensors instead of 4");
    snprintf(path, sizeof path, "%s/m-00003-of-00003.gguf", folder);
    ck_assert_int_eq(truncate(path, 60), 0);
    refuse("m-00001-of-00003.gguf", SAMKV_CORRUPT, "m-00003-of-00003.gguf");
    ck_assert_int_eq(unlink(path), 0);
    refuse("m-00001-of-00003.gguf", SAMKV_NOT_FOUND, "m-00003-of-00003.gguf");
    write_part("h-00001-of-99999.gguf", &(struct part){0, 99999, 3, "b", 1});
    refuse("h-00001-of-99999.gguf", SAMKV_TOO_LARGE, "99999 files");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("gguf_split");
    TCase *cases = tcase_create("gguf_split");
    tcase_add_checked_fixture(cases, setup, teardown);
    tcase_add_test(cases, test_merged);
    tcase_add_test(cases, test_refused);
    suite_add_tcase(suite, cases);
    return run_tests(suite);
}
