#pragma once
/*
 * What calibrating found for a model, kept in the store under the model's fingerprint: fetches that name no stable
 * layers use its layers, those that name no ratio its ratio, and collections that are made from then on its sizes.
 */
#include "daemon/model/config.h"
#include "daemon/store/store.h"

#define SAMKV_CALIBRATION_MAX_LAYERS 64 /* stable layers of one calibration */

struct samkv_calibration {
    uint8_t fingerprint[16];
    uint32_t layers[SAMKV_CALIBRATION_MAX_LAYERS]; /* ascending, each below the model's layers */
    uint32_t layer_count;                          /* at least 1 */
    double ratio;                                  /* (0, 1]; 0: none was found, the default stays */
    uint32_t block_tokens;                         /* 0: none was found, likewise */
    int64_t init_tokens, local_tokens;             /* -1: likewise */
    /* How it was found. */
    uint32_t samples;
    double recall, agreement, kl; /* on the sample, with these layers; see samkv_calibrate */
    int64_t unix_s;
};

/* NOT_FOUND without text when the model has none; CORRUPT when it is damaged or is not of a model with so many layers.
 */
enum samkv_status samkv_calibration_load(struct samkv_snapshot *, const uint8_t fingerprint[16], uint32_t layers,
                                         struct samkv_calibration *out, struct samkv_error *) SAMKV_MUST_USE;

enum samkv_status samkv_calibration_save(struct samkv_store *, const struct samkv_calibration *,
                                         struct samkv_error *) SAMKV_MUST_USE;

/* NOT_FOUND without text when there is none. */
enum samkv_status samkv_calibration_forget(struct samkv_store *, const uint8_t fingerprint[16],
                                           struct samkv_error *) SAMKV_MUST_USE;
