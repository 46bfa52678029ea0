/*
 * ggml's encodings to float32, for compare_dequant.py.
 *   dequant_tool TYPE     TYPE: ggml's number of it
 * stdin: whole blocks. stdout: their elements as float32. Exit code 1 for a type or a size that cannot be read.
 */
#include <stdio.h>
#include <stdlib.h>

#include "daemon/model/gguf.h"

#define MAX_BYTES ((size_t)256 << 20)

int main(int argc, char **argv)
{
    uint32_t type = argc > 1 ? (uint32_t)atoi(argv[1]) : UINT32_MAX, elements, block;
    uint8_t *raw = malloc(MAX_BYTES);
    size_t bytes = raw ? fread(raw, 1, MAX_BYTES, stdin) : 0;
    bool fits = bytes && samkv_gguf_type_block(type, &elements, &block) && bytes % block == 0;
    size_t count = fits ? bytes / block * elements : 0;
    float *values = malloc(count * sizeof *values + 1);
    bool good = fits && values && samkv_gguf_dequantise(type, raw, count, values) &&
                fwrite(values, sizeof *values, count, stdout) == count;
    free(values);
    free(raw);
    return good ? 0 : 1;
}
