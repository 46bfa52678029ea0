#include "daemon/net/outbox.h"

enum samkv_status samkv_outbox_init(struct samkv_outbox *box, uv_loop_t *loop, uv_async_cb on_wake, void *arg)
{
    if (uv_async_init(loop, &box->wake, on_wake) != 0)
        return SAMKV_IO;
    box->wake.data = arg;
    pthread_mutex_init(&box->lock, NULL);
    box->first = NULL;
    box->last = &box->first;
    return SAMKV_OK;
}

void samkv_outbox_deinit(struct samkv_outbox *box)
{
    struct samkv_outgoing *frame = samkv_outbox_take(box);
    while (frame) {
        struct samkv_outgoing *next = frame->next;
        samkv_outgoing_free(frame);
        frame = next;
    }
    pthread_mutex_destroy(&box->lock);
}

void samkv_outbox_post(struct samkv_outbox *box, struct samkv_outgoing *frame)
{
    pthread_mutex_lock(&box->lock);
    frame->next = NULL;
    *box->last = frame;
    box->last = &frame->next;
    /* Under the lock: who frees the outbox after the last frame came cannot meet a wake that is still going on. */
    uv_async_send(&box->wake);
    pthread_mutex_unlock(&box->lock);
}

struct samkv_outgoing *samkv_outbox_take(struct samkv_outbox *box)
{
    pthread_mutex_lock(&box->lock);
    struct samkv_outgoing *first = box->first;
    box->first = NULL;
    box->last = &box->first;
    pthread_mutex_unlock(&box->lock);
    return first;
}
