#pragma once
/* What the files handle_*.c offer to the table of request types in handlers.c, and to each other. Handlers run on a
 * pool worker. */
#include "daemon/net/request.h"
#include "daemon/store/store.h"

#define SAMKV_DEFAULT_COLLECTION "default"

#define SAMKV_HANDLER(name)                                                                                            \
    enum samkv_status name(struct samkv_request *, const ProtobufCMessage *, struct samkv_outgoing **reply,            \
                           struct samkv_error *) SAMKV_MUST_USE
SAMKV_HANDLER(samkv_handle_ingest);
SAMKV_HANDLER(samkv_handle_fetch);
SAMKV_HANDLER(samkv_handle_ask);
SAMKV_HANDLER(samkv_handle_list);
SAMKV_HANDLER(samkv_handle_show);
SAMKV_HANDLER(samkv_handle_remove);
SAMKV_HANDLER(samkv_handle_status);
SAMKV_HANDLER(samkv_handle_verify);
SAMKV_HANDLER(samkv_handle_compact);
SAMKV_HANDLER(samkv_handle_export);
SAMKV_HANDLER(samkv_handle_import);
SAMKV_HANDLER(samkv_handle_configure);
SAMKV_HANDLER(samkv_handle_pin);
SAMKV_HANDLER(samkv_handle_gc);
SAMKV_HANDLER(samkv_handle_calibrate);
SAMKV_HANDLER(samkv_handle_evaluate);

/* A remove request with `all`. */
SAMKV_HANDLER(samkv_handle_remove_all);

/* A collection's message and the text that it points to while it is packed. */
struct samkv_collection_row {
    Samkv__Collection message;
    char name[SAMKV_ID_MAX_BYTES + 1], model[64], fingerprint[33];
};

/* All but the number of documents. */
void samkv_collection_row_fill(struct samkv_store *, const struct samkv_collection *, struct samkv_collection_row *);
SAMKV_HANDLER(samkv_handle_trace);

/* What STATUS tells as counters, for whoever tells it in another form; names live for ever. Returns how many. */
#define SAMKV_STATUS_COUNTERS 256
size_t samkv_status_counters(const struct samkv_service *, const struct samkv_store_stats *,
                             Samkv__Counter out[SAMKV_STATUS_COUNTERS]);

/* Resident set, 0 where /proc is not there. */
uint64_t samkv_resident_bytes(void);

/* Lower-case hex of 16 bytes. */
void samkv_hex(const uint8_t bytes[16], char out[33]);
