#pragma once
/* Checks of what clients send, at the edge: each answers the first thing that is wrong in one clear line. Pure. */
#include <stddef.h>

#include "proto/samkv.pb-c.h"
#include "proto/status.h"
#include "daemon/ingest/spec.h" /* SAMKV_MAX_BLOCK_TOKENS */

#define SAMKV_MAX_TITLE_BYTES   1000
#define SAMKV_MAX_ANCHOR_TOKENS 65536
#define SAMKV_MAX_ANSWER_TOKENS 4096

/* An id or a collection's name: UTF-8 of 1 to 255 bytes without control characters. what: "document id", ... */
enum samkv_status samkv_check_name(const char *name, const char *what, struct samkv_error *) SAMKV_MUST_USE;
/* A document's title: UTF-8 of at most SAMKV_MAX_TITLE_BYTES without control characters. */
enum samkv_status samkv_check_title(const char *title, struct samkv_error *) SAMKV_MUST_USE;
/* A collection as requests name it: "" stands for the default. */
enum samkv_status samkv_check_collection(const char *name, struct samkv_error *) SAMKV_MUST_USE;
/* 1 to SAMKV_MAX_DOCUMENTS ids. */
enum samkv_status samkv_check_ids(char *const *ids, size_t count, struct samkv_error *) SAMKV_MUST_USE;

enum samkv_status samkv_check_ingest(const ProtobufCMessage *, struct samkv_error *) SAMKV_MUST_USE;
enum samkv_status samkv_check_fetch(const ProtobufCMessage *, struct samkv_error *) SAMKV_MUST_USE;
enum samkv_status samkv_check_ask(const ProtobufCMessage *, struct samkv_error *) SAMKV_MUST_USE;
enum samkv_status samkv_check_evaluate(const ProtobufCMessage *, struct samkv_error *) SAMKV_MUST_USE;
enum samkv_status samkv_check_list(const ProtobufCMessage *, struct samkv_error *) SAMKV_MUST_USE;
enum samkv_status samkv_check_show(const ProtobufCMessage *, struct samkv_error *) SAMKV_MUST_USE;
enum samkv_status samkv_check_remove(const ProtobufCMessage *, struct samkv_error *) SAMKV_MUST_USE;
enum samkv_status samkv_check_configure(const ProtobufCMessage *, struct samkv_error *) SAMKV_MUST_USE;
enum samkv_status samkv_check_pin(const ProtobufCMessage *, struct samkv_error *) SAMKV_MUST_USE;
enum samkv_status samkv_check_verify(const ProtobufCMessage *, struct samkv_error *) SAMKV_MUST_USE;
enum samkv_status samkv_check_calibrate(const ProtobufCMessage *, struct samkv_error *) SAMKV_MUST_USE;
enum samkv_status samkv_check_export(const ProtobufCMessage *, struct samkv_error *) SAMKV_MUST_USE;
enum samkv_status samkv_check_import(const ProtobufCMessage *, struct samkv_error *) SAMKV_MUST_USE;
