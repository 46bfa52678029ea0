#pragma once
/* What config.c and config_rope.c share: reading config.json's values. Private to them. */
#include <jansson.h>

#include "daemon/model/config.h"

/* A key's value; NULL when it is missing or null, which Hugging Face treats alike. */
const json_t *samkv_json_value(const json_t *object, const char *key);

/* *out stays what it is (the default) when the key is missing; INVALID for another type, or a number that is no u32
 * above 0. */
enum samkv_status samkv_json_u32(const json_t *object, const char *key, uint32_t *out,
                                 struct samkv_error *) SAMKV_MUST_USE;
enum samkv_status samkv_json_bool(const json_t *object, const char *key, bool *out,
                                  struct samkv_error *) SAMKV_MUST_USE;
enum samkv_status samkv_json_number(const json_t *object, const char *key, double *out,
                                    struct samkv_error *) SAMKV_MUST_USE;

/* Frequencies and scale, from rope_theta, rope_scaling and rope_parameters. Sizes must have been read, head_dim
 * checked. */
enum samkv_status samkv_config_read_rope(const json_t *root, struct samkv_model_config *,
                                         struct samkv_error *) SAMKV_MUST_USE;
