#pragma once
/* What a fetch does about damaged records: it has them recomputed and tries once more. Private to this room. */
#include "daemon/fetch/fetch.h"

/* Repairs every document of the request, and the preamble. OK when all of it can be read again. */
enum samkv_status samkv_fetch_heal(struct samkv_models *, struct samkv_store *, const struct samkv_fetch_request *,
                                   struct samkv_error *) SAMKV_MUST_USE;
