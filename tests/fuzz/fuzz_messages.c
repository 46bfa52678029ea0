/*
 * A request's payload: the first byte says of which type, the rest is unpacked, validated, and packed again. Its memory
 * is bounded, whatever its parts are; what was unpacked once is unpacked again from what it packs to.
 */
#include <stdbool.h>

#include "daemon/net/handlers.h"
#include "daemon/net/message.h"
#include "daemon/net/request.h"
#include "tests/fuzz/fuzz.h"

static bool has_unknown_fields(const ProtobufCMessage *message)
{
    for (unsigned i = 0; i < message->descriptor->n_fields; i++) {
        const ProtobufCFieldDescriptor *f = &message->descriptor->fields[i];
        const char *at = (const char *)message + f->offset;
        if (f->type != PROTOBUF_C_TYPE_MESSAGE)
            continue;
        size_t count = f->label == PROTOBUF_C_LABEL_REPEATED
                           ? *(const size_t *)(const void *)((const char *)message + f->quantifier_offset)
                           : *(ProtobufCMessage *const *)(const void *)at != NULL;
        ProtobufCMessage *const *list = f->label == PROTOBUF_C_LABEL_REPEATED
                                            ? *(ProtobufCMessage *const *const *)(const void *)at
                                            : (ProtobufCMessage *const *)(const void *)at;
        for (size_t k = 0; k < count; k++)
            if (has_unknown_fields(list[k]))
                return true;
    }
    return message->n_unknown_fields > 0;
}

/* Fields that are not known are kept as they came, numbers that may not be among them: those are no promise of ours. */
static void check_again(const ProtobufCMessage *message)
{
    if (has_unknown_fields(message))
        return;
    size_t bytes = protobuf_c_message_get_packed_size(message);
    uint8_t *packed = malloc(bytes ? bytes : 1);
    FUZZ_REQUIRE(packed, "no memory");
    FUZZ_REQUIRE(protobuf_c_message_pack(message, packed) == bytes, "%zu bytes", bytes);
    ProtobufCMessage *again = protobuf_c_message_unpack(message->descriptor, NULL, bytes, packed);
    FUZZ_REQUIRE(again, "%s packs to what is none", message->descriptor->name);
    FUZZ_REQUIRE(protobuf_c_message_get_packed_size(again) == bytes, "another size");
    protobuf_c_message_free_unpacked(again, NULL);
    free(packed);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size)
        return 0;
    const struct samkv_handler *handler = samkv_handler_find(data[0] % 32);
    const ProtobufCMessageDescriptor *descriptor = handler ? handler->descriptor : &samkv__hello__descriptor;
    const struct samkv_buffer payload = {.data = (uint8_t *)data + 1, .count = size - 1, .capacity = size - 1};
    struct samkv_unpacked unpacked;
    struct samkv_error err = {0};
    heap_begin();
    enum samkv_status status = samkv_message_unpack(descriptor, &payload, &unpacked, &err);
    fuzz_check_heap(size, 4, (1 << 20) + 4096);
    if (status) {
        fuzz_check_error(status, &err);
        return 0;
    }
    status = handler && handler->validate ? handler->validate(unpacked.message, &err) : SAMKV_OK;
    if (status)
        fuzz_check_error(status, &err);
    check_again(unpacked.message);
    samkv_message_free(&unpacked);
    return 0;
}
