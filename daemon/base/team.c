#include "daemon/base/team.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

#include "daemon/base/thread.h"

#define MAX_THREADS 64

struct samkv_team {
    pthread_mutex_t lock; /* of everything below but `next` */
    pthread_cond_t begun, done;
    pthread_t helpers[MAX_THREADS];
    int helper_count;
    /* The loop under way. */
    void (*fn)(void *arg, int i);
    void *arg;
    int n, wanted, inside; /* helpers that the loop still takes, and that are in it */
    atomic_int next;
    bool ending;
};

static void work(struct samkv_team *team)
{
    int i;
    while ((i = atomic_fetch_add(&team->next, 1)) < team->n)
        team->fn(team->arg, i);
}

static void *run_helper(void *arg)
{
    struct samkv_team *team = arg;
    pthread_mutex_lock(&team->lock);
    for (;;) {
        while (!team->wanted && !team->ending)
            pthread_cond_wait(&team->begun, &team->lock);
        if (team->ending)
            break;
        team->wanted--;
        team->inside++;
        pthread_mutex_unlock(&team->lock);
        work(team);
        pthread_mutex_lock(&team->lock);
        if (--team->inside == 0)
            pthread_cond_signal(&team->done);
    }
    pthread_mutex_unlock(&team->lock);
    return NULL;
}

enum samkv_status samkv_team_new(const char *name, int threads, struct samkv_team **out)
{
    struct samkv_team *team = calloc(1, sizeof *team);
    if (!team)
        return SAMKV_NO_MEMORY;
    pthread_mutex_init(&team->lock, NULL);
    pthread_cond_init(&team->begun, NULL);
    pthread_cond_init(&team->done, NULL);
    int helpers = threads - 1 < MAX_THREADS ? threads - 1 : MAX_THREADS;
    while (team->helper_count < helpers &&
           samkv_thread_start(&team->helpers[team->helper_count], name, run_helper, team) == SAMKV_OK)
        team->helper_count++;
    *out = team;
    return SAMKV_OK;
}

void samkv_team_free(struct samkv_team *team)
{
    if (!team)
        return;
    pthread_mutex_lock(&team->lock);
    team->ending = true;
    pthread_cond_broadcast(&team->begun);
    pthread_mutex_unlock(&team->lock);
    for (int i = 0; i < team->helper_count; i++)
        pthread_join(team->helpers[i], NULL);
    pthread_cond_destroy(&team->begun);
    pthread_cond_destroy(&team->done);
    pthread_mutex_destroy(&team->lock);
    free(team);
}

void samkv_team_run(struct samkv_team *team, int n, int threads, void (*fn)(void *arg, int i), void *arg)
{
    int wanted = (threads < n ? threads : n) - 1;
    pthread_mutex_lock(&team->lock);
    team->fn = fn;
    team->arg = arg;
    team->n = n;
    atomic_store(&team->next, 0);
    team->wanted = wanted < 0 ? 0 : wanted < team->helper_count ? wanted : team->helper_count;
    if (team->wanted)
        pthread_cond_broadcast(&team->begun);
    pthread_mutex_unlock(&team->lock);
    work(team);
    pthread_mutex_lock(&team->lock);
    team->wanted = 0; /* who has not woken yet comes too late */
    while (team->inside)
        pthread_cond_wait(&team->done, &team->lock);
    pthread_mutex_unlock(&team->lock);
}

int samkv_team_threads(const struct samkv_team *team)
{
    return team->helper_count + 1;
}
