#pragma once
/* Quality gates and calibrations as messages, with the text and arrays that these point to, and as metrics. */
#include <stdio.h>

#include "proto/samkv.pb-c.h"
#include "daemon/fetch/gates.h"
#include "daemon/ingest/calibration.h"
#include "daemon/net/service.h"

struct samkv_quality_row {
    Samkv__Quality message;
    struct samkv_gate_info info;
    char target[32];
};

/* False: the collection has no quality; the message is not to be used. */
bool samkv_quality_row_fill(const struct samkv_service *, const char *collection, struct samkv_quality_row *);

struct samkv_calibration_row {
    Samkv__Calibration message;
    struct samkv_calibration calibration;
    char fingerprint[33], model[64];
};

void samkv_calibration_row_make(const struct samkv_calibration *, const char *model, struct samkv_calibration_row *);

/* The stored one of a loaded model. False: it has none, or a damaged one. */
bool samkv_calibration_row_fill(const struct samkv_service *, const struct samkv_engine *,
                                struct samkv_calibration_row *);

#define SAMKV_QUALITY_ROWS 100

/* What STATUS tells of all of them. */
struct samkv_quality_list {
    struct samkv_quality_row rows[SAMKV_QUALITY_ROWS];
    Samkv__Quality *pointers[SAMKV_QUALITY_ROWS];
    size_t count;
    struct samkv_calibration_row calibrations[SAMKV_MAX_MODELS];
    Samkv__Calibration *calibration_pointers[SAMKV_MAX_MODELS];
    size_t calibration_count;
};

/* On the heap, NULL without memory. `readable` (NULL: all): only of the collections that it lists. */
struct samkv_quality_list *samkv_quality_list_new(const struct samkv_service *, const Samkv__StatusReply *readable);

/* Gauges of each collection, as Prometheus reads them. */
void samkv_quality_write_metrics(const struct samkv_service *, FILE *out);
