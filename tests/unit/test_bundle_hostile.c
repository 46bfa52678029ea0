#include "tests/unit/bundle_fixture.h"

#include "daemon/store/bundle_entry.h"
#include "daemon/store/fields.h"
#include "daemon/store/values.h"

/*
 * Bundles that were cut, damaged or made up: refused, or whole and right documents of them imported. Never a crash,
 * never memory that the bytes do not back, never a byte that nobody stored.
 */
#define DOCUMENTS 3

static const char *const ids[DOCUMENTS] = {"a", "b", "c"};
static const struct samkv_kv_shape tiny = {1, 1, 2, SAMKV_F32};

static struct fixture_directory dir;
static struct samkv_store *store;
static struct fixture_document documents[DOCUMENTS];
static struct memory_stream bundle, bad;
static struct samkv_bundle_progress done;
static struct samkv_error err;

static void setup(void)
{
    struct samkv_collection c = bundle_collection(tiny, 2, SAMKV_CODEC_ZSTD);
    fixture_directory_make(&dir);
    store = fixture_open(&dir, 0);
    FIXTURE_OK(samkv_store_collection_put(store, &c, &err));
    for (uint32_t i = 0; i < DOCUMENTS; i++) {
        fixture_document_make(&documents[i], 1 + i, tiny, 3 + i, 2);
        FIXTURE_OK(fixture_ingest(store, &documents[i], ids[i], &err));
    }
    bundle_export(store, &bundle, &done);
    samkv_store_close(store);
    fixture_directory_remove(&dir);
    fixture_directory_make(&dir);
    store = fixture_open(&dir, 0);
}

static void teardown(void)
{
    samkv_store_close(store);
    fixture_directory_remove(&dir);
    for (uint32_t i = 0; i < DOCUMENTS; i++)
        fixture_document_free(&documents[i]);
    memory_free(&bundle);
    memory_free(&bad);
}

static void copy_bundle(size_t count)
{
    memory_free(&bad);
    FIXTURE_OK(memory_write(&bad, bundle.data, count, &err));
}

/* Every name that is there leads to its document, and that is right. Returns how many, and removes them. */
static uint64_t assert_all_right(void)
{
    uint64_t names = 0;
    for (uint32_t i = 0; i < DOCUMENTS; i++) {
        enum samkv_status st = fixture_check_name(store, ids[i], &documents[i]);
        ck_assert_msg(st == SAMKV_OK || st == SAMKV_NOT_FOUND, "%s: %s", ids[i], samkv_status_name(st));
        names += st == SAMKV_OK;
        if (st == SAMKV_OK)
            FIXTURE_OK(samkv_store_name_remove(store, "c", ids[i], &err));
    }
    ck_assert_uint_eq(fixture_stats(store).names, 0);
    return names;
}

static void assert_refused(enum samkv_status st)
{
    if (st != SAMKV_CORRUPT && st != SAMKV_INVALID && st != SAMKV_UNSUPPORTED && st != SAMKV_TOO_LARGE) /* quick */
        ck_abort_msg("%s: %s", samkv_status_name(st), err.text);
    ck_assert_uint_gt(strlen(err.text), 20);
}

START_TEST(every_truncation)
{
    uint64_t names = 0;
    for (size_t cut = 0; cut < bundle.count; cut++) {
        copy_bundle(cut);
        bad.piece = cut % 3 ? 0 : 11;
        assert_refused(bundle_import(store, &bad, false, cut % 2, &done, &err));
        ck_assert_uint_eq(assert_all_right(), done.names);
        ck_assert_uint_ge(done.names, names); /* a longer beginning holds no less */
        names = done.names;
        ck_assert_int_ne(samkv_bundle_check(memory_rewind(&bad, cut % 2), NULL, NULL, NULL, &done, &err), SAMKV_OK);
    }
    ck_assert_uint_eq(names, DOCUMENTS); /* all but the trailer */
    FIXTURE_OK(bundle_import(store, &bundle, false, false, &done, &err));
    ck_assert_uint_eq(assert_all_right(), DOCUMENTS);
}
END_TEST

START_TEST(single_bytes_changed)
{
    uint64_t state = 42;
    for (int i = 0; i < 2000; i++) {
        copy_bundle(bundle.count);
        uint64_t r = fixture_random(&state);
        size_t at = (size_t)(r >> 8) % bundle.count;
        bad.data[at] ^= (uint8_t)(r % 255 + 1);
        assert_refused(bundle_import(store, &bad, false, i % 2, &done, &err));
        assert_all_right();
        ck_assert_int_ne(samkv_bundle_check(memory_rewind(&bad, i % 2), NULL, NULL, NULL, &done, &err), SAMKV_OK);
    }
}
END_TEST

START_TEST(changed_where_everything_is_there_already)
{
    /* Payloads that nobody needs are passed over; what is believed of the rest is still checked. */
    uint64_t state = 43;
    FIXTURE_OK(bundle_import(store, &bundle, false, false, &done, &err));
    for (int i = 0; i < 500; i++) {
        copy_bundle(bundle.count);
        uint64_t r = fixture_random(&state);
        bad.data[(size_t)(r >> 8) % bundle.count] ^= (uint8_t)(r % 255 + 1);
        enum samkv_status st = bundle_import(store, &bad, false, i % 2, &done, &err);
        if (st == SAMKV_OK)
            ck_assert_uint_eq(done.skipped, DOCUMENTS);
        else
            assert_refused(st);
        for (uint32_t d = 0; d < DOCUMENTS; d++)
            ck_assert_int_eq(fixture_check_name(store, ids[d], &documents[d]), SAMKV_OK);
    }
    assert_all_right();
}
END_TEST

START_TEST(garbage)
{
    uint64_t state = 44;
    for (int i = 0; i < 500; i++) {
        /* Nothing but noise, noise behind a good start, noise in the middle. */
        copy_bundle(i % 3 == 0   ? 0
                    : i % 3 == 1 ? SAMKV_BUNDLE_START_BYTES
                                 : (size_t)fixture_random(&state) % bundle.count);
        uint8_t noise[500];
        for (size_t b = 0; b < sizeof noise; b++)
            noise[b] = (uint8_t)fixture_random(&state);
        FIXTURE_OK(memory_write(&bad, noise, sizeof noise, &err));
        assert_refused(bundle_import(store, &bad, false, i % 2, &done, &err));
        assert_all_right();
    }
    copy_bundle(bundle.count);
    FIXTURE_OK(memory_write(&bad, bundle.data, bundle.count, &err));
    ck_assert_int_eq(bundle_import(store, &bad, false, true, &done, &err), SAMKV_INVALID); /* two in one */
    ck_assert_uint_eq(assert_all_right(), DOCUMENTS);
}
END_TEST

/* ------------------------------------------------------------------ with checksums that fit */

/* The n-th entry of `bad`: its head, and where its payload begins. */
static struct samkv_bundle_head find_entry(size_t n, size_t *payload)
{
    struct samkv_bundle_head head;
    size_t at = SAMKV_BUNDLE_START_BYTES;
    for (;; n--) {
        ck_assert_uint_le(at + SAMKV_BUNDLE_HEAD_BYTES, bad.count);
        FIXTURE_OK(samkv_bundle_head_decode(bad.data + at, &head));
        *payload = at + SAMKV_BUNDLE_HEAD_BYTES;
        if (n == 0)
            return head;
        at = *payload + (size_t)head.bytes;
    }
}

static void seal_entry(struct samkv_bundle_head head, size_t payload)
{
    head.sum = samkv_bundle_sum(bad.data + payload, (size_t)head.bytes);
    samkv_bundle_head_encode(&head, bad.data + payload - SAMKV_BUNDLE_HEAD_BYTES);
}

static size_t count_entries(void)
{
    size_t n = 0, payload;
    copy_bundle(bundle.count);
    while (find_entry(n, &payload).kind != SAMKV_BUNDLE_TRAILER)
        n++;
    return n + 1;
}

/* A payload's byte changes and the entry's checksum fits again: what is inside has to be noticed. */
START_TEST(payloads_changed_below_their_checksum)
{
    uint64_t state = 45;
    size_t entries = count_entries(), payload;
    for (int i = 0; i < 2000; i++) {
        copy_bundle(bundle.count);
        uint64_t r = fixture_random(&state);
        struct samkv_bundle_head head = find_entry((size_t)(r >> 40) % entries, &payload);
        bad.data[payload + (size_t)(r >> 8) % head.bytes] ^= (uint8_t)(r % 255 + 1);
        seal_entry(head, payload);
        assert_refused(bundle_import(store, &bad, false, i % 2, &done, &err));
        assert_all_right();
    }
}
END_TEST

/* Heads that say something else, with a checksum that fits. */
START_TEST(heads_that_lie)
{
    uint64_t state = 46;
    size_t entries = count_entries(), payload;
    static const uint64_t sizes[] = {0, 1, 15, 39, 40, 1 << 20, 1 << 30, UINT64_MAX / 2, UINT64_MAX - 31, UINT64_MAX};
    for (int i = 0; i < 2000; i++) {
        copy_bundle(bundle.count);
        uint64_t r = fixture_random(&state);
        struct samkv_bundle_head head = find_entry((size_t)(r >> 40) % entries, &payload), was = head;
        if (i % 3 == 0)
            head.kind = (enum samkv_bundle_kind)(r % 11);
        else if (i % 3 == 1)
            head.number = r % 2 ? (uint32_t)r : head.number + 1;
        else
            head.bytes = sizes[r % (sizeof sizes / sizeof *sizes)];
        samkv_bundle_head_encode(&head, bad.data + payload - SAMKV_BUNDLE_HEAD_BYTES);
        if (memcmp(&head, &was, sizeof head) != 0)
            assert_refused(bundle_import(store, &bad, false, i % 2, &done, &err));
        if (head.bytes >= 1 << 30) /* before a byte of it is read */
            ck_assert_ptr_nonnull(strstr(err.text, "too large"));
        assert_all_right();
    }
}
END_TEST

/* Replaces the payload of the n-th entry. */
static void replace_payload(size_t n, const void *bytes, size_t count)
{
    size_t payload;
    copy_bundle(bundle.count);
    struct samkv_bundle_head head = find_entry(n, &payload);
    size_t rest = payload + (size_t)head.bytes;
    memory_free(&bad);
    FIXTURE_OK(memory_write(&bad, bundle.data, payload, &err));
    FIXTURE_OK(memory_write(&bad, bytes, count, &err));
    FIXTURE_OK(memory_write(&bad, bundle.data + rest, bundle.count - rest, &err));
    head.bytes = count;
    seal_entry(head, payload);
}

#define DOCUMENT_ENTRY 2 /* COLLECTION, NAME, DOCUMENT */
#define NAME_ENTRY     1

/* Manifests that are well-formed and absurd: nothing may be allocated on their word. */
START_TEST(manifests_that_lie)
{
    static const uint32_t numbers[] = {0, 1, 2, 3, 16, 1000, 1 << 20, 1u << 28, UINT32_MAX};
    for (int i = 0; i < 8 * 9; i++) {
        struct samkv_document d = {.manifest = documents[0].m, .references = 1};
        uint32_t *fields[] = {&d.manifest.tokens,       &d.manifest.block_tokens,   &d.manifest.blocks,
                              &d.manifest.shape.layers, &d.manifest.heads,          &d.manifest.shape.head_dim,
                              &d.manifest.local_tokens, &d.manifest.preamble_tokens};
        d.manifest.bytes_index = 1;
        bool same = *fields[i / 9] == numbers[i % 9];
        *fields[i / 9] = numbers[i % 9];
        if (i / 9 == 0 && numbers[i % 9]) /* tokens whose blocks fit, too */
            d.manifest.blocks = (d.manifest.tokens - 1) / d.manifest.block_tokens + 1;
        uint8_t *record, payload[512];
        size_t bytes;
        FIXTURE_OK(samkv_document_seal(&d, &record, &bytes));
        memcpy(payload, d.manifest.key.bytes, SAMKV_KEY_BYTES);
        memcpy(payload + SAMKV_KEY_BYTES, record, bytes);
        free(record);
        replace_payload(DOCUMENT_ENTRY, payload, SAMKV_KEY_BYTES + bytes);
        assert_refused(bundle_import(store, &bad, false, i % 2, &done, &err));
        ck_assert(same || done.names == 0);
        assert_all_right();
    }
}
END_TEST

/* A name may not lead to a document that was made with another model, though it is in the store. */
START_TEST(a_name_that_leads_elsewhere)
{
    struct fixture_document other;
    struct samkv_collection c = bundle_collection(tiny, 2, SAMKV_CODEC_ZSTD);
    strcpy(c.name, "other");
    c.fingerprint[0] = 77;
    FIXTURE_OK(samkv_store_collection_put(store, &c, &err));
    fixture_document_make(&other, 50, tiny, 4, 2);
    samkv_document_key(c.fingerprint, tiny.dtype, NULL, 0, 2, 16, other.tokens, 4, &other.m.key);
    FIXTURE_OK(fixture_ingest(store, &other, NULL, &err));
    FIXTURE_OK(samkv_store_name_put(store, "other", "x", NULL, &other.m.key, &err));
    for (uint32_t carries = 0; carries < 2; carries++) {
        struct samkv_name name = {.id = "a", .key = other.m.key};
        uint8_t buffer[SAMKV_NAME_KEY_MAX], *record, payload[256];
        size_t bytes;
        FIXTURE_OK(samkv_name_seal(samkv_name_key("c", "a", buffer), &name, &record, &bytes));
        struct samkv_fields f;
        samkv_fields_write(&f, payload, sizeof payload);
        samkv_put_u32(&f, 1);
        samkv_put_u32(&f, carries);
        samkv_put_bytes(&f, "a", 1);
        samkv_put_bytes(&f, record, bytes);
        free(record);
        replace_payload(NAME_ENTRY, payload, sizeof payload - f.left);
        assert_refused(bundle_import(store, &bad, false, true, &done, &err));
        ck_assert_int_eq(fixture_check_name(store, "a", &other), SAMKV_NOT_FOUND);
    }
    fixture_document_free(&other);
}
END_TEST

/* Tokens that make another key than the document claims; all checksums fit, since a store made them. */
START_TEST(tokens_of_another_document)
{
    struct fixture_document d;
    struct samkv_collection c = bundle_collection(tiny, 2, SAMKV_CODEC_ZSTD);
    FIXTURE_OK(samkv_store_collection_put(store, &c, &err));
    fixture_document_make(&d, 60, tiny, 4, 2);
    d.m.key.bytes[7] ^= 1;
    FIXTURE_OK(fixture_ingest(store, &d, "forged", &err));
    bundle_export(store, &bad, &done);
    FIXTURE_OK(samkv_store_name_remove(store, "c", "forged", &err));
    assert_refused(bundle_import(store, &bad, false, false, &done, &err));
    ck_assert_ptr_nonnull(strstr(err.text, "another document"));
    ck_assert_uint_eq(fixture_stats(store).names, 0);
    fixture_document_free(&d);
}
END_TEST

#define BLOCK_ENTRY 5 /* …, TOKENS, INDEX, BLOCK */

/* A whole record that was sealed under the same key at another time: it is not the one that was exported. */
START_TEST(a_record_of_another_time)
{
    struct fixture_document other = documents[0];
    struct samkv_scratch_pool pool;
    uint8_t buffer[SAMKV_PART_KEY_BYTES], *bytes, *record;
    size_t record_bytes;
    other.seed = 99;
    void **pieces = fixture_block(&other, 0, true, &bytes);
    struct samkv_layout layout = samkv_block_layout(&other.m, 0);
    samkv_scratch_pool_init(&pool);
    FIXTURE_OK(samkv_record_encode(SAMKV_RECORD_BLOCK, samkv_part_key(&other.m.key, 0, buffer), SAMKV_CODEC_RAW, 0,
                                   &layout, (const void *const *)pieces, &pool, &record, &record_bytes));
    replace_payload(BLOCK_ENTRY, record, record_bytes);
    assert_refused(bundle_import(store, &bad, false, false, &done, &err));
    ck_assert_ptr_nonnull(strstr(err.text, "the end of a document"));
    ck_assert_uint_eq(assert_all_right(), 0);
    samkv_scratch_pool_deinit(&pool);
    free(pieces), free(bytes), free(record);
}
END_TEST

static enum samkv_status little(void *arg, const struct samkv_collection *c, uint32_t *max_tokens, uint32_t *vocab,
                                struct samkv_error *e)
{
    (void)c, (void)e;
    *(arg ? max_tokens : vocab) = 3;
    return SAMKV_OK;
}

static enum samkv_status no_b(void *arg, const struct samkv_name *name, struct samkv_error *e)
{
    (void)arg;
    return strcmp(name->id, "b") ? SAMKV_OK : samkv_fail(e, SAMKV_INVALID, "no name of ours, this one");
}

START_TEST(the_host_sets_limits)
{
    const struct samkv_bundle_options o = {0};
    struct samkv_bundle_host host = {.on_collection = little};
    ck_assert_int_eq(samkv_bundle_import(store, &o, memory_rewind(&bundle, false), &host, &done, &err), SAMKV_CORRUPT);
    ck_assert_uint_eq(assert_all_right(), 0); /* token ids beyond the vocabulary */
    host.arg = &host;
    ck_assert_int_eq(samkv_bundle_import(store, &o, memory_rewind(&bundle, false), &host, &done, &err),
                     SAMKV_TOO_LARGE);
    ck_assert_uint_eq(assert_all_right(), 1); /* a has 3 tokens, b 4 */
    host = (struct samkv_bundle_host){.on_name = no_b};
    ck_assert_int_eq(samkv_bundle_import(store, &o, memory_rewind(&bundle, false), &host, &done, &err), SAMKV_INVALID);
    ck_assert_uint_eq(assert_all_right(), 1);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("bundle_hostile");
    TCase *c = tcase_create("hostile");
    tcase_set_timeout(c, 240);
    tcase_add_checked_fixture(c, setup, teardown);
    tcase_add_test(c, every_truncation);
    tcase_add_test(c, single_bytes_changed);
    tcase_add_test(c, changed_where_everything_is_there_already);
    tcase_add_test(c, garbage);
    tcase_add_test(c, payloads_changed_below_their_checksum);
    tcase_add_test(c, heads_that_lie);
    tcase_add_test(c, manifests_that_lie);
    tcase_add_test(c, a_name_that_leads_elsewhere);
    tcase_add_test(c, tokens_of_another_document);
    tcase_add_test(c, a_record_of_another_time);
    tcase_add_test(c, the_host_sets_limits);
    suite_add_tcase(suite, c);
    return fixture_run(suite);
}
