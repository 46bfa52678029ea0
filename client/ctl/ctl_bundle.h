#pragma once
/* What export and import share: how far a bundle is, on stderr and in JSON. */
#include <jansson.h>

#include "client/ctl/ctl.h"
#include "client/ctl/ctl_progress.h"

/* For on_progress of both calls; arg is a struct ctl_progress. */
bool ctl_bundle_progress(void *arg, const struct samkv_bundle_answer *);

/* Adds collection, documents, bytes, last_id and seconds. */
void ctl_bundle_json(json_t *object, const struct samkv_bundle_answer *, double seconds);
