#ifndef SAMKV_SAMKV_H
#define SAMKV_SAMKV_H
/*
 * libsamkv: sparse KV caches from a samkvd daemon, for inference engines.
 * PLACEHOLDER PURPOSE: replaced by the client's author.
 */
#endif
