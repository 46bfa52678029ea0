#pragma once
/*
 * The writer thread and its queue. Everything that changes the database is a job; the thread takes what is queued,
 * runs it in one transaction with one fsync, and then tells those who wait. When something in a group fails in LMDB
 * (no space, say) the group is undone and its jobs run again one by one, so that one job's failure is its own.
 *
 * Jobs with waits = false (blocks of a document) only queue: they are written when somebody waits, or when about half
 * of the queue's bytes are there. Removing a document's records happens in bounded steps between the groups.
 *
 * A claim says that a document's records are not at rest: being written, or being removed. A document is written by
 * one writer at a time, and never while it is removed.
 */
#include <lmdb.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/status.h"
#include "daemon/store/ledger.h"
#include "daemon/store/store.h"

#define SAMKV_QUEUE_MAX_BYTES ((size_t)64 << 20)
#define SAMKV_GROUP_MAX_BYTES ((size_t)32 << 20)

struct samkv_environment;

struct samkv_claim {
    struct samkv_key key;
    bool removing;  /* else writing */
    bool stuck;     /* the last step of removing failed; it is tried again */
    bool undecided; /* the transaction that makes the document invisible is being committed */
    struct samkv_claim *next;
};

/* What jobs see of a transaction. */
struct samkv_change {
    struct samkv_store *store;
    struct samkv_environment *env; /* that the transaction is in */
    MDB_txn *txn;
    uint64_t put_bytes;                       /* at most that the file may grow by */
    bool grows;                               /* puts bulk data: the reserve must stay free */
    bool broken;                              /* LMDB failed: nothing of this transaction may be committed */
    struct samkv_claim *removing;             /* documents that stop being visible with this transaction */
    struct samkv_journal journal;             /* what of it is booked in the ledger */
    uint64_t evicted, evicted_bytes, expired; /* to be counted when it is committed */
};

struct samkv_job {
    /* On the writer thread. May run twice, in another transaction; must look before it writes: a status other than OK
     * with change->broken unset means that it has not changed anything. */
    enum samkv_status (*apply)(struct samkv_change *, struct samkv_job *, struct samkv_error *);
    /* May be NULL. On the writer thread, once it is certain that the job failed and before the next one runs. */
    void (*failed)(struct samkv_job *, enum samkv_status, const struct samkv_error *);
    /* For jobs nobody waits for: after the transaction, on the writer thread; frees the job. */
    void (*release)(struct samkv_store *, struct samkv_job *);
    size_t bytes; /* that it keeps in memory */
    bool waits;
    bool wakes; /* nobody waits, but do it soon */
    /* set by the queue */
    bool done;
    enum samkv_status status;
    struct samkv_error error;
    struct samkv_job *next;
};

struct samkv_queue {
    pthread_mutex_t lock; /* of everything below */
    pthread_cond_t work, changed;
    struct samkv_job *first, **last;
    size_t bytes; /* queued or in the transaction now */
    int pressing; /* queued jobs that somebody waits for, and producers waiting for room */
    struct samkv_claim *claims;
    bool started, ending;
    double retry_ms; /* when removals that failed are tried again */
    atomic_bool
        lost_page; /* a page of the file could not be read while writing: no transaction can be begun any more */
    pthread_t thread;
};

void samkv_queue_init(struct samkv_queue *);
enum samkv_status samkv_queue_start(struct samkv_store *, struct samkv_error *) SAMKV_MUST_USE;

/* Runs what is queued, ends the thread, frees claims. Also after a failed start. */
void samkv_queue_deinit(struct samkv_store *);

/* Runs a job (on the caller's stack, waits = true) to its end. err gets its text. */
enum samkv_status samkv_queue_call(struct samkv_store *, struct samkv_job *, struct samkv_error *) SAMKV_MUST_USE;

/* Runs a job in a transaction of its own on the calling thread. Only before the writer thread is started. */
enum samkv_status samkv_queue_run_now(struct samkv_store *, struct samkv_job *, struct samkv_error *) SAMKV_MUST_USE;

/* Runs a step of the writer thread's own, likewise. Only on that thread. */
enum samkv_status samkv_queue_run_step(struct samkv_store *, struct samkv_job *, struct samkv_error *) SAMKV_MUST_USE;

/* One step of removing a document. OK also when there is nothing to do (*idle). Only on the writer thread. */
enum samkv_status samkv_queue_remove_next(struct samkv_store *, bool *idle, struct samkv_error *) SAMKV_MUST_USE;

/* Waits until nothing is left to remove, or removing is stuck. Not on the writer thread. */
void samkv_queue_wait_removals(struct samkv_store *);

/* Queues a job (on the heap); waits while too many bytes are queued. */
void samkv_queue_push(struct samkv_store *, struct samkv_job *);

/* Claims `key` for writing once nobody else has it. BUSY when its removal is stuck. *out belongs to the queue. */
enum samkv_status samkv_claim_begin(struct samkv_store *, const struct samkv_key *, struct samkv_claim **out,
                                    struct samkv_error *) SAMKV_MUST_USE;

/* True when `claim`'s document is also claimed by a removal that began meanwhile. */
bool samkv_claim_is_contested(struct samkv_store *, const struct samkv_claim *);
void samkv_claim_end(struct samkv_store *, struct samkv_claim *);

/* Gives the claim to the writer thread, which removes the document's records and ends the claim. */
void samkv_claim_remove(struct samkv_store *, struct samkv_claim *);

/* Claims a document for removal unless somebody has it; false: then nothing was done. Writer thread. */
bool samkv_claim_abandoned(struct samkv_store *, const struct samkv_key *);

/* Whether documents wait to be removed. */
bool samkv_queue_is_removing(struct samkv_store *);

/* Removes until nothing claimed for removal is left, or a step fails. Only before the thread is started. */
enum samkv_status samkv_queue_drain_removals(struct samkv_store *, struct samkv_error *) SAMKV_MUST_USE;
