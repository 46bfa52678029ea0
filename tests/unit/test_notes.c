#include "tests/unit/store_fixture.h"

#include "daemon/store/notes.h"

static struct fixture_directory dir;
static struct samkv_store *store;
static struct samkv_error err;

static void setup(void)
{
    fixture_directory_make(&dir);
    store = fixture_open(&dir, 0);
}

static void teardown(void)
{
    samkv_store_close(store);
    fixture_directory_remove(&dir);
}

/* The note's text, or "(status)". */
static const char *read_note(const char *name)
{
    static char text[SAMKV_NOTE_MAX_BYTES + 1];
    struct samkv_snapshot *snapshot;
    size_t bytes;
    ck_assert_int_eq(samkv_snapshot_begin(store, &snapshot, &err), SAMKV_OK);
    enum samkv_status st = samkv_snapshot_note(snapshot, name, strlen(name), text, &bytes, &err);
    samkv_snapshot_end(snapshot);
    if (st != SAMKV_OK)
        snprintf(text, sizeof text, "(%s)", samkv_status_name(st));
    else
        text[bytes] = 0;
    return text;
}

static enum samkv_status put(const char *name, const char *value)
{
    return samkv_store_note_put(store, name, strlen(name), value, strlen(value), &err);
}

START_TEST(a_note_is_what_was_put_last_and_outlives_the_process_and_a_compaction)
{
    FIXTURE_OK(put("calibration/one", "first"));
    FIXTURE_OK(put("calibration/one", "second"));
    FIXTURE_OK(put("schema", "not the schema's record"));
    ck_assert_str_eq(read_note("calibration/one"), "second");
    samkv_store_close(store);
    store = fixture_open(&dir, 0);
    ck_assert_str_eq(read_note("calibration/one"), "second");
    FIXTURE_OK(samkv_store_compact(store, NULL, NULL, &err));
    ck_assert_str_eq(read_note("calibration/one"), "second");
    ck_assert_str_eq(read_note("schema"), "not the schema's record");
    ck_assert_str_eq(read_note("calibration/two"), "(NOT_FOUND)");
}
END_TEST

START_TEST(a_removed_note_is_gone)
{
    FIXTURE_OK(put("n", ""));
    ck_assert_str_eq(read_note("n"), "");
    FIXTURE_OK(samkv_store_note_remove(store, "n", 1, &err));
    ck_assert_str_eq(read_note("n"), "(NOT_FOUND)");
    ck_assert_int_eq(samkv_store_note_remove(store, "n", 1, &err), SAMKV_NOT_FOUND);
    ck_assert_int_eq(samkv_store_note_remove(store, "", 0, &err), SAMKV_NOT_FOUND);
}
END_TEST

START_TEST(what_is_too_long_is_refused)
{
    char name[SAMKV_NOTE_NAME_BYTES + 1], value[SAMKV_NOTE_MAX_BYTES + 1];
    memset(name, 'n', sizeof name);
    memset(value, 'v', sizeof value);
    FIXTURE_OK(samkv_store_note_put(store, name, sizeof name - 1, value, sizeof value - 1, &err));
    ck_assert_int_eq(samkv_store_note_put(store, name, sizeof name, value, 1, &err), SAMKV_INVALID);
    ck_assert_int_eq(samkv_store_note_put(store, name, 1, value, sizeof value, &err), SAMKV_INVALID);
    ck_assert_int_eq(samkv_store_note_put(store, name, 0, value, 1, &err), SAMKV_INVALID);
    ck_assert_str_eq(read_note("n"), "(NOT_FOUND)");
}
END_TEST

START_TEST(a_damaged_note_is_corrupt_and_can_be_put_anew)
{
    char path[128], *bytes;
    struct stat st;
    FIXTURE_OK(put("n", "a text that is easily found"));
    samkv_store_close(store);
    snprintf(path, sizeof path, "%s/data.mdb", dir.path);
    FILE *f = fopen(path, "r+");
    ck_assert_ptr_nonnull(f);
    ck_assert_int_eq(fstat(fileno(f), &st), 0);
    bytes = malloc((size_t)st.st_size);
    ck_assert_ptr_nonnull(bytes);
    ck_assert_uint_eq(fread(bytes, 1, (size_t)st.st_size, f), (size_t)st.st_size);
    for (char *at = bytes; (at = memmem(at, (size_t)(bytes + st.st_size - at), "easily", 6)); at++)
        memcpy(at, "hardly", 6);
    rewind(f);
    ck_assert_uint_eq(fwrite(bytes, 1, (size_t)st.st_size, f), (size_t)st.st_size);
    fclose(f);
    free(bytes);
    store = fixture_open(&dir, 0);
    ck_assert_str_eq(read_note("n"), "(CORRUPT)");
    FIXTURE_OK(put("n", "sound"));
    ck_assert_str_eq(read_note("n"), "sound");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("notes");
    TCase *tests = tcase_create("notes");
    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_add_test(tests, a_note_is_what_was_put_last_and_outlives_the_process_and_a_compaction);
    tcase_add_test(tests, a_removed_note_is_gone);
    tcase_add_test(tests, what_is_too_long_is_refused);
    tcase_add_test(tests, a_damaged_note_is_corrupt_and_can_be_put_anew);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
