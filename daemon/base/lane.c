#include "daemon/base/lane.h"

#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "daemon/base/thread.h"

struct lane_queue {
    struct samkv_lane_job *first, **last; /* last: where the next job is linked */
};

struct samkv_lane {
    pthread_t thread;
    pthread_mutex_t lock;   /* of everything below */
    pthread_cond_t arrived; /* a job, the end, or (while ending) the last caller's leaving */
    int callers;            /* between start and the end of wait: they still need the lock when their job is done */
    struct lane_queue queues[2]; /* by enum samkv_urgency */
    bool ending;
    atomic_int waiting;
};

static void push(struct samkv_lane *lane, enum samkv_urgency urgency, struct samkv_lane_job *job)
{
    struct lane_queue *q = &lane->queues[urgency];
    *q->last = job;
    q->last = &job->next;
    atomic_fetch_add(&lane->waiting, 1);
}

static struct samkv_lane_job *pop(struct samkv_lane *lane, enum samkv_urgency urgency)
{
    struct lane_queue *q = &lane->queues[urgency];
    struct samkv_lane_job *job = q->first;
    if (!job)
        return NULL;
    q->first = job->next;
    if (!q->first)
        q->last = &q->first;
    atomic_fetch_sub(&lane->waiting, 1);
    return job;
}

/* Called with the lock held; held again on return. */
static void run_unlocked(struct samkv_lane *lane, struct samkv_lane_job *job)
{
    pthread_mutex_unlock(&lane->lock);
    job->fn(job->arg);
    pthread_mutex_lock(&lane->lock);
    job->done = true;
    pthread_cond_signal(&job->finished); /* under the lock: the job's memory goes when its caller sees done */
}

static void *lane_main(void *arg)
{
    struct samkv_lane *lane = arg;
    pthread_mutex_lock(&lane->lock);
    for (;;) {
        struct samkv_lane_job *job = pop(lane, SAMKV_URGENT);
        if (!job)
            job = pop(lane, SAMKV_RELAXED);
        if (job)
            run_unlocked(lane, job);
        else if (lane->ending)
            break;
        else
            pthread_cond_wait(&lane->arrived, &lane->lock);
    }
    pthread_mutex_unlock(&lane->lock);
    return NULL;
}

enum samkv_status samkv_lane_new(const char *name, struct samkv_lane **out)
{
    struct samkv_lane *lane = calloc(1, sizeof *lane);
    if (!lane)
        return SAMKV_NO_MEMORY;
    pthread_mutex_init(&lane->lock, NULL);
    pthread_cond_init(&lane->arrived, NULL);
    for (int i = 0; i < 2; i++)
        lane->queues[i].last = &lane->queues[i].first;
    atomic_init(&lane->waiting, 0);
    enum samkv_status st = samkv_thread_start(&lane->thread, name, lane_main, lane);
    if (st != SAMKV_OK) {
        pthread_cond_destroy(&lane->arrived);
        pthread_mutex_destroy(&lane->lock);
        free(lane);
        return st;
    }
    *out = lane;
    return SAMKV_OK;
}

void samkv_lane_free(struct samkv_lane *lane)
{
    if (!lane)
        return;
    pthread_mutex_lock(&lane->lock);
    lane->ending = true;
    pthread_cond_signal(&lane->arrived);
    pthread_mutex_unlock(&lane->lock);
    pthread_join(lane->thread, NULL);
    pthread_mutex_lock(&lane->lock);
    while (lane->callers)
        pthread_cond_wait(&lane->arrived, &lane->lock);
    pthread_mutex_unlock(&lane->lock);
    pthread_cond_destroy(&lane->arrived);
    pthread_mutex_destroy(&lane->lock);
    free(lane);
}

void samkv_lane_start(struct samkv_lane *lane, enum samkv_urgency urgency, void (*fn)(void *arg), void *arg,
                      struct samkv_lane_job *job)
{
    assert(!pthread_equal(pthread_self(), lane->thread)); /* it would wait for itself */
    *job = (struct samkv_lane_job){.fn = fn, .arg = arg};
    pthread_cond_init(&job->finished, NULL);
    pthread_mutex_lock(&lane->lock);
    push(lane, urgency, job);
    lane->callers++;
    pthread_cond_signal(&lane->arrived);
    pthread_mutex_unlock(&lane->lock);
}

void samkv_lane_wait(struct samkv_lane *lane, struct samkv_lane_job *job)
{
    pthread_mutex_lock(&lane->lock);
    while (!job->done)
        pthread_cond_wait(&job->finished, &lane->lock);
    if (--lane->callers == 0 && lane->ending)
        pthread_cond_signal(&lane->arrived);
    pthread_mutex_unlock(&lane->lock);
    pthread_cond_destroy(&job->finished);
}

void samkv_lane_call(struct samkv_lane *lane, enum samkv_urgency urgency, void (*fn)(void *arg), void *arg)
{
    struct samkv_lane_job job;
    samkv_lane_start(lane, urgency, fn, arg, &job);
    samkv_lane_wait(lane, &job);
}

void samkv_lane_yield(struct samkv_lane *lane)
{
    assert(pthread_equal(pthread_self(), lane->thread));
    pthread_mutex_lock(&lane->lock);
    struct samkv_lane_job *job;
    while ((job = pop(lane, SAMKV_URGENT)))
        run_unlocked(lane, job);
    pthread_mutex_unlock(&lane->lock);
}

int samkv_lane_waiting(const struct samkv_lane *lane)
{
    return atomic_load(&lane->waiting);
}
