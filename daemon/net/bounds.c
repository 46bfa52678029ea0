#include "daemon/net/bounds.h"

const struct samkv_bounds samkv_bounds_default = {
    .connections = 256,
    .user_connections = 128,
    .in_flight = 64,
    .user_requests = 512,
    .queue = 4096,
    .connection_bytes = (size_t)64 << 20,
    .stall_ms = 30000,
    .request_ms = 3600 * 1000,
};
