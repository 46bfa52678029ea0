#include "tests/unit/store_fixture.h"

#include <fcntl.h>
#include <sys/stat.h>

#include "daemon/store/pages.h"
#include "daemon/store/salvage.h"

#define DOCUMENTS 3
#define PAGE      4096

static struct fixture_directory dir, fresh;
static struct fixture_document documents[DOCUMENTS];
static struct samkv_salvage_report report;
static struct samkv_error err;
static uint8_t *bytes;
static size_t count;

static const char *const ids[DOCUMENTS] = {"one", "two", "three"};

static const char *data_path(void)
{
    static char path[128];
    snprintf(path, sizeof path, "%s/data.mdb", dir.path);
    return path;
}

static void setup(void)
{
    struct stat st;
    fixture_directory_make(&dir);
    fixture_directory_make(&fresh);
    struct samkv_store *s = fixture_open(&dir, 16 << 20);
    for (uint32_t i = 0; i < DOCUMENTS; i++)
        fixture_document_make(&documents[i], i, (struct samkv_kv_shape){2, 2, 16, SAMKV_F32}, 50 + 60 * i, 16);
    struct samkv_collection c = {.name = "c",
                                 .fingerprint = {1, 2, 3},
                                 .shape = documents[0].m.shape,
                                 .heads = documents[0].m.heads,
                                 .block_tokens = 16,
                                 .init_tokens = 16,
                                 .local_tokens = 16};
    FIXTURE_OK(samkv_store_collection_put(s, &c, &err));
    for (uint32_t i = 0; i < DOCUMENTS; i++)
        FIXTURE_OK(fixture_ingest(s, &documents[i], ids[i], &err));
    samkv_store_close(s);
    int fd = open(data_path(), O_RDONLY);
    ck_assert(fd >= 0 && fstat(fd, &st) == 0);
    count = (size_t)st.st_size;
    bytes = malloc(count);
    ck_assert_int_eq(read(fd, bytes, count), (ssize_t)count);
    close(fd);
}

static void teardown(void)
{
    for (uint32_t i = 0; i < DOCUMENTS; i++)
        fixture_document_free(&documents[i]);
    free(bytes);
    fixture_directory_remove(&dir);
    fixture_directory_remove(&fresh);
}

static struct samkv_store *salvaged(void)
{
    int fd = open(data_path(), O_WRONLY | O_TRUNC);
    ck_assert_int_eq(write(fd, bytes, count), (ssize_t)count);
    close(fd);
    FIXTURE_OK(samkv_store_salvage(dir.path, fresh.path, &report, &err));
    return fixture_open(&fresh, 0);
}

static bool is_a_leaf_with(const uint8_t *page, const void *word, size_t length)
{
    uint16_t flags;
    memcpy(&flags, page + 10, sizeof flags);
    return flags == SAMKV_PAGE_IS_LEAF && memmem(page, PAGE, word, length);
}

/* Overwrites every leaf, old ones too, that holds these bytes. */
static void destroy_leaves(const void *word, size_t length)
{
    int destroyed = 0;
    for (size_t at = 2 * PAGE; at + PAGE <= count; at += PAGE)
        if (is_a_leaf_with(bytes + at, word, length)) {
            memset(bytes + at, 0x5a, PAGE);
            destroyed++;
        }
    ck_assert_int_gt(destroyed, 0);
}

static void assert_all_there(struct samkv_store *s)
{
    for (uint32_t i = 0; i < DOCUMENTS; i++)
        ck_assert_int_eq(fixture_check_name(s, ids[i], &documents[i]), SAMKV_OK);
    struct samkv_store_stats stats = fixture_stats(s);
    ck_assert_uint_eq(stats.documents, DOCUMENTS);
    ck_assert_uint_eq(stats.names, DOCUMENTS);
    ck_assert_uint_eq(report.documents, DOCUMENTS);
    ck_assert_uint_eq(report.names, DOCUMENTS);
    ck_assert_uint_eq(report.names_lost, 0);
}

START_TEST(a_sound_store_is_copied_whole)
{
    struct samkv_store *s = salvaged();
    assert_all_there(s);
    ck_assert_uint_eq(report.damaged, 0);
    ck_assert_uint_eq(report.remade, 0);
    FIXTURE_OK(samkv_store_name_remove(s, "c", "one", &err)); /* its count is right: it goes with its last name */
    ck_assert_uint_eq(fixture_stats(s).documents, DOCUMENTS - 1);
    samkv_store_close(s);
}
END_TEST

START_TEST(without_meta_pages_every_leaf_is_searched)
{
    memset(bytes, 0, 2 * PAGE);
    struct samkv_store *s = salvaged();
    assert_all_there(s);
    samkv_store_close(s);
}
END_TEST

START_TEST(without_the_root_of_databases_too)
{
    destroy_leaves("collection", 10); /* the names of the databases */
    struct samkv_store *s = salvaged();
    assert_all_there(s);
    samkv_store_close(s);
}
END_TEST

/* Records of documents stand under their keys of 16 bytes: found by their kind, in their header. */
START_TEST(lost_documents_are_made_again_from_their_tokens)
{
    const uint8_t document[6] = {'S', 'K', 'R', '1', 1, 3};
    destroy_leaves(document, sizeof document);
    struct samkv_store *s = salvaged();
    ck_assert_uint_eq(report.remade, DOCUMENTS);
    for (uint32_t i = 0; i < DOCUMENTS; i++)
        ck_assert_int_eq(fixture_check_name(s, ids[i], &documents[i]), SAMKV_OK);
    samkv_store_close(s);
}
END_TEST

START_TEST(a_document_without_a_name_gets_one)
{
    char id[64];
    int at = snprintf(id, sizeof id, "salvaged/");
    for (int i = 0; i < SAMKV_KEY_BYTES; i++)
        at += snprintf(id + at, sizeof id - (size_t)at, "%02x", documents[1].m.key.bytes[i]);
    destroy_leaves("c\0two", 5);
    struct samkv_store *s = salvaged();
    ck_assert_uint_gt(report.renamed, 0);
    ck_assert_int_eq(fixture_check_name(s, id, &documents[1]), SAMKV_OK);
    ck_assert_uint_eq(fixture_stats(s).documents, DOCUMENTS);
    samkv_store_close(s);
}
END_TEST

START_TEST(a_document_that_cannot_be_named_is_not_in_the_way)
{
    destroy_leaves("c\0two", 5);
    const uint8_t collection[6] = {'S', 'K', 'R', '1', 1, 1};
    destroy_leaves(collection, sizeof collection);
    struct samkv_store *s = salvaged();
    ck_assert_uint_eq(report.renamed, 0);
    ck_assert_uint_lt(fixture_stats(s).documents, DOCUMENTS); /* old leaves have a name or two */
    for (uint32_t i = 0; i < DOCUMENTS; i++) {
        FIXTURE_OK(fixture_ingest(s, &documents[i], ids[i], &err));
        ck_assert_int_eq(fixture_check_name(s, ids[i], &documents[i]), SAMKV_OK);
    }
    samkv_store_close(s);
}
END_TEST

START_TEST(a_name_without_a_document_is_told_and_goes)
{
    const uint8_t document[6] = {'S', 'K', 'R', '1', 1, 3}, tokens[6] = {'S', 'K', 'R', '1', 1, 4};
    destroy_leaves(document, sizeof document);
    destroy_leaves(tokens, sizeof tokens);
    struct samkv_store *s = salvaged();
    ck_assert_uint_eq(report.names_lost, DOCUMENTS);
    ck_assert_uint_eq(fixture_stats(s).names, 0);
    ck_assert_uint_eq(fixture_stats(s).documents, 0);
    for (uint32_t i = 0; i < DOCUMENTS; i++) { /* what is left of them is not in the way */
        FIXTURE_OK(fixture_ingest(s, &documents[i], ids[i], &err));
        ck_assert_int_eq(fixture_check_name(s, ids[i], &documents[i]), SAMKV_OK);
    }
    samkv_store_close(s);
}
END_TEST

START_TEST(places_that_will_not_do)
{
    ck_assert_int_eq(samkv_store_salvage(dir.path, dir.path, &report, &err), SAMKV_INVALID);
    ck_assert_int_eq(samkv_store_salvage("/nowhere/at/all", fresh.path, &report, &err), SAMKV_NOT_FOUND);
    struct fixture_directory other;
    fixture_directory_make(&other);
    struct samkv_store *s = fixture_open(&dir, 16 << 20);
    ck_assert_int_eq(samkv_store_salvage(dir.path, other.path, &report, &err), SAMKV_BUSY);
    samkv_store_close(s);
    fixture_directory_remove(&other);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("salvage");
    TCase *tc = tcase_create("salvage");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, a_sound_store_is_copied_whole);
    tcase_add_test(tc, without_meta_pages_every_leaf_is_searched);
    tcase_add_test(tc, without_the_root_of_databases_too);
    tcase_add_test(tc, lost_documents_are_made_again_from_their_tokens);
    tcase_add_test(tc, a_document_without_a_name_gets_one);
    tcase_add_test(tc, a_document_that_cannot_be_named_is_not_in_the_way);
    tcase_add_test(tc, a_name_without_a_document_is_told_and_goes);
    tcase_add_test(tc, places_that_will_not_do);
    suite_add_tcase(suite, tc);
    return fixture_run(suite);
}
