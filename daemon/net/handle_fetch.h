#pragma once
/* A fetch's request and reply between protobuf and the job, for the handlers whose messages contain them. */
#include "daemon/fetch/fetch.h"
#include "daemon/net/request.h"

/* What was validated, in the job's own terms; collection: as samkv_access_find gave it. Pointers are the message's. */
void samkv_fetch_message_read(struct samkv_request *, const Samkv__FetchRequest *, const char *collection,
                              struct samkv_fetch_request *out);

/* A FetchReply over a result, with the few arrays that protobuf-c wants in its own form. */
struct samkv_fetch_message {
    Samkv__FetchReply message;
    Samkv__Timing timing;
    Samkv__DeviceMemory device;
    Samkv__Kept *kept;
    Samkv__Kept **kept_pointers;
};

/* Deinit in every case; the result must outlive the message. */
enum samkv_status samkv_fetch_message_init(struct samkv_fetch_message *, const struct samkv_request *,
                                           const struct samkv_fetch_result *) SAMKV_MUST_USE;
void samkv_fetch_message_deinit(struct samkv_fetch_message *);
