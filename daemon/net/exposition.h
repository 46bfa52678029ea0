#pragma once
/*
 * The daemon's metrics as Prometheus reads them: the text format, version 0.0.4. Names carry their unit, counters end
 * in _total. The table is in exposition.c; a counter of STATUS that it does not know is exposed under its own name.
 */
#include <stdio.h>

#include "daemon/net/service.h"

#define SAMKV_EXPOSITION_TYPE "text/plain; version=0.0.4; charset=utf-8"

/* Uses the last sample of the store's sums, and nothing that is slow. Any thread but the event loop's. */
void samkv_exposition_write(const struct samkv_service *, const struct samkv_sample *, FILE *out);
