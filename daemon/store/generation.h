#pragma once
/*
 * The data files of a store and their environments. A file's name says its generation: data.mdb is 0 and what every
 * store begins with, data.N.mdb is N. The newest generation is the store; an older one beside it is being emptied.
 *
 * Each file has a lock file of its own (lock.mdb; data.N.mdb-lock) and neither is ever renamed while an environment is
 * open on it: other processes find a data file and the reader table that belongs to it by these names. A new file is
 * made under another name (data.N.new), without a lock file, and takes its name when it is whole.
 */
#include <stdbool.h>
#include <stdint.h>

#include "daemon/store/environment.h"

#define SAMKV_PATH_BYTES 4096

struct samkv_generations {
    unsigned count;       /* 0, 1 or 2 */
    uint64_t newest, old; /* old when count is 2 */
};

/* Looks into the store's directory. CORRUPT when there are more than two; a directory that is not there has none. */
enum samkv_status samkv_generations_find(const struct samkv_store *, struct samkv_generations *out,
                                         struct samkv_error *) SAMKV_MUST_USE;

/* Removes files that a compaction cut short left, and lock files whose data file is gone. Only with the directory
 * taken. */
void samkv_generations_tidy(const struct samkv_store *);

/* The data file's path, or that of the file that becomes it (under way). */
enum samkv_status samkv_generation_path(const struct samkv_store *, uint64_t generation, bool under_way,
                                        char out[SAMKV_PATH_BYTES], struct samkv_error *) SAMKV_MUST_USE;

/*
 * Opens (a missing one of a writing store is created) with a map of the store's limit, which is halved while there
 * is no room for it when may_shrink. One reference, the caller's. Databases are opened by samkv_generation_databases.
 */
enum samkv_status samkv_generation_open(struct samkv_store *, uint64_t generation, bool may_shrink,
                                        struct samkv_environment **out, struct samkv_error *) SAMKV_MUST_USE;

/*
 * Opens (in an empty file creates) the databases and looks at the schema of a generation. *moved: the next generation
 * has taken its place. The handles go to the store, or must be those that it has.
 */
enum samkv_status samkv_generation_databases(struct samkv_store *, struct samkv_environment *, bool *moved,
                                             struct samkv_error *) SAMKV_MUST_USE;

/* A new file that nobody else knows of yet, without a lock file and without syncing; for the caller to close. */
enum samkv_status samkv_generation_create(struct samkv_store *, const char *path, MDB_env **out,
                                          struct samkv_error *) SAMKV_MUST_USE;
enum samkv_status samkv_generation_create_databases(struct samkv_store *, MDB_txn *,
                                                    struct samkv_error *) SAMKV_MUST_USE;

/* Makes the directory's names durable. */
enum samkv_status samkv_generations_sync(const struct samkv_store *, struct samkv_error *) SAMKV_MUST_USE;

/* Takes a data file and its lock file out of the directory. What fails is in the log. */
void samkv_generation_unlink(const struct samkv_store *, const struct samkv_environment *);

/* The schema's record, in a transaction of the caller's. */
enum samkv_status samkv_generation_write_schema(struct samkv_store *, MDB_txn *, uint8_t schema,
                                                struct samkv_error *) SAMKV_MUST_USE;

/* Whether the schema says that a newer generation has taken this one's place. */
bool samkv_generation_is_moved(const struct samkv_store *, MDB_txn *);

/* Gives a reference back; the last one closes it. NULL is allowed. Any thread. */
void samkv_environment_release(struct samkv_store *, struct samkv_environment *);

/* A read-only store goes on with the data file that a daemon has made since. Any thread. */
enum samkv_status samkv_generations_follow(struct samkv_store *, struct samkv_error *) SAMKV_MUST_USE;

/* Makes these the store's (its references), the ones it had lose it. Only the writer thread, or while opening. */
void samkv_generations_publish(struct samkv_store *, struct samkv_environment *now, struct samkv_environment *old);

/* The old one holds nothing any longer that a new snapshot needs. The writer thread. */
void samkv_generation_mark_drained(struct samkv_store *);

/* Whether the store's is the only reference to its old environment. The writer thread. */
bool samkv_generation_is_unused(struct samkv_store *);
