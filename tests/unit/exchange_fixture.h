#pragma once
/* A daemon of the tests that answers one request. */
#include "tests/unit/fake_daemon.h"

/* The script answers one request with this, after looking at it. */
struct exchange {
    uint16_t type;
    const ProtobufCMessageDescriptor *request;
    void (*check)(const ProtobufCMessage *);
    void (*answer)(struct fake_daemon *, uint64_t id);
};

static inline void exchange_one(struct fake_daemon *d)
{
    const struct exchange *x = d->arg;
    struct fake_request request;
    fake_greet(d);
    ck_assert(fake_receive(d, &request));
    ck_assert_uint_eq(request.frame.type, x->type);
    ck_assert_uint_eq(request.frame.flags, 0);
    ProtobufCMessage *message =
        protobuf_c_message_unpack(x->request, NULL, request.frame.payload_bytes, request.payload);
    ck_assert_ptr_nonnull(message);
    if (x->check)
        x->check(message);
    protobuf_c_message_free_unpacked(message, NULL);
    free(request.payload);
    x->answer(d, request.frame.request_id);
    fake_serve_pings(d);
}

static inline struct samkv_client *exchange_begin(struct fake_daemon *d, const struct exchange *x)
{
    *d = (struct fake_daemon){.arg = x};
    return fake_connect(d, exchange_one);
}
