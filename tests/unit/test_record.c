#include "tests/unit/store_fixture.h"

#include "daemon/store/record.h"
#include "daemon/store/values.h"

static const struct samkv_bytes key = {"a key of the record", 19};

static uint8_t *sealed(size_t payload, size_t *bytes)
{
    uint8_t *record = malloc(SAMKV_RECORD_HEADER_BYTES + payload);
    for (size_t i = 0; i < payload; i++)
        record[SAMKV_RECORD_HEADER_BYTES + i] = (uint8_t)(i * 7);
    struct samkv_record head = {
        .codec = SAMKV_CODEC_RAW, .dtype = SAMKV_BF16, .pieces = 3, .raw_bytes = payload, .payload_bytes = payload};
    samkv_record_seal(record, SAMKV_RECORD_BLOCK, key, &head);
    *bytes = SAMKV_RECORD_HEADER_BYTES + payload;
    return record;
}

START_TEST(what_was_sealed_opens)
{
    static const size_t payloads[] = {0, 1, 5, 240, 241, 5000};
    for (size_t i = 0; i < sizeof payloads / sizeof *payloads; i++) {
        size_t bytes;
        uint8_t *record = sealed(payloads[i], &bytes);
        struct samkv_record r;
        struct samkv_bytes value = {record, bytes};
        ck_assert_int_eq(samkv_record_open(value, SAMKV_RECORD_BLOCK, key, &r), SAMKV_OK);
        ck_assert_uint_eq(r.payload_bytes, payloads[i]);
        ck_assert_uint_eq(r.pieces, 3);
        ck_assert_uint_eq(r.dtype, SAMKV_BF16);
        ck_assert_ptr_eq(r.payload, record + SAMKV_RECORD_HEADER_BYTES);
        free(record);
    }
}
END_TEST

START_TEST(any_changed_byte_is_noticed)
{
    size_t bytes;
    uint8_t *record = sealed(300, &bytes);
    struct samkv_record r;
    struct samkv_bytes value = {record, bytes};
    for (size_t i = 0; i < bytes; i++)
        for (int bit = 0; bit < 8; bit++) {
            record[i] ^= (uint8_t)(1 << bit);
            ck_assert_int_eq(samkv_record_open(value, SAMKV_RECORD_BLOCK, key, &r), SAMKV_CORRUPT);
            record[i] ^= (uint8_t)(1 << bit);
        }
    for (size_t n = 0; n < bytes; n++) {
        uint8_t *cut = malloc(n ? n : 1);
        memcpy(cut, record, n);
        ck_assert_int_eq(samkv_record_open((struct samkv_bytes){cut, n}, SAMKV_RECORD_BLOCK, key, &r), SAMKV_CORRUPT);
        free(cut);
    }
    free(record);
}
END_TEST

START_TEST(a_record_belongs_to_its_key_and_kind)
{
    size_t bytes;
    uint8_t *record = sealed(10, &bytes);
    struct samkv_record r;
    struct samkv_bytes value = {record, bytes}, other = {"a key of the recorD", 19}, shorter = {key.data, 18};
    ck_assert_int_eq(samkv_record_open(value, SAMKV_RECORD_BLOCK, other, &r), SAMKV_CORRUPT);
    ck_assert_int_eq(samkv_record_open(value, SAMKV_RECORD_BLOCK, shorter, &r), SAMKV_CORRUPT);
    ck_assert_int_eq(samkv_record_open(value, SAMKV_RECORD_INDEX, key, &r), SAMKV_CORRUPT);
    free(record);
}
END_TEST

/* A record with a right checksum that lies: as if an attacker had written it. */
START_TEST(lying_headers_are_refused)
{
    struct samkv_scratch_pool pool;
    samkv_scratch_pool_init(&pool);
    struct samkv_layout l = {SAMKV_F32, 2, 64};
    uint8_t a[64] = {1}, b[64] = {2}, *record;
    const void *src[2] = {a, b};
    void *dst[2] = {a, b};
    size_t bytes;
    ck_assert_int_eq(samkv_record_encode(SAMKV_RECORD_BLOCK, key, SAMKV_CODEC_ZSTD, 1, &l, src, &pool, &record, &bytes),
                     SAMKV_OK);
    struct samkv_bytes value = {record, bytes};
    ck_assert_int_eq(samkv_record_decode(value, SAMKV_RECORD_BLOCK, key, &l, &pool, dst), SAMKV_OK);
    struct samkv_record right;
    ck_assert_int_eq(samkv_record_open(value, SAMKV_RECORD_BLOCK, key, &right), SAMKV_OK);

    struct samkv_record lies[6] = {right, right, right, right, right, right};
    lies[0].raw_bytes = UINT64_MAX;
    lies[1].pieces = 1;
    lies[2].dtype = SAMKV_BF16;
    lies[3].codec = (enum samkv_codec)9;
    lies[4].raw_bytes = 0;
    lies[5].codec = SAMKV_CODEC_RAW; /* the payload is not of this length */
    for (size_t i = 0; i < 6; i++) {
        samkv_record_seal(record, SAMKV_RECORD_BLOCK, key, &lies[i]);
        ck_assert_int_eq(samkv_record_decode(value, SAMKV_RECORD_BLOCK, key, &l, &pool, dst), SAMKV_CORRUPT);
    }
    struct samkv_record longer = right;
    longer.payload_bytes = right.payload_bytes - 1; /* shorter than the value */
    samkv_record_seal(record, SAMKV_RECORD_BLOCK, key, &longer);
    ck_assert_int_eq(samkv_record_decode(value, SAMKV_RECORD_BLOCK, key, &l, &pool, dst), SAMKV_CORRUPT);
    samkv_record_seal(record, SAMKV_RECORD_BLOCK, key, &right);
    struct samkv_layout asked = {SAMKV_F32, 2, 60};
    ck_assert_int_eq(samkv_record_decode(value, SAMKV_RECORD_BLOCK, key, &asked, &pool, dst), SAMKV_CORRUPT);
    free(record);
    samkv_scratch_pool_deinit(&pool);
}
END_TEST

/* Random bytes behind a right header: what opens must be safe to compute with. */
START_TEST(fields_from_anywhere_are_bounded)
{
    uint64_t state = (uint64_t)_i + 1;
    struct samkv_key document = {{9}};
    const struct samkv_bytes name = {"c\0id", 4}, collection = {"c", 1};
    for (int round = 0; round < 20000; round++) {
        size_t payload = _i == 0 ? 104 : fixture_random(&state) % 200;
        uint8_t *record = malloc(SAMKV_RECORD_HEADER_BYTES + payload);
        for (size_t i = 0; i < payload; i++) /* small numbers come nearer to being believed */
            record[SAMKV_RECORD_HEADER_BYTES + i] = fixture_random(&state) % 4 ? 0 : (uint8_t)fixture_random(&state);
        struct samkv_record head = {.pieces = 1, .raw_bytes = payload, .payload_bytes = payload};
        struct samkv_bytes value = {record, SAMKV_RECORD_HEADER_BYTES + payload};
        struct samkv_document d;
        struct samkv_name n;
        struct samkv_collection c;
        samkv_record_seal(record, SAMKV_RECORD_DOCUMENT, samkv_key_bytes(&document), &head);
        if (samkv_document_open(value, &document, &d) == SAMKV_OK)
            ck_assert_int_eq(samkv_manifest_check(&d.manifest, NULL), SAMKV_OK);
        samkv_record_seal(record, SAMKV_RECORD_NAME, name, &head);
        if (samkv_name_open(value, name, true, &n) == SAMKV_OK) {
            ck_assert_str_eq(n.id, "id");
            samkv_name_deinit(&n);
        }
        samkv_record_seal(record, SAMKV_RECORD_COLLECTION, collection, &head);
        if (samkv_collection_open(value, collection, &c) == SAMKV_OK)
            samkv_collection_deinit(&c);
        free(record);
    }
}
END_TEST

START_TEST(values_come_back)
{
    struct samkv_document d = {.references = 5}, d2;
    d.manifest = (struct samkv_manifest){.key = {{1, 2}},
                                         .shape = {2, 3, 4, SAMKV_BF16},
                                         .heads = 6,
                                         .tokens = 33,
                                         .block_tokens = 16,
                                         .blocks = 3,
                                         .preamble_tokens = 7,
                                         .local_tokens = 16,
                                         .bytes_raw = 1,
                                         .bytes_stored = 2,
                                         .bytes_index = 3,
                                         .created_unix_s = -4,
                                         .codec = SAMKV_CODEC_ZSTD};
    uint8_t *record;
    size_t bytes;
    ck_assert_int_eq(samkv_document_seal(&d, &record, &bytes), SAMKV_OK);
    ck_assert_int_eq(samkv_document_open((struct samkv_bytes){record, bytes}, &d.manifest.key, &d2), SAMKV_OK);
    ck_assert_mem_eq(&d, &d2, sizeof d);
    free(record);

    struct samkv_collection c = {.name = "wiki",
                                 .model = "smol",
                                 .fingerprint = {4, 5},
                                 .shape = {2, 3, 4, SAMKV_F32},
                                 .heads = 6,
                                 .block_tokens = 16,
                                 .init_tokens = 1,
                                 .local_tokens = 2,
                                 .preamble = (int32_t[]){-1, 2, 3},
                                 .preamble_tokens = 3,
                                 .preamble_key = {{7}},
                                 .codec = SAMKV_CODEC_ZSTD,
                                 .quota_bytes = (uint64_t)1 << 40,
                                 .ttl_s = 86400},
                            c2;
    ck_assert_int_eq(samkv_collection_seal(&c, &record, &bytes), SAMKV_OK);
    ck_assert_int_eq(samkv_collection_open((struct samkv_bytes){record, bytes}, (struct samkv_bytes){"wiki", 4}, &c2),
                     SAMKV_OK);
    ck_assert_int_eq(samkv_collection_compare(&c, &c2, NULL), SAMKV_OK);
    ck_assert_str_eq(c2.model, "smol");
    ck_assert_int_eq(c2.codec, SAMKV_CODEC_ZSTD);
    ck_assert_uint_eq(c2.quota_bytes, c.quota_bytes);
    ck_assert_uint_eq(c2.ttl_s, c.ttl_s);
    struct samkv_error err;
    c2.preamble[1]++;
    ck_assert_int_eq(samkv_collection_compare(&c, &c2, &err), SAMKV_MISMATCH);
    c2.block_tokens = 8;
    ck_assert_int_eq(samkv_collection_compare(&c, &c2, &err), SAMKV_MISMATCH);
    ck_assert_ptr_nonnull(strstr(err.text, "block size 16, not 8"));
    samkv_collection_deinit(&c2);
    free(record);

    const struct samkv_bytes under = {"c\0id", 4};
    for (int i = 0; i < 4; i++) {
        struct samkv_name n = {.title = i & 1 ? "On Names" : NULL, .key = {{8}}, .put_unix_s = -5, .pinned = i & 2}, n2;
        ck_assert_int_eq(samkv_name_seal(under, &n, &record, &bytes), SAMKV_OK);
        ck_assert_int_eq(samkv_name_open((struct samkv_bytes){record, bytes}, under, true, &n2), SAMKV_OK);
        ck_assert_str_eq(n2.id, "id");
        ck_assert_mem_eq(&n2.key, &n.key, sizeof n.key);
        ck_assert_int_eq(n2.put_unix_s, -5);
        ck_assert_int_eq(n2.pinned, n.pinned);
        ck_assert(n.title ? strcmp(n2.title, n.title) == 0 : n2.title == NULL);
        samkv_name_deinit(&n2);
        free(record);
    }
}
END_TEST

START_TEST(impossible_manifests_are_refused)
{
    const struct samkv_manifest good = {
        .shape = {2, 3, 4, SAMKV_BF16}, .heads = 6, .tokens = 33, .block_tokens = 16, .blocks = 3};
    ck_assert_int_eq(samkv_manifest_check(&good, NULL), SAMKV_OK);
    struct samkv_manifest bad[12];
    for (size_t i = 0; i < 12; i++)
        bad[i] = good;
    bad[0].shape.layers = 0;
    bad[1].shape.kv_heads = 0;
    bad[2].shape.head_dim = UINT32_MAX;
    bad[3].heads = 0;
    bad[4].heads = UINT32_MAX;
    bad[5].tokens = 0;
    bad[6].block_tokens = 0;
    bad[7].blocks = 2;
    bad[8].shape.dtype = SAMKV_I32;
    bad[9].shape.layers = UINT32_MAX;
    bad[10].tokens = bad[10].block_tokens = UINT32_MAX, bad[10].blocks = 1;
    bad[11].shape = (struct samkv_kv_shape){1000, 1024, 1024, SAMKV_F32};
    for (size_t i = 0; i < 12; i++)
        ck_assert_msg(samkv_manifest_check(&bad[i], NULL) != SAMKV_OK, "manifest %zu", i);
}
END_TEST

START_TEST(keys_depend_on_everything)
{
    uint8_t fingerprint[16] = {0};
    int32_t ids[] = {1, 2, 3, 4};
    struct samkv_key keys[10];
    samkv_document_key(fingerprint, SAMKV_F32, ids, 2, 16, 16, ids + 2, 2, &keys[0]);
    samkv_document_key(fingerprint, SAMKV_BF16, ids, 2, 16, 16, ids + 2, 2, &keys[1]);
    samkv_document_key(fingerprint, SAMKV_F32, ids, 1, 16, 16, ids + 1, 3, &keys[2]);
    samkv_document_key(fingerprint, SAMKV_F32, ids, 2, 8, 16, ids + 2, 2, &keys[3]);
    samkv_document_key(fingerprint, SAMKV_F32, ids, 2, 16, 8, ids + 2, 2, &keys[4]);
    samkv_document_key(fingerprint, SAMKV_F32, ids, 2, 16, 16, ids + 2, 1, &keys[5]);
    samkv_document_key(fingerprint, SAMKV_F32, NULL, 0, 16, 16, ids, 4, &keys[6]);
    samkv_document_key(fingerprint, SAMKV_F32, ids + 2, 2, 16, 16, ids, 2, &keys[7]);
    samkv_document_key(fingerprint, SAMKV_F32, ids, 4, 16, 16, NULL, 0, &keys[8]);
    fingerprint[15] = 1;
    samkv_document_key(fingerprint, SAMKV_F32, ids, 2, 16, 16, ids + 2, 2, &keys[9]);
    for (int i = 0; i < 10; i++)
        for (int j = 0; j < i; j++)
            ck_assert_mem_ne(&keys[i], &keys[j], sizeof keys[i]);
    /* Pinned: stored documents are found again by the next version. */
    static const uint8_t want[16] = {0xfc, 0x8b, 0xda, 0x33, 0x98, 0xf1, 0x71, 0x47,
                                     0x39, 0x9d, 0x6f, 0x61, 0xa0, 0xd6, 0x2b, 0xf6};
    ck_assert_mem_eq(&keys[9], want, sizeof want);
    /* Lossless codecs share a document; every lossy one has its own. */
    for (int codec = 0; codec < SAMKV_CODEC_COUNT; codec++) {
        bool lossy = codec >= SAMKV_CODEC_Q8;
        keys[codec] = keys[9];
        samkv_document_key_of_codec(&keys[codec], (enum samkv_codec)codec);
        ck_assert_int_eq(memcmp(&keys[codec], want, sizeof want) != 0, lossy);
        ck_assert_int_eq(samkv_codec_lossless((enum samkv_codec)codec), lossy ? SAMKV_CODEC_RANS : codec);
        ck_assert_int_eq(samkv_codec_parse(samkv_codec_name((enum samkv_codec)codec)), codec);
    }
    ck_assert_mem_ne(&keys[SAMKV_CODEC_Q8], &keys[SAMKV_CODEC_Q4], sizeof *keys);
    ck_assert_int_eq(samkv_codec_parse("q5"), -1);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("record");
    TCase *tc = tcase_create("record");
    tcase_add_test(tc, what_was_sealed_opens);
    tcase_add_test(tc, any_changed_byte_is_noticed);
    tcase_add_test(tc, a_record_belongs_to_its_key_and_kind);
    tcase_add_test(tc, lying_headers_are_refused);
    tcase_add_loop_test(tc, fields_from_anywhere_are_bounded, 0, 2);
    tcase_add_test(tc, values_come_back);
    tcase_add_test(tc, impossible_manifests_are_refused);
    tcase_add_test(tc, keys_depend_on_everything);
    tcase_set_timeout(tc, 120);
    suite_add_tcase(suite, tc);
    return fixture_run(suite);
}
