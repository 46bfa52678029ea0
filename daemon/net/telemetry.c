#include "daemon/net/telemetry.h"

#include "daemon/net/service.h"

enum samkv_status samkv_telemetry_init(struct samkv_telemetry *t)
{
    t->traces = samkv_traces_new();
    if (!t->traces)
        return SAMKV_NO_MEMORY;
    pthread_mutex_init(&t->lock, NULL);
    return SAMKV_OK;
}

void samkv_telemetry_deinit(struct samkv_telemetry *t)
{
    if (!t->traces)
        return;
    samkv_traces_free(t->traces);
    t->traces = NULL;
    pthread_mutex_destroy(&t->lock);
}

void samkv_telemetry_last_sample(struct samkv_telemetry *t, struct samkv_sample *out)
{
    pthread_mutex_lock(&t->lock);
    *out = t->sample;
    pthread_mutex_unlock(&t->lock);
}

enum samkv_status samkv_telemetry_sample(struct samkv_service *service, double max_age_ms, struct samkv_sample *out,
                                         struct samkv_error *err)
{
    struct samkv_telemetry *t = &service->telemetry;
    double now = samkv_now_ms();
    samkv_telemetry_last_sample(t, out);
    if (out->taken_ms > 0 && now - out->taken_ms < max_age_ms)
        return SAMKV_OK;
    *out = (struct samkv_sample){.taken_ms = now};
    enum samkv_status st = samkv_store_stats(service->store, &out->stats, err);
    if (st != SAMKV_OK)
        return st;
    out->took_ms = samkv_now_ms() - now;
    pthread_mutex_lock(&t->lock);
    if (out->taken_ms > t->sample.taken_ms)
        t->sample = *out;
    pthread_mutex_unlock(&t->lock);
    return SAMKV_OK;
}
