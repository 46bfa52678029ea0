/* Owners of collections: what is stored of them, whose documents are shared with whose, and what users are charged. */
#include "tests/unit/limits_fixture.h"

#include "daemon/store/values.h"

static struct fixture_directory dir;
static struct samkv_store *store;
static struct samkv_error err;
static uint64_t quota_of_7;

static uint64_t user_quota(void *arg, uint32_t owner)
{
    (void)arg;
    return owner == 7 ? quota_of_7 : 0;
}

static void reopen(void)
{
    samkv_store_close(store);
    store = limits_open(&dir, (struct samkv_store_options){.user_quota = user_quota});
}

static void setup(void)
{
    fixture_directory_make(&dir);
    quota_of_7 = 0;
    store = NULL;
    reopen();
}

static void teardown(void)
{
    samkv_store_close(store);
    fixture_directory_remove(&dir);
}

static struct samkv_collection owned(const char *name, uint32_t owner, uint32_t mode)
{
    struct samkv_collection c = {.shape = limits_shape,
                                 .heads = 8,
                                 .block_tokens = 16,
                                 .codec = SAMKV_CODEC_ZSTD,
                                 .ownership = {.owner = owner, .group = owner + 1, .mode = mode}};
    snprintf(c.name, sizeof c.name, "%s", name);
    FIXTURE_OK(samkv_collection_mask(&c, &err));
    return c;
}

static void put(const char *name, uint32_t owner, uint32_t mode)
{
    struct samkv_collection c = owned(name, owner, mode);
    FIXTURE_OK(samkv_store_collection_put(store, &c, &err));
}

/* Ingests the document of this seed into a collection, under the key that it has there. */
static enum samkv_status ingest(const char *collection, const char *id, uint32_t seed, uint32_t tokens)
{
    struct fixture_document d = limits_document(seed, tokens);
    struct samkv_snapshot *sn;
    struct samkv_collection c;
    struct samkv_writer *w;
    FIXTURE_OK(samkv_snapshot_begin(store, &sn, &err));
    FIXTURE_OK(samkv_snapshot_collection(sn, collection, &c, &err));
    samkv_snapshot_end(sn);
    samkv_document_key_mask(&d.m.key, &c.mask);
    samkv_collection_deinit(&c);
    enum samkv_status st = samkv_writer_begin(store, &d.m, d.tokens, &w, &err);
    if (st == SAMKV_OK && !w)
        st = samkv_store_name_put(store, collection, id, NULL, &d.m.key, &err);
    else if (st == SAMKV_OK) {
        st = samkv_writer_admit(w, collection, &err);
        for (uint32_t b = 0; st == SAMKV_OK && b < d.m.blocks; b++)
            st = fixture_write_block(w, &d, b, &err);
        for (uint32_t l = 0; st == SAMKV_OK && l < d.m.shape.layers; l++)
            st = fixture_write_index(w, &d, l, &err);
        if (st == SAMKV_OK)
            st = samkv_writer_commit(w, collection, id, NULL, &err);
        else
            samkv_writer_abort(w);
    }
    fixture_document_free(&d);
    return st;
}

static uint64_t documents(void)
{
    return fixture_stats(store).documents;
}

START_TEST(what_is_stored_comes_back)
{
    static const struct samkv_key none;
    struct samkv_snapshot *sn;
    struct samkv_collection c = owned("~7/x", 7, 0600), back;
    ck_assert_mem_ne(&c.mask, &none, sizeof none);
    FIXTURE_OK(samkv_store_collection_put(store, &c, &err));
    reopen();
    FIXTURE_OK(samkv_snapshot_begin(store, &sn, &err));
    FIXTURE_OK(samkv_snapshot_collection(sn, "~7/x", &back, &err));
    samkv_snapshot_end(sn);
    ck_assert_mem_eq(&back.ownership, &c.ownership, sizeof c.ownership);
    ck_assert_mem_eq(&back.mask, &c.mask, sizeof c.mask);
    ck_assert_str_eq(samkv_collection_bare_name(&back), "x");
    samkv_collection_deinit(&back);
    struct samkv_ownership o;
    ck_assert(samkv_store_ownership(store, "~7/x", &o));
    ck_assert_mem_eq(&o, &c.ownership, sizeof o);
    ck_assert(!samkv_store_ownership(store, "x", &o));
    const struct samkv_limits limits = {.set_group = true, .group = 99, .set_mode = true, .mode = 0664};
    FIXTURE_OK(samkv_store_configure(store, "~7/x", &limits, &err));
    reopen();
    ck_assert(samkv_store_ownership(store, "~7/x", &o));
    ck_assert_uint_eq(o.group, 99);
    ck_assert_uint_eq(o.mode, 0664);
}
END_TEST

/* A collection with nothing said is the daemon's, its record what it was before there were owners. */
START_TEST(plain_ones_are_as_they_were)
{
    static const struct samkv_key none;
    struct samkv_collection c = {.name = "plain", .shape = limits_shape, .heads = 8, .block_tokens = 16}, back;
    struct samkv_collection said = owned("plain", SAMKV_OWNER_DAEMON, SAMKV_MODE_DEFAULT);
    said.ownership.group = SAMKV_OWNER_DAEMON;
    said.codec = c.codec;
    uint8_t *a, *b;
    size_t a_bytes, b_bytes;
    ck_assert_mem_eq(&said.mask, &none, sizeof none);
    FIXTURE_OK(samkv_collection_seal(&c, &a, &a_bytes));
    FIXTURE_OK(samkv_collection_seal(&said, &b, &b_bytes));
    ck_assert_uint_eq(a_bytes, b_bytes);
    ck_assert_mem_eq(a, b, a_bytes);
    FIXTURE_OK(samkv_collection_open((struct samkv_bytes){a, a_bytes}, (struct samkv_bytes){"plain", 5}, &back));
    ck_assert_uint_eq(back.ownership.owner, SAMKV_OWNER_DAEMON);
    ck_assert_uint_eq(back.ownership.mode, SAMKV_MODE_DEFAULT);
    samkv_collection_deinit(&back);
    free(a);
    free(b);
}
END_TEST

START_TEST(modes)
{
    static const uint32_t good[] = {0600, 0640, 0660, 0604, 0606, 0644, 0664, 0646, 0666};
    for (uint32_t mode = 0; mode < 020000; mode++) {
        bool listed = false;
        for (size_t i = 0; i < sizeof good / sizeof *good; i++)
            listed |= good[i] == mode;
        ck_assert_int_eq(samkv_mode_check(mode, &err) == SAMKV_OK, listed);
    }
    ck_assert_int_eq(samkv_mode_check(UINT32_MAX, &err), SAMKV_INVALID);
}
END_TEST

/* Only where whoever may write may read all that has the same keys. */
START_TEST(whose_documents_are_shared)
{
    put("a", SAMKV_OWNER_DAEMON, 0640);
    put("b", SAMKV_OWNER_DAEMON, 0600);
    put("written", SAMKV_OWNER_DAEMON, 0660);
    put("~7/x", 7, 0600);
    put("~7/y", 7, 0600);
    put("~8/x", 8, 0666);
    const struct {
        const char *collection;
        uint64_t documents;
    } steps[] = {{"a", 1}, {"b", 1}, {"written", 2}, {"~7/x", 3}, {"~7/y", 4}, {"~8/x", 5}, {"~8/x", 5}, {"b", 5}};
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        FIXTURE_OK(ingest(steps[i].collection, "d", 1, 20));
        ck_assert_uint_eq(documents(), steps[i].documents);
    }
}
END_TEST

static struct samkv_account account(uint32_t owner)
{
    struct samkv_account a;
    samkv_store_account(store, owner, &a);
    return a;
}

/* What is charged follows every change, and is what a start counts. */
START_TEST(accounts)
{
    ck_assert_uint_eq(account(7).bytes_charged, 0);
    put("~7/x", 7, 0600);
    put("~7/y", 7, 0600);
    put("~8/x", 8, 0600);
    put("plain", SAMKV_OWNER_DAEMON, 0640);
    uint64_t bare = account(7).bytes_charged;
    ck_assert_uint_gt(bare, 0);
    FIXTURE_OK(ingest("~7/x", "a", 1, 40));
    FIXTURE_OK(ingest("~7/x", "b", 1, 40)); /* a name more, of the same document */
    FIXTURE_OK(ingest("~7/y", "a", 2, 20));
    FIXTURE_OK(ingest("~8/x", "a", 3, 60));
    FIXTURE_OK(ingest("plain", "a", 3, 60));
    struct samkv_account seven = account(7), eight = account(8), none = account(SAMKV_OWNER_DAEMON);
    ck_assert_uint_eq(seven.collections, 2);
    ck_assert_uint_eq(seven.names, 3);
    ck_assert_uint_eq(seven.bytes_stored,
                      limits_stats(store, "~7/x").bytes_stored + limits_stats(store, "~7/y").bytes_stored);
    ck_assert_uint_eq(eight.bytes_stored, limits_stats(store, "~8/x").bytes_stored);
    ck_assert_uint_eq(none.bytes_charged, 0);
    reopen();
    struct samkv_account again = account(7);
    ck_assert_mem_eq(&again, &seven, sizeof seven);
    FIXTURE_OK(samkv_store_name_remove(store, "~7/x", "a", &err));
    FIXTURE_OK(samkv_store_name_remove(store, "~7/x", "b", &err));
    FIXTURE_OK(samkv_store_name_remove(store, "~7/y", "a", &err));
    ck_assert_uint_eq(account(7).bytes_charged, bare);
    uint64_t removed;
    bool more;
    FIXTURE_OK(samkv_store_collection_remove(store, "~7/x", &removed, &more, &err));
    FIXTURE_OK(samkv_store_collection_remove(store, "~7/y", &removed, &more, &err));
    ck_assert_uint_eq(account(7).bytes_charged, 0);
    ck_assert_uint_eq(account(8).bytes_charged, eight.bytes_charged);
}
END_TEST

START_TEST(a_hard_quota_refuses)
{
    put("~7/x", 7, 0600);
    put("~8/x", 8, 0600);
    quota_of_7 = account(7).bytes_charged + 300000;
    char id[16];
    enum samkv_status st = SAMKV_OK;
    uint32_t count = 0;
    for (; st == SAMKV_OK && count < 200; count++) {
        snprintf(id, sizeof id, "%u", count);
        st = ingest("~7/x", id, count, 5);
        ck_assert_uint_le(account(7).bytes_charged, quota_of_7);
    }
    ck_assert_int_eq(st, SAMKV_FULL);
    ck_assert_msg(strstr(err.text, "user 7"), "%s", err.text);
    ck_assert_uint_gt(account(7).bytes_charged, quota_of_7 - 30000);
    ck_assert_uint_eq(limits_stats(store, "~7/x").names, count - 1); /* nothing went for it */
    /* Not one name more, nor a collection. */
    while ((st = ingest("~7/x", id, 0, 5)) == SAMKV_OK)
        snprintf(id, sizeof id, "n%u", count++);
    ck_assert_int_eq(st, SAMKV_FULL);
    struct samkv_collection c = owned("~7/more", 7, 0600);
    quota_of_7 = account(7).bytes_charged;
    ck_assert_int_eq(samkv_store_collection_put(store, &c, &err), SAMKV_FULL);
    ck_assert_int_eq(samkv_store_admit_owner(store, 7, 1, &err), SAMKV_FULL);
    struct samkv_ownership o;
    ck_assert(!samkv_store_ownership(store, "~7/more", &o));
    FIXTURE_OK(ingest("~8/x", "a", 1, 40)); /* others are not concerned */
    FIXTURE_OK(samkv_store_name_remove(store, "~7/x", "0", &err));
    FIXTURE_OK(samkv_store_name_remove(store, "~7/x", "1", &err));
    FIXTURE_OK(ingest("~7/x", "again", 1, 5));
    reopen();
    ck_assert_int_eq(samkv_store_admit_owner(store, 7, 1 << 20, &err), SAMKV_FULL);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("store_owner");
    TCase *tc = tcase_create("store_owner");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, what_is_stored_comes_back);
    tcase_add_test(tc, plain_ones_are_as_they_were);
    tcase_add_test(tc, modes);
    tcase_add_test(tc, whose_documents_are_shared);
    tcase_add_test(tc, accounts);
    tcase_add_test(tc, a_hard_quota_refuses);
    suite_add_tcase(suite, tc);
    return fixture_run(suite);
}
