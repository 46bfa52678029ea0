#include "daemon/samkv/models.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/log.h"
#include "daemon/model/forward.h"
#include "daemon/samkv/cost.h"
#include "daemon/samkv/lease.h"
#include "daemon/samkv/prefill.h"
#include "daemon/samkv/transfer.h"

static void engine_close(struct samkv_engine *e)
{
    samkv_lane_free(e->lane);
    samkv_lane_free(e->query_lane);
    samkv_workspace_free(e->query_workspace);
    if (e->query_stream)
        e->device->ops->stream_free(e->query_stream);
    samkv_prefiller_free(e->prefiller);
    if (e->cost)
        samkv_cost_deinit(e->cost);
    free(e->cost);
    samkv_workspace_free(e->workspace);
    if (e->stream)
        e->device->ops->stream_free(e->stream);
    samkv_model_free(e->model);
    *e = (struct samkv_engine){0};
}

void samkv_models_close(struct samkv_models *models)
{
    if (!models)
        return;
    struct samkv_device *device = models->device;
    samkv_leases_free(models->leases);
    samkv_transfer_free(models->transfer);
    for (size_t i = 0; i < models->count; i++)
        engine_close(&models->engines[i]);
    if (device)
        device->ops->device_free(device);
    free(models);
}

/* "NAME=PATH", or a path named after its last component. A '=' behind a '/' belongs to the path. */
static enum samkv_status split_spec(const char *spec, char *name, size_t name_bytes, const char **path,
                                    struct samkv_error *err)
{
    const char *equals = strchr(spec, '='), *slash = strchr(spec, '/');
    const char *from = spec;
    size_t length;
    if (equals && (!slash || equals < slash)) {
        length = (size_t)(equals - spec);
        *path = equals + 1;
    } else {
        *path = spec;
        length = strlen(spec);
        while (length > 1 && spec[length - 1] == '/')
            length--;
        size_t first = length;
        while (first > 0 && spec[first - 1] != '/')
            first--;
        from = spec + first;
        length -= first;
    }
    if (!length || length >= name_bytes || !**path)
        return samkv_fail(err, SAMKV_INVALID, "model '%s': say NAME=PATH with a name of 1 to %zu bytes", spec,
                          name_bytes - 1);
    memcpy(name, from, length);
    name[length] = '\0';
    return SAMKV_OK;
}

enum samkv_status samkv_device_blame(struct samkv_device *device, enum samkv_status status, struct samkv_error *err)
{
    void *probe = NULL;
    if (status != SAMKV_NO_MEMORY || !device)
        return status;
    if (device->ops->alloc(device, 1, &probe) == SAMKV_DEVICE)
        return samkv_fail(err, SAMKV_DEVICE, "%s is lost: restart samkvd", device->name);
    device->ops->release(device, probe);
    return status;
}

static enum samkv_status open_query_side(struct samkv_engine *e, struct samkv_error *err)
{
    if (e->device->unified)
        return SAMKV_OK;
    if (e->device->ops->stream_new(e->device, &e->query_stream))
        return samkv_fail(err, SAMKV_DEVICE, "cannot make a stream on %s", e->device->name);
    enum samkv_status status = samkv_workspace_new(e->model, &e->query_workspace, err);
    if (!status && samkv_lane_new("queries", &e->query_lane))
        status = samkv_fail(err, SAMKV_NO_MEMORY, "cannot start the thread of queries");
    return status;
}

struct samkv_engine samkv_engine_for_queries(const struct samkv_engine *engine)
{
    struct samkv_engine e = *engine;
    if (e.query_lane) {
        e.lane = e.query_lane;
        e.stream = e.query_stream;
        e.workspace = e.query_workspace;
    }
    return e;
}

static enum samkv_status engine_open(struct samkv_engine *e, struct samkv_device *device, const char *spec,
                                     enum samkv_dtype stored, struct samkv_error *err)
{
    char name[sizeof e->model->name];
    const char *path;
    enum samkv_status status = split_spec(spec, name, sizeof name, &path, err);
    if (status)
        return status;
    *e = (struct samkv_engine){.device = device, .stored = stored};
    status = samkv_model_load(name, path, device, &e->model, err);
    if (!status && device->ops->stream_new(device, &e->stream))
        status = samkv_fail(err, SAMKV_DEVICE, "cannot make a stream on %s", device->name);
    if (!status)
        status = samkv_workspace_new(e->model, &e->workspace, err);
    if (!status && samkv_prefiller_new(device, e->workspace, &e->prefiller))
        status = samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    if (!status && samkv_lane_new(name, &e->lane))
        status = samkv_fail(err, SAMKV_NO_MEMORY, "cannot start the thread of model '%s'", name);
    if (!status)
        status = open_query_side(e, err);
    if (!status && !(e->cost = malloc(sizeof *e->cost)))
        status = samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    if (!status)
        samkv_cost_init(e->cost);
    if (status) {
        engine_close(e);
        return samkv_device_blame(device, status, err);
    }
    const struct samkv_model_config *c = &e->model->config;
    samkv_log(
        SAMKV_LOG_INFO,
        "model name=%s layers=%u heads=%u/%u head_dim=%u vocab=%u context=%u weights=%llu MB device=\"%s\" dtype=%s",
        name, c->layers, c->heads, c->kv_heads, c->head_dim, c->vocab, c->context_tokens,
        (unsigned long long)(e->model->weight_bytes >> 20), device->name, samkv_dtype_name(stored));
    return SAMKV_OK;
}

static enum samkv_status open_device(const struct samkv_models_options *options, const char *spec,
                                     struct samkv_device **out, char *note, size_t note_bytes, struct samkv_error *err)
{
    enum samkv_dtype wanted = options->dtype == SAMKV_F16 ? SAMKV_F16 : SAMKV_BF16;
    enum samkv_status status = !strcmp(spec, "cpu") ? samkv_cpu_device_new(options->threads, out, err)
                                                    : samkv_device_open(spec, wanted, out, note, note_bytes, err);
    /* Whoever asks for another type than bf16 wants its precision. */
    if (!status && (options->dtype < 0 || options->dtype == SAMKV_BF16))
        (void)samkv_cpu_use_bf16(*out);
    return status;
}

/* What a device with a memory of its own needs for fetches, from what the models left of it. */
static enum samkv_status open_memory(struct samkv_models *models, const struct samkv_models_options *options,
                                     struct samkv_error *err)
{
    struct samkv_device *device = models->device;
    uint64_t free_bytes, total_bytes;
    if (device->unified)
        return SAMKV_OK;
    device->ops->memory(device, &free_bytes, &total_bytes);
    uint64_t cache = options->device_cache_bytes ? options->device_cache_bytes : free_bytes / 4;
    uint64_t replies = options->device_reply_bytes ? options->device_reply_bytes : free_bytes / 4;
    enum samkv_status status = samkv_transfer_new(device, cache, &models->transfer, err);
    if (!status && device->shares && samkv_leases_new(device, replies, &models->leases))
        status = samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    for (size_t i = 0; i < models->count; i++) {
        models->engines[i].transfer = models->transfer;
        models->engines[i].leases = models->leases;
    }
    if (!status)
        samkv_log(SAMKV_LOG_INFO, "device free=%llu MB of %llu MB cache=%llu MB replies=%llu MB",
                  (unsigned long long)(free_bytes >> 20), (unsigned long long)(total_bytes >> 20),
                  (unsigned long long)(cache >> 20), (unsigned long long)(models->leases ? replies >> 20 : 0));
    return status;
}

static enum samkv_status open_engines(struct samkv_models *models, const struct samkv_models_options *options,
                                      struct samkv_error *err)
{
    enum samkv_dtype stored = options->dtype >= 0 ? (enum samkv_dtype)options->dtype : models->device->dtype;
    for (size_t i = 0; i < options->spec_count; i++) {
        struct samkv_engine *e = &models->engines[i];
        enum samkv_status status = engine_open(e, models->device, options->specs[i], stored, err);
        if (status)
            return status;
        if (samkv_models_find(models, e->model->name)) {
            status = samkv_fail(err, SAMKV_INVALID, "two models are named '%s': give one another name", e->model->name);
            engine_close(e);
            return status;
        }
        models->count++;
    }
    return open_memory(models, options, err);
}

/* *is_gpu tells on which kind of device it failed. */
static enum samkv_status open_on(const char *spec, const struct samkv_models_options *options,
                                 struct samkv_models **out, bool *is_gpu, struct samkv_error *err)
{
    char note[256] = "";
    struct samkv_models *models = calloc(1, sizeof *models);
    if (!models)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    enum samkv_status status = open_device(options, spec, &models->device, note, sizeof note, err);
    if (status) {
        free(models);
        return status;
    }
    if (*note)
        samkv_log(SAMKV_LOG_INFO, "device note=\"%s\"", note);
    *is_gpu = !models->device->unified;
    status = open_engines(models, options, err);
    if (status)
        samkv_models_close(models);
    else
        *out = models;
    return status;
}

enum samkv_status samkv_models_open(const struct samkv_models_options *options, struct samkv_models **out,
                                    struct samkv_error *err)
{
    const char *spec = options->device ? options->device : "auto";
    struct samkv_error reason = {0};
    bool is_gpu = false;
    if (options->spec_count > SAMKV_MAX_MODELS)
        return samkv_fail(err, SAMKV_INVALID, "%zu models are too many: name at most %d", options->spec_count,
                          SAMKV_MAX_MODELS);
    enum samkv_status status = open_on(spec, options, out, &is_gpu, &reason);
    if ((status == SAMKV_NO_MEMORY || status == SAMKV_DEVICE) && is_gpu && !strcmp(spec, "auto")) {
        samkv_log(SAMKV_LOG_WARNING, "the GPU is not used, the CPU is: %s", reason.text);
        status = open_on("cpu", options, out, &is_gpu, &reason);
    }
    if (status && err)
        *err = reason;
    return status;
}

struct samkv_engine *samkv_models_find(struct samkv_models *models, const char *name)
{
    if (!name || !*name)
        return models->count ? &models->engines[0] : NULL;
    for (size_t i = 0; i < models->count; i++)
        if (!strcmp(models->engines[i].model->name, name))
            return &models->engines[i];
    return NULL;
}

struct samkv_engine *samkv_models_match(struct samkv_models *models, const uint8_t fingerprint[16])
{
    for (size_t i = 0; i < models->count; i++)
        if (!memcmp(models->engines[i].model->fingerprint, fingerprint, 16))
            return &models->engines[i];
    return NULL;
}
