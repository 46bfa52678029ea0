#include "daemon/samkv/bands.h"

#define LAYERS_PER_BAND 4 /* at least: a band costs a launch and an event */
#define RUN_ALIGNMENT   16

enum samkv_status samkv_bands_init(struct samkv_bands *b, struct samkv_device *device, uint32_t layers,
                                   size_t layer_token_bytes, void (*begin)(void *arg), void *begin_arg,
                                   struct samkv_error *err)
{
    uint32_t count = layer_token_bytes % RUN_ALIGNMENT ? 1 : layers / LAYERS_PER_BAND;
    count = count < 1 ? 1 : count > SAMKV_BANDS_MAX ? SAMKV_BANDS_MAX : count;
    *b = (struct samkv_bands){.begin = begin, .begin_arg = begin_arg};
    for (uint32_t i = 0; i <= count; i++)
        b->first_layer[i] = (uint32_t)((uint64_t)layers * i / count);
    enum samkv_status status = SAMKV_OK;
    for (uint32_t i = 0; i < count && !status; i++)
        status = device->ops->event_new(device, &b->in_place[i]);
    if (status) {
        for (uint32_t i = 0; i < count; i++)
            device->ops->event_free(b->in_place[i]);
        *b = (struct samkv_bands){0};
        return samkv_fail(err, status, "%s gives no event", device->name);
    }
    pthread_mutex_init(&b->lock, NULL);
    pthread_cond_init(&b->changed, NULL);
    b->count = (int)count;
    return SAMKV_OK;
}

void samkv_bands_deinit(struct samkv_bands *b, struct samkv_device *device)
{
    if (!b->count)
        return;
    for (int i = 0; i < b->count; i++)
        device->ops->event_free(b->in_place[i]);
    pthread_cond_destroy(&b->changed);
    pthread_mutex_destroy(&b->lock);
    *b = (struct samkv_bands){0};
}

void samkv_bands_arrive(struct samkv_bands *b, struct samkv_stream *stream)
{
    pthread_mutex_lock(&b->lock);
    stream->device->ops->record(stream, b->in_place[b->arrived]);
    bool first = b->arrived++ == 0;
    pthread_cond_broadcast(&b->changed);
    pthread_mutex_unlock(&b->lock);
    if (first && b->begin)
        b->begin(b->begin_arg);
}

void samkv_bands_fail(struct samkv_bands *b, enum samkv_status status)
{
    pthread_mutex_lock(&b->lock);
    b->ended = status;
    pthread_cond_broadcast(&b->changed);
    pthread_mutex_unlock(&b->lock);
}

enum samkv_status samkv_bands_await(struct samkv_bands *b, struct samkv_stream *stream, uint32_t layer,
                                    struct samkv_error *err)
{
    int band = 0;
    while (band + 1 < b->count && b->first_layer[band + 1] <= layer)
        band++;
    if (layer != b->first_layer[band])
        return SAMKV_OK; /* the stream waits for it already */
    pthread_mutex_lock(&b->lock);
    while (b->arrived <= band && !b->ended)
        pthread_cond_wait(&b->changed, &b->lock);
    enum samkv_status status = b->arrived > band ? SAMKV_OK : b->ended;
    pthread_mutex_unlock(&b->lock);
    if (status)
        return samkv_fail(err, status, "the documents' records could not be loaded");
    stream->device->ops->await(stream, b->in_place[band]);
    return SAMKV_OK;
}
