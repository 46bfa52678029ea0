/* Events: order between streams, and what the host waits for. Waiting spins: a fetch waits for some hundred
 * microseconds, and a sleeping thread would add as much again. */
#include <stdlib.h>

#include "kernels/cuda/backend.cuh"

struct cuda_event {
    struct samkv_event base;
    struct cuda_device *device;
    cudaEvent_t event;
};

enum samkv_status samkv_cuda_event_new(struct samkv_device *device, struct samkv_event **out)
{
    struct cuda_device *d = (struct cuda_device *)device;
    *out = NULL;
    struct cuda_event *e = (struct cuda_event *)calloc(1, sizeof *e);
    if (!e)
        return SAMKV_NO_MEMORY;
    e->base.device = device;
    e->device = d;
    enum samkv_status status = samkv_cuda_enter(d);
    if (!status)
        status = samkv_cuda_seen(d, cudaEventCreateWithFlags(&e->event, cudaEventDisableTiming));
    if (status) {
        (void)cudaGetLastError();
        free(e);
        return status;
    }
    *out = &e->base;
    return SAMKV_OK;
}

/* CUDA keeps what is still waited for. */
void samkv_cuda_event_free(struct samkv_event *event)
{
    struct cuda_event *e = (struct cuda_event *)event;
    if (!e)
        return;
    if (samkv_cuda_enter(e->device) == SAMKV_OK) {
        (void)samkv_cuda_seen(e->device, cudaEventDestroy(e->event));
        (void)cudaGetLastError();
    }
    free(e);
}

void samkv_cuda_record(struct samkv_stream *stream, struct samkv_event *event)
{
    struct cuda_stream *s = samkv_cuda_begin(stream, "record");
    if (s)
        samkv_cuda_check(s, cudaEventRecord(((struct cuda_event *)event)->event, s->queue), "record");
}

void samkv_cuda_await(struct samkv_stream *stream, struct samkv_event *event)
{
    struct cuda_stream *s = samkv_cuda_begin(stream, "await");
    if (s)
        samkv_cuda_check(s, cudaStreamWaitEvent(s->queue, ((struct cuda_event *)event)->event, 0), "await");
}

enum samkv_status samkv_cuda_event_sync(struct samkv_event *event, struct samkv_error *err)
{
    struct cuda_event *e = (struct cuda_event *)event;
    struct cuda_device *d = e->device;
    const char *why = "earlier work failed";
    enum samkv_status status = SAMKV_DEVICE;
    if (!samkv_cuda_lost(d)) {
        cudaError_t error = cudaSetDevice(d->ordinal);
        if (error == cudaSuccess)
            error = cudaEventSynchronize(e->event);
        status = samkv_cuda_seen(d, error);
        why = cudaGetErrorString(error);
        (void)cudaGetLastError();
    }
    if (!status)
        return SAMKV_OK;
    return samkv_fail(err, status, "%s: work on the device failed: %s%s", d->base.name, why,
                      samkv_cuda_lost(d) ? ": " SAMKV_CUDA_LOST_ADVICE : "");
}
