#include "daemon/samkv/lease.h"

#include <pthread.h>
#include <stdlib.h>

#include "daemon/base/thread.h"

/* Kept memory serves a reply if it wastes no more than the reply needs, or this much: it comes in steps of megabytes.
 */
#define SMALL_BYTES ((size_t)32 << 20)
#define KEPT_SHARE  4                   /* of the limit, */
#define KEPT_BYTES  ((uint64_t)1 << 30) /* or so much */

struct samkv_lease {
    struct samkv_leases *pool;
    void *memory;
    size_t bytes;
    uint32_t user;            /* whose clients have seen it, or will */
    uint32_t holders;         /* under the pool's lock, as the next */
    bool unclean;             /* some holder's end was */
    struct samkv_lease *next; /* in the list that it is in */
};

struct samkv_leases {
    struct samkv_device *device;
    pthread_t janitor; /* gives memory back, which waits for the device */
    pthread_mutex_t lock;
    pthread_cond_t dirty;
    struct samkv_lease *kept, *given_up; /* latest first */
    struct samkv_leases_stats stats;
    uint64_t doomed_bytes; /* of given_up, and of what the janitor has in hand */
    bool ending;
};

static void destroy(struct samkv_lease *lease)
{
    struct samkv_device *device = lease->pool->device;
    device->ops->shared_release(device, lease->memory);
    free(lease);
}

static void *run_janitor(void *arg)
{
    struct samkv_leases *pool = arg;
    pthread_mutex_lock(&pool->lock);
    for (;;) {
        struct samkv_lease *lease = pool->given_up;
        if (lease) {
            pool->given_up = lease->next;
            uint64_t bytes = lease->bytes;
            pthread_mutex_unlock(&pool->lock);
            destroy(lease);
            pthread_mutex_lock(&pool->lock);
            pool->doomed_bytes -= bytes;
        } else if (pool->ending) {
            break;
        } else {
            pthread_cond_wait(&pool->dirty, &pool->lock);
        }
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

enum samkv_status samkv_leases_new(struct samkv_device *device, uint64_t limit_bytes, struct samkv_leases **out)
{
    struct samkv_leases *pool = calloc(1, sizeof *pool);
    if (!pool)
        return SAMKV_NO_MEMORY;
    pool->device = device;
    pool->stats.limit_bytes = limit_bytes;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->dirty, NULL);
    if (samkv_thread_start(&pool->janitor, "leases", run_janitor, pool)) {
        pthread_cond_destroy(&pool->dirty);
        pthread_mutex_destroy(&pool->lock);
        free(pool);
        return SAMKV_NO_MEMORY;
    }
    *out = pool;
    return SAMKV_OK;
}

/* Lock held. */
static void give_up(struct samkv_leases *pool, struct samkv_lease *lease)
{
    lease->next = pool->given_up;
    pool->given_up = lease;
    pool->doomed_bytes += lease->bytes;
    pthread_cond_signal(&pool->dirty);
}

/* Lock held; something is kept. */
static void give_up_oldest(struct samkv_leases *pool)
{
    struct samkv_lease **at = &pool->kept;
    while ((*at)->next)
        at = &(*at)->next;
    struct samkv_lease *oldest = *at;
    *at = NULL;
    pool->stats.kept_bytes -= oldest->bytes;
    give_up(pool, oldest);
}

/* Lock held. */
static void give_up_kept(struct samkv_leases *pool)
{
    while (pool->kept)
        give_up_oldest(pool);
}

void samkv_leases_free(struct samkv_leases *pool)
{
    if (!pool)
        return;
    pthread_mutex_lock(&pool->lock);
    give_up_kept(pool);
    pool->ending = true;
    pthread_cond_signal(&pool->dirty);
    pthread_mutex_unlock(&pool->lock);
    pthread_join(pool->janitor, NULL);
    pthread_cond_destroy(&pool->dirty);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

/* Lock held: the smallest kept memory of this user's that serves, taken out of the list. */
static struct samkv_lease *take_kept(struct samkv_leases *pool, uint32_t user, size_t bytes)
{
    struct samkv_lease **best = NULL;
    size_t waste = bytes > SMALL_BYTES ? bytes : SMALL_BYTES;
    for (struct samkv_lease **at = &pool->kept; *at; at = &(*at)->next)
        if ((*at)->user == user && (*at)->bytes >= bytes && (*at)->bytes - bytes <= waste &&
            (!best || (*at)->bytes < (*best)->bytes))
            best = at;
    if (!best)
        return NULL;
    struct samkv_lease *lease = *best;
    *best = lease->next;
    pool->stats.kept_bytes -= lease->bytes;
    return lease;
}

static enum samkv_status make(struct samkv_leases *pool, uint32_t user, size_t bytes, struct samkv_lease **out,
                              struct samkv_error *err)
{
    struct samkv_device *device = pool->device;
    struct samkv_lease *lease = calloc(1, sizeof *lease);
    if (!lease)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    lease->pool = pool;
    lease->bytes = bytes;
    lease->user = user;
    lease->holders = 1;
    enum samkv_status status = device->ops->shared_alloc(device, &lease->bytes, &lease->memory);
    if (status) {
        free(lease);
        return samkv_fail(err, status,
                          "%s has no memory for a reply of %zu MB: ask for fewer documents, a lower ratio or host "
                          "memory, or start samkvd with a smaller --device-cache-bytes",
                          device->name, bytes >> 20);
    }
    *out = lease;
    return SAMKV_OK;
}

/* Lock held: whether a new lease of so many bytes fits, kept memory given up for it if need be. */
static enum samkv_status reserve(struct samkv_leases *pool, size_t bytes, struct samkv_error *err)
{
    struct samkv_leases_stats *s = &pool->stats;
    if (bytes > s->limit_bytes)
        return samkv_fail(err, SAMKV_TOO_LARGE,
                          "a reply of %zu MB exceeds the %llu MB of device memory for replies: ask for fewer documents "
                          "or a lower ratio, or raise --device-reply-bytes",
                          bytes >> 20, (unsigned long long)(s->limit_bytes >> 20));
    if (s->held_bytes + s->kept_bytes + pool->doomed_bytes + bytes > s->limit_bytes)
        give_up_kept(pool);
    if (s->held_bytes + bytes > s->limit_bytes)
        return samkv_fail(err, SAMKV_BUSY,
                          "clients hold %llu caches of together %llu MB on the device, of %llu MB for replies: free "
                          "some, ask for host memory, or raise --device-reply-bytes",
                          (unsigned long long)s->held, (unsigned long long)(s->held_bytes >> 20),
                          (unsigned long long)(s->limit_bytes >> 20));
    s->held++;
    s->held_bytes += bytes;
    return SAMKV_OK;
}

enum samkv_status samkv_lease_take(struct samkv_leases *pool, uint32_t user, size_t bytes, struct samkv_lease **out,
                                   struct samkv_error *err)
{
    *out = NULL;
    pthread_mutex_lock(&pool->lock);
    struct samkv_lease *lease = take_kept(pool, user, bytes);
    if (lease) {
        lease->holders = 1;
        pool->stats.held++;
        pool->stats.held_bytes += lease->bytes;
        pthread_mutex_unlock(&pool->lock);
        *out = lease;
        return SAMKV_OK;
    }
    enum samkv_status status = reserve(pool, bytes, err);
    pthread_mutex_unlock(&pool->lock);
    if (status)
        return status;
    status = make(pool, user, bytes, out, err);
    pthread_mutex_lock(&pool->lock);
    pool->stats.held_bytes += (status ? 0 : (*out)->bytes) - (uint64_t)bytes;
    pool->stats.held -= status != SAMKV_OK;
    pthread_mutex_unlock(&pool->lock);
    return status;
}

void *samkv_lease_memory(const struct samkv_lease *lease)
{
    return lease->memory;
}

size_t samkv_lease_bytes(const struct samkv_lease *lease)
{
    return lease->bytes;
}

enum samkv_status samkv_lease_export(const struct samkv_lease *lease, int *fd, struct samkv_error *err)
{
    struct samkv_device *device = lease->pool->device;
    enum samkv_status status = device->ops->shared_export(device, lease->memory, fd);
    return status ? samkv_fail(err, status, "%s cannot share the reply's memory: ask for host memory", device->name)
                  : SAMKV_OK;
}

/* Lock held. The engine beside us wants the device's memory too, so what is kept stays below a share of the limit; the
 * oldest goes first. */
static void keep(struct samkv_leases *pool, struct samkv_lease *lease)
{
    struct samkv_leases_stats *s = &pool->stats;
    uint64_t most = s->limit_bytes / KEPT_SHARE > KEPT_BYTES ? s->limit_bytes / KEPT_SHARE : KEPT_BYTES;
    lease->next = pool->kept;
    pool->kept = lease;
    s->kept_bytes += lease->bytes;
    while (lease->next && (s->kept_bytes > most || s->held_bytes + s->kept_bytes > s->limit_bytes))
        give_up_oldest(pool);
}

struct samkv_lease *samkv_lease_share(struct samkv_lease *lease)
{
    pthread_mutex_lock(&lease->pool->lock);
    lease->holders++;
    pthread_mutex_unlock(&lease->pool->lock);
    return lease;
}

void samkv_lease_end(struct samkv_lease *lease, bool clean)
{
    if (!lease)
        return;
    struct samkv_leases *pool = lease->pool;
    pthread_mutex_lock(&pool->lock);
    lease->unclean = lease->unclean || !clean;
    if (--lease->holders) {
        pthread_mutex_unlock(&pool->lock);
        return;
    }
    pool->stats.held--;
    pool->stats.held_bytes -= lease->bytes;
    if (lease->unclean)
        give_up(pool, lease);
    else
        keep(pool, lease);
    pthread_mutex_unlock(&pool->lock);
}

void samkv_leases_stats(struct samkv_leases *pool, struct samkv_leases_stats *out)
{
    pthread_mutex_lock(&pool->lock);
    *out = pool->stats;
    pthread_mutex_unlock(&pool->lock);
}
