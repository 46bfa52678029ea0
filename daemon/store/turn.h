#pragma once
/* The turn to the next data file: the first part of a compaction (compact.h), in one piece. On the writer thread. */
#include <stdint.h>

#include "proto/status.h"

struct samkv_store;

/*
 * Makes the next generation's file with all but the bulk, and makes it the store's newest, the one of before its old
 * one. FULL unless there is room for it and for `bytes` more. When it fails the store is as it was. Time: about that
 * of reading the names and manifests once; two fsyncs and one of the directory.
 */
enum samkv_status samkv_turn(struct samkv_store *, uint64_t bytes, struct samkv_error *) SAMKV_MUST_USE;
