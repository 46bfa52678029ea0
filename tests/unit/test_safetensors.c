/* safetensors: what is in a good file, and that no bad one gets past the header. */
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/model/safetensors.h"
#include "tests/unit/model_files.h"

static struct samkv_error why;

static struct bytes make(const char *header, size_t data_bytes)
{
    struct bytes b = {0};
    put_int(&b, strlen(header), 8);
    put_text(&b, header);
    for (size_t i = 0; i < data_bytes; i++)
        put_int(&b, i, 1);
    return b;
}

/* Four tensors over 34 bytes, not in the order of their names; an odd number of bytes before an F16. */
static const char good_header[] =
    "{\"__metadata__\":{\"format\":\"pt\"},\"z\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},"
    "\"a\":{\"dtype\":\"BF16\",\"shape\":[],\"data_offsets\":[24,26]},"
    "\"m\":{\"dtype\":\"I8\",\"shape\":[1,1,1,1,2],\"data_offsets\":[26,28]},"
    "\"h\":{\"dtype\":\"F16\",\"shape\":[3],\"data_offsets\":[28,34]},"
    "\"i\":{\"dtype\":\"I8\",\"shape\":[0],\"data_offsets\":[34,34]}}";

START_TEST(test_good)
{
    struct bytes b = make(good_header, 34);
    struct samkv_safetensors *s;
    ck_assert_int_eq(samkv_safetensors_from_bytes(b.data, b.count, &s, &why), SAMKV_OK);
    const uint8_t *data = b.data + 8 + strlen(good_header);
    struct samkv_tensor_view v;
    ck_assert_int_eq(samkv_safetensors_find(s, "z", &v, &why), SAMKV_OK);
    ck_assert(v.dims == 2 && v.shape[0] == 2 && v.shape[1] == 3 && v.bytes == 24);
    ck_assert(v.dtype == SAMKV_F32 && v.data == data);
    ck_assert_int_eq(samkv_safetensors_find(s, "a", &v, &why), SAMKV_OK);
    ck_assert(v.dims == 0 && v.dtype == SAMKV_BF16 && v.bytes == 2 && v.data == data + 24);
    ck_assert_int_eq(samkv_safetensors_find(s, "h", &v, &why), SAMKV_OK);
    ck_assert(v.dims == 1 && v.dtype == SAMKV_F16 && v.bytes == 6 && v.data == data + 28);
    ck_assert_int_eq(samkv_safetensors_find(s, "i", &v, &why), SAMKV_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(why.text, "I8"));
    ck_assert_int_eq(samkv_safetensors_find(s, "m", &v, &why), SAMKV_UNSUPPORTED);
    ck_assert_int_eq(samkv_safetensors_find(s, "missing", &v, &why), SAMKV_NOT_FOUND);
    ck_assert_int_eq(samkv_safetensors_find(s, "__metadata__", &v, &why), SAMKV_NOT_FOUND);
    size_t count;
    ck_assert(samkv_safetensors_bytes(s, &count) == b.data && count == b.count);
    samkv_safetensors_close(s);
    samkv_safetensors_close(NULL);
    free(b.data);
}
END_TEST

#define ONE(dtype, shape, offsets) "{\"t\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}}"

static const struct {
    const char *header;
    size_t data_bytes;
} bad[] = {
    {"", 0},
    {"[]", 0},
    {"{", 0},
    {"{\"t\":1}", 0},
    {"{\"t\":{}}", 0},
    {"{}", 1},                                                          /* a tail */
    {ONE("F32", "[2]", "[0,8]"), 7},                                    /* cut short */
    {ONE("F32", "[2]", "[0,8]"), 9},                                    /* a tail */
    {ONE("F32", "[2]", "[4,12]"), 12},                                  /* a hole */
    {ONE("F32", "[2]", "[8,0]"), 8},                                    /* backwards */
    {ONE("F32", "[2]", "[-8,0]"), 8},                                   /* negative */
    {ONE("F32", "[3]", "[0,8]"), 8},                                    /* larger than its bytes */
    {ONE("F32", "[1]", "[0,8]"), 8},                                    /* smaller than its bytes */
    {ONE("F32", "[-2]", "[0,8]"), 8},                                   /* negative shape */
    {ONE("F32", "[2.0]", "[0,8]"), 8},                                  /* no integer */
    {ONE("F32", "[4611686018427387906]", "[0,8]"), 8},                  /* · 4 wraps to 8 */
    {ONE("F32", "[4294967296,4294967296,2]", "[0,8]"), 8},              /* product wraps to 0 */
    {ONE("F32", "2", "[0,8]"), 8},                                      /* no list */
    {ONE("F32", "[2]", "[0,8,16]"), 8},                                 /* three offsets */
    {ONE("F32", "[2]", "[0,9223372036854775807]"), 8},                  /* beyond the file */
    {"{\"t\":{\"shape\":[2],\"data_offsets\":[0,8]}}", 8},              /* no type */
    {"{\"t\":{\"dtype\":\"F32\",\"data_offsets\":[0,8]}}", 8},          /* no shape */
    {"{\"t\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8},                   /* no offsets */
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}," /* overlap */
     "\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}}",
     12},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}," /* twice the same bytes */
     "\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}",
     8},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}," /* one name twice */
     "\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,16]}}",
     16},
};

START_TEST(test_bad)
{
    struct bytes b = make(bad[_i].header, bad[_i].data_bytes);
    struct samkv_safetensors *s = (void *)&b;
    ck_assert_msg(samkv_safetensors_from_bytes(b.data, b.count, &s, &why) == SAMKV_CORRUPT, "%s is accepted",
                  bad[_i].header);
    ck_assert_ptr_null(s);
    ck_assert_uint_gt(strlen(why.text), 0);
    free(b.data);
}
END_TEST

static void refuse_cut(const uint8_t *data, size_t count)
{
    struct samkv_safetensors *s;
    ck_assert_int_eq(samkv_safetensors_from_bytes(data, count, &s, &why), SAMKV_CORRUPT);
}

static void read_all(const uint8_t *data, size_t count)
{
    static const char *const names[] = {"z", "a", "m", "h", "i"};
    struct samkv_safetensors *s;
    if (samkv_safetensors_from_bytes(data, count, &s, &why))
        return;
    volatile uint8_t sum = 0;
    for (int i = 0; i < 5; i++) {
        struct samkv_tensor_view v;
        if (!samkv_safetensors_find(s, names[i], &v, &why))
            for (uint64_t j = 0; j < v.bytes; j++)
                sum = (uint8_t)(sum + ((const uint8_t *)v.data)[j]);
    }
    samkv_safetensors_close(s);
}

START_TEST(test_every_cut_and_flip)
{
    struct bytes b = make(good_header, 34);
    for (size_t n = 0; n < b.count; n++)
        with_exact_copy(b.data, n, refuse_cut);
    static const uint8_t values[] = {0, 1, '0', '9', '"', '-', ',', ']', '}', 0x80, 0xff};
    for (size_t n = 0; n < b.count - 34; n++) {
        uint8_t was = b.data[n];
        for (size_t i = 0; i < sizeof values; i++) {
            b.data[n] = values[i];
            with_exact_copy(b.data, b.count, read_all);
        }
        b.data[n] = was;
    }
    free(b.data);
}
END_TEST

START_TEST(test_header_sizes)
{
    struct samkv_safetensors *s;
    static const uint64_t sizes[] = {1, 1 << 20, UINT64_MAX, UINT64_MAX - 7, (uint64_t)INT64_MAX};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        struct bytes b = {0};
        put_int(&b, sizes[i], 8);
        put_text(&b, "{}");
        ck_assert_int_eq(samkv_safetensors_from_bytes(b.data, b.count, &s, &why), SAMKV_CORRUPT);
        free(b.data);
    }
    /* A header that would have the JSON parser allocate without bound; nesting without bound. */
    size_t large = 5u << 20;
    struct bytes b = {0};
    put_int(&b, large, 8);
    while (b.count < large + 8)
        put_text(&b, "[");
    ck_assert_int_eq(samkv_safetensors_from_bytes(b.data, b.count, &s, &why), SAMKV_TOO_LARGE);
    memcpy(b.data, &(uint64_t){1 << 20}, 8);
    ck_assert_int_eq(samkv_safetensors_from_bytes(b.data, b.count, &s, &why), SAMKV_CORRUPT);
    free(b.data);
}
END_TEST

START_TEST(test_files)
{
    char dir[] = P_tmpdir "/samkv-safetensors-XXXXXX", path[128];
    struct samkv_safetensors *s;
    ck_assert_ptr_nonnull(mkdtemp(dir));
    ck_assert_int_eq(samkv_safetensors_open(dir, &s, &why), SAMKV_INVALID);
    snprintf(path, sizeof path, "%s/f", dir);
    ck_assert_int_eq(samkv_safetensors_open(path, &s, &why), SAMKV_NOT_FOUND);
    ck_assert_int_eq(mkfifo(path, 0600), 0);
    ck_assert_int_eq(samkv_safetensors_open(path, &s, &why), SAMKV_INVALID); /* and does not hang */
    unlink(path);
    FILE *f = fopen(path, "w");
    fclose(f);
    ck_assert_int_eq(samkv_safetensors_open(path, &s, &why), SAMKV_CORRUPT);
    ck_assert_ptr_nonnull(strstr(why.text, "empty"));
    struct bytes b = make(good_header, 34);
    f = fopen(path, "w");
    fwrite(b.data, 1, b.count, f);
    fclose(f);
    ck_assert_int_eq(samkv_safetensors_open(path, &s, &why), SAMKV_OK);
    size_t count;
    ck_assert(!memcmp(samkv_safetensors_bytes(s, &count), b.data, b.count) && count == b.count);
    samkv_safetensors_close(s);
    unlink(path);
    rmdir(dir);
    free(b.data);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("safetensors");
    TCase *cases = tcase_create("safetensors");
    tcase_add_test(cases, test_good);
    tcase_add_loop_test(cases, test_bad, 0, (int)(sizeof bad / sizeof *bad));
    tcase_add_test(cases, test_every_cut_and_flip);
    tcase_add_test(cases, test_header_sizes);
    tcase_add_test(cases, test_files);
    tcase_set_timeout(cases, 120);
    suite_add_tcase(suite, cases);
    return run_tests(suite);
}
