#include "daemon/base/pool.h"

#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "daemon/base/thread.h"

#define PARALLEL_MAX_THREADS 256
#define CLASSES              3

static const enum samkv_urgency in_order[CLASSES] = {SAMKV_URGENT, SAMKV_DURABLE, SAMKV_RELAXED};

struct pool_job {
    void (*fn)(void *arg, bool cancelled);
    void *arg;
    uint32_t user;
    struct pool_job *next; /* of the same user */
    /* Of a user's first job: */
    struct pool_job *newest, *beside; /* the user's last job; the next user's first one */
};

/* Users take turns: the first jobs of all that have some, in the order in which they are served. */
struct pool_queue {
    struct pool_job *first, **last;
    int count;
};

struct samkv_pool {
    pthread_mutex_t lock; /* of everything below */
    pthread_cond_t arrived;
    struct pool_queue queues[CLASSES];     /* by enum samkv_urgency */
    int queue_limit;                       /* of each class */
    int running[CLASSES], limits[CLASSES]; /* jobs at a time */
    int patient_limit;                     /* of those that are not urgent, together */
    bool ending;
    int workers;
    pthread_t threads[];
};

/* A user's first job goes behind those of all others. */
static void line_up(struct pool_queue *q, struct pool_job *job)
{
    job->beside = NULL;
    *q->last = job;
    q->last = &job->beside;
}

static void push(struct pool_queue *q, struct pool_job *job)
{
    struct pool_job *first = q->first;
    while (first && first->user != job->user)
        first = first->beside;
    q->count++;
    if (first) {
        first->newest->next = job;
        first->newest = job;
        return;
    }
    job->newest = job;
    line_up(q, job);
}

static struct pool_job *pop(struct pool_queue *q)
{
    struct pool_job *job = q->first;
    if (!job)
        return NULL;
    q->first = job->beside;
    if (!q->first)
        q->last = &q->first;
    q->count--;
    if (job->next) {
        job->next->newest = job->newest;
        line_up(q, job->next);
    }
    return job;
}

static bool may_run(const struct samkv_pool *pool, enum samkv_urgency urgency)
{
    int patient = pool->running[SAMKV_DURABLE] + pool->running[SAMKV_RELAXED];
    return urgency == SAMKV_URGENT || (pool->running[urgency] < pool->limits[urgency] && patient < pool->patient_limit);
}

/* The next job that may run now, or NULL. */
static struct pool_job *take(struct samkv_pool *pool, enum samkv_urgency *urgency)
{
    for (int i = 0; i < CLASSES; i++) {
        struct pool_job *job = may_run(pool, in_order[i]) ? pop(&pool->queues[in_order[i]]) : NULL;
        *urgency = in_order[i];
        if (job)
            return job;
    }
    return NULL;
}

static void *worker_main(void *arg)
{
    struct samkv_pool *pool = arg;
    pthread_mutex_lock(&pool->lock);
    while (!pool->ending) {
        enum samkv_urgency urgency;
        struct pool_job *job = take(pool, &urgency);
        if (!job) {
            pthread_cond_wait(&pool->arrived, &pool->lock);
            continue;
        }
        pool->running[urgency]++;
        pthread_mutex_unlock(&pool->lock);
        job->fn(job->arg, false);
        free(job);
        pthread_mutex_lock(&pool->lock);
        pool->running[urgency]--;
        /* This worker may take an urgent job now: another one shall see that one of these may run again. */
        if (urgency != SAMKV_URGENT && (pool->queues[SAMKV_RELAXED].first || pool->queues[SAMKV_DURABLE].first))
            pthread_cond_signal(&pool->arrived);
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

enum samkv_status samkv_pool_new(int workers, int queue, struct samkv_pool **out)
{
    assert(workers >= 2 && queue >= 0);
    struct samkv_pool *pool = calloc(1, sizeof *pool + (size_t)workers * sizeof *pool->threads);
    if (!pool)
        return SAMKV_NO_MEMORY;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->arrived, NULL);
    for (int i = 0; i < CLASSES; i++)
        pool->queues[i].last = &pool->queues[i].first;
    pool->queue_limit = queue;
    pool->limits[SAMKV_RELAXED] = workers / 2;
    pool->limits[SAMKV_DURABLE] = workers < 8 ? 1 : workers / 4;
    pool->patient_limit = workers < 4 ? workers - 1 : workers / 2 + pool->limits[SAMKV_DURABLE];
    for (; pool->workers < workers; pool->workers++) {
        enum samkv_status st = samkv_thread_start(&pool->threads[pool->workers], "samkv-worker", worker_main, pool);
        if (st != SAMKV_OK) {
            samkv_pool_free(pool);
            return st;
        }
    }
    *out = pool;
    return SAMKV_OK;
}

int samkv_pool_waiting(struct samkv_pool *pool, enum samkv_urgency urgency)
{
    pthread_mutex_lock(&pool->lock);
    int count = pool->queues[urgency].count;
    pthread_mutex_unlock(&pool->lock);
    return count;
}

static struct pool_job *pop_any(struct samkv_pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    struct pool_job *job = NULL;
    for (int i = 0; i < CLASSES && !job; i++)
        job = pop(&pool->queues[in_order[i]]);
    pthread_mutex_unlock(&pool->lock);
    return job;
}

void samkv_pool_drop_queued(struct samkv_pool *pool)
{
    struct pool_job *job;
    while ((job = pop_any(pool))) {
        job->fn(job->arg, true);
        free(job);
    }
}

void samkv_pool_free(struct samkv_pool *pool)
{
    if (!pool)
        return;
    pthread_mutex_lock(&pool->lock);
    pool->ending = true; /* submit refuses and workers take nothing from here on */
    pthread_cond_broadcast(&pool->arrived);
    pthread_mutex_unlock(&pool->lock);
    for (int i = 0; i < pool->workers; i++)
        pthread_join(pool->threads[i], NULL);
    samkv_pool_drop_queued(pool);
    pthread_cond_destroy(&pool->arrived);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

enum samkv_status samkv_pool_submit(struct samkv_pool *pool, enum samkv_urgency urgency,
                                    void (*fn)(void *arg, bool cancelled), void *arg)
{
    return samkv_pool_submit_for(pool, 0, urgency, fn, arg);
}

enum samkv_status samkv_pool_submit_for(struct samkv_pool *pool, uint32_t user, enum samkv_urgency urgency,
                                        void (*fn)(void *arg, bool cancelled), void *arg)
{
    struct pool_job *job = malloc(sizeof *job);
    if (!job)
        return SAMKV_NO_MEMORY;
    *job = (struct pool_job){.fn = fn, .arg = arg, .user = user};
    pthread_mutex_lock(&pool->lock);
    struct pool_queue *q = &pool->queues[urgency];
    bool accepted = !pool->ending && q->count < pool->queue_limit;
    if (accepted) {
        push(q, job);
        /* A worker that finds only a relaxed job it may not take sleeps on: whoever ends a relaxed job takes the next.
         */
        pthread_cond_signal(&pool->arrived);
    }
    pthread_mutex_unlock(&pool->lock);
    if (!accepted)
        free(job);
    return accepted ? SAMKV_OK : SAMKV_BUSY;
}

struct parallel_loop {
    void (*fn)(void *arg, int i);
    void *arg;
    int n;
    atomic_int next;
};

static void *parallel_main(void *arg)
{
    struct parallel_loop *loop = arg;
    int i;
    while ((i = atomic_fetch_add(&loop->next, 1)) < loop->n)
        loop->fn(loop->arg, i);
    return NULL;
}

void samkv_parallel_for(int n, int threads, void (*fn)(void *arg, int i), void *arg)
{
    struct parallel_loop loop = {.fn = fn, .arg = arg, .n = n};
    pthread_t helpers[PARALLEL_MAX_THREADS];
    int wanted = (threads < n ? threads : n) - 1, started = 0;
    if (wanted > PARALLEL_MAX_THREADS)
        wanted = PARALLEL_MAX_THREADS;
    /* With fewer helpers than wanted the caller simply does more itself. */
    while (started < wanted && samkv_thread_start(&helpers[started], "samkv-helper", parallel_main, &loop) == SAMKV_OK)
        started++;
    parallel_main(&loop);
    for (int i = 0; i < started; i++)
        pthread_join(helpers[i], NULL);
}
