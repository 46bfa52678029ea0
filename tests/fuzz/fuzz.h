#pragma once
/*
 * What the fuzzers share. A target is one file with LLVMFuzzerTestOneInput, which holds what it reads to its promises:
 * an error has one clear line, memory is bounded by the input, what was accepted can be used. It is linked twice: with
 * replay.c, to run a corpus under any compiler, and (SAMKV_FUZZ) with libFuzzer.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/status.h"
#include "tests/fuzz/heap.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What the programs promise; a fuzzer that finds it broken stops. */
#define FUZZ_REQUIRE(promise, ...)                                                                                     \
    do {                                                                                                               \
        if (!(promise)) {                                                                                              \
            fprintf(stderr, "%s:%d: %s is broken: ", __FILE__, __LINE__, #promise);                                    \
            fprintf(stderr, __VA_ARGS__);                                                                              \
            fputc('\n', stderr);                                                                                       \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

/* Reads every byte, so that a sanitizer sees those that are not there. */
static inline void fuzz_touch(const void *at, size_t bytes)
{
    uint8_t sum = 0;
    for (size_t i = 0; i < bytes; i++)
        sum ^= ((const uint8_t *)at)[i];
    __asm__ volatile("" : : "r"(sum)); /* not to be left out */
}

/* One line for the user. FUZZ_SAY=1 shows it, to see what an input comes to. */
static inline void fuzz_check_error(enum samkv_status status, const struct samkv_error *err)
{
    if (getenv("FUZZ_SAY"))
        fprintf(stderr, "%s: %s\n", samkv_status_name(status), err->text);
    FUZZ_REQUIRE(err->status == status, "%s, but the error says %s", samkv_status_name(status),
                 samkv_status_name(err->status));
    size_t bytes = strnlen(err->text, sizeof err->text);
    FUZZ_REQUIRE(bytes >= 8 && bytes < sizeof err->text, "%s: '%.300s'", samkv_status_name(status), err->text);
    for (const unsigned char *c = (const unsigned char *)err->text; *c; c++)
        FUZZ_REQUIRE(*c >= 0x20 && *c != 0x7f, "a control character: '%s'", err->text);
}

/* At most `factor` times the input and `more` bytes were held since heap_begin. */
static inline void fuzz_check_heap(size_t input_bytes, size_t factor, size_t more)
{
    size_t peak = heap_peak();
    FUZZ_REQUIRE(!heap_is_counted() || peak <= factor * input_bytes + more, "%zu bytes of heap for %zu of input", peak,
                 input_bytes);
}

/* An own copy of exactly `size` bytes, on the heap, so that a sanitizer sees every read behind it. */
static inline uint8_t *fuzz_copy(const uint8_t *data, size_t size)
{
    uint8_t *copy = malloc(size ? size : 1);
    FUZZ_REQUIRE(copy, "no memory for the input");
    memcpy(copy, data, size);
    return copy;
}
