#pragma once
/* What requests work with, set up before the first client and shared by all of them. Any thread. */
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "daemon/base/clock.h"
#include "daemon/base/metrics.h"
#include "daemon/fetch/gates.h"
#include "daemon/net/access.h"
#include "daemon/net/bounds.h"
#include "daemon/net/telemetry.h"
#include "daemon/samkv/models.h"
#include "daemon/store/store.h"

struct samkv_service {
    struct samkv_models *models; /* borrowed; may hold none */
    struct samkv_store *store;   /* borrowed */
    struct samkv_gates *gates;   /* borrowed; NULL: no collection has a quality */
    const char *store_path;
    double started_ms; /* samkv_now_ms */
    struct samkv_access access;
    const struct samkv_bounds *bounds; /* borrowed; the server puts the defaults where there are none */
    struct samkv_metrics metrics;
    struct samkv_telemetry telemetry; /* the server makes it ready, and takes it down */
    _Atomic uint32_t connections;     /* now */
    _Atomic uint32_t requests;        /* that workers have or that wait for one */
    _Atomic uint32_t leases;          /* of replies in device memory: being made, on their way or with clients */
    _Atomic uint32_t bundles;         /* exports and imports that run */
    atomic_bool stopping;             /* new requests are refused */
};
