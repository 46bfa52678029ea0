/* A reply's memory: a valid safetensors file whose offsets are those that the reply says, and that nobody can change.
 */
#include <check.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daemon/fetch/memory.h"
#include "daemon/model/safetensors.h"

static const struct samkv_kv_shape shapes[] = {
    {1, 1, 2, SAMKV_F32}, {3, 2, 8, SAMKV_F32}, {5, 3, 6, SAMKV_BF16}, {2, 1, 80, SAMKV_F16}, {80, 8, 128, SAMKV_BF16}};

/* Every byte of the data gets a value that depends on where it is. */
static void fill(struct samkv_reply_memory *m)
{
    for (uint64_t i = m->layout.k_offset; i < m->layout.memory_bytes; i++)
        m->map[i] = (uint8_t)(i * 131 % 251);
}

static void check_tensor(const struct samkv_safetensors *file, char kind, uint32_t layer,
                         const struct samkv_reply_memory *m, uint64_t offset)
{
    char name[32];
    struct samkv_error err = {0};
    struct samkv_tensor_view view;
    size_t bytes;
    snprintf(name, sizeof name, "%c.%u", kind, layer);
    ck_assert_msg(samkv_safetensors_find(file, name, &view, &err) == SAMKV_OK, "%s: %s", name, err.text);
    const uint8_t *base = samkv_safetensors_bytes(file, &bytes);
    ck_assert_uint_eq((uint64_t)((const uint8_t *)view.data - base), offset + layer * m->layout.layer_stride);
    ck_assert_uint_eq(view.bytes, m->layout.layer_stride);
    ck_assert_int_eq(view.dims, 3);
    ck_assert_uint_eq(view.shape[0], m->layout.rows);
    ck_assert_uint_eq(view.shape[1], m->layout.kv_heads);
    ck_assert_uint_eq(view.shape[2], m->layout.head_dim);
    ck_assert_int_eq(view.dtype, m->layout.dtype);
    for (uint64_t i = 0; i < view.bytes; i++)
        ck_assert_uint_eq(((const uint8_t *)view.data)[i],
                          (uint8_t)((offset + layer * m->layout.layer_stride + i) * 131 % 251));
}

START_TEST(test_is_a_safetensors_file)
{
    static const uint32_t rows[] = {1, 2, 17, 33};
    const struct samkv_kv_shape *shape = &shapes[_i];
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        struct samkv_reply_memory m;
        struct samkv_safetensors *file;
        struct samkv_error err = {0};
        char path[64];
        ck_assert_msg(samkv_reply_memory_new(&m, shape, rows[r], r % 2 ? 11 : 0, true, &err) == SAMKV_OK, "%s",
                      err.text);
        ck_assert_uint_eq(m.layout.k_offset % 64, 0);
        ck_assert(r % 2 ? m.layout.logits_offset + 11 * 4 == m.layout.memory_bytes : m.layout.logits_offset == 0);
        fill(&m);
        ck_assert(samkv_reply_memory_seal(&m, &err) == SAMKV_OK);
        ck_assert_uint_eq((uint64_t)lseek(m.fd, 0, SEEK_END), m.layout.memory_bytes);
        snprintf(path, sizeof path, "/proc/self/fd/%d", m.fd);
        ck_assert_msg(samkv_safetensors_open(path, &file, &err) == SAMKV_OK, "%s", err.text);
        for (uint32_t l = 0; l < shape->layers; l++) {
            check_tensor(file, 'k', l, &m, m.layout.k_offset);
            check_tensor(file, 'v', l, &m, m.layout.v_offset);
        }
        samkv_safetensors_close(file);
        samkv_reply_memory_free(&m);
    }
}
END_TEST

START_TEST(test_is_sealed)
{
    struct samkv_reply_memory m;
    ck_assert(samkv_reply_memory_new(&m, &shapes[1], 5, 0, true, NULL) == SAMKV_OK);
    ck_assert(samkv_reply_memory_seal(&m, NULL) == SAMKV_OK);
    ck_assert_int_eq(fcntl(m.fd, F_GET_SEALS), F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL);
    ck_assert_int_eq(pwrite(m.fd, "x", 1, 0), -1);
    ck_assert_int_eq(ftruncate(m.fd, 0), -1);
    ck_assert_ptr_eq(mmap(NULL, 64, PROT_WRITE, MAP_SHARED, m.fd, 0), MAP_FAILED);
    samkv_reply_memory_free(&m);
}
END_TEST

START_TEST(test_too_large_is_an_error)
{
    const struct samkv_kv_shape huge = {512, 1024, 512, SAMKV_F32};
    struct samkv_reply_memory m;
    struct samkv_error err = {0};
    ck_assert_int_eq(samkv_reply_memory_new(&m, &huge, 1u << 30, 0, true, &err), SAMKV_TOO_LARGE);
    ck_assert(strlen(err.text) > 0);
    ck_assert_int_eq(samkv_reply_memory_new(&m, &shapes[4], 1u << 29, 0, true, &err), SAMKV_TOO_LARGE);
    ck_assert_int_eq(m.fd, -1);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("memory");
    TCase *tc = tcase_create("memory");
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, test_is_a_safetensors_file, 0, sizeof shapes / sizeof *shapes);
    tcase_add_test(tc, test_is_sealed);
    tcase_add_test(tc, test_too_large_is_an_error);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
