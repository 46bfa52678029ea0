/*
 * Tokenizes texts for compare_tokenizers.py.
 *   tokenize_tool FILE FLAGS     FILE: a tokenizer.json or a .gguf; FLAGS: SAMKV_ENCODE_* as a number
 * stdin: texts, each a 32-bit length and its bytes. stdout, for each: 32-bit status, count, the ids, length of the
 * decoded bytes, the decoded bytes (all in the machine's byte order). "time" as a third argument: prints bytes a second
 * over all of stdin instead.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "daemon/model/gguf.h"
#include "daemon/model/tokenizer.h"

static char *read_file(const char *path, size_t *bytes)
{
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END))
        return NULL;
    long size = ftell(file);
    char *data = size >= 0 ? malloc((size_t)size + 1) : NULL;
    rewind(file);
    *bytes = data ? fread(data, 1, (size_t)size, file) : 0;
    fclose(file);
    return data;
}

static struct samkv_tokenizer *load(const char *path)
{
    struct samkv_tokenizer *tokenizer = NULL;
    struct samkv_error err = {0};
    size_t length = strlen(path), bytes = 0;
    enum samkv_status status;
    if (length > 5 && strcmp(path + length - 5, ".gguf") == 0) {
        struct samkv_gguf *file = NULL;
        status = samkv_gguf_open(path, &file, &err);
        if (status == SAMKV_OK)
            status = samkv_tokenizer_from_gguf(file, &tokenizer, &err);
        samkv_gguf_close(file);
    } else {
        char *json = read_file(path, &bytes);
        if (!json) {
            fprintf(stderr, "cannot read %s\n", path);
            return NULL;
        }
        status = samkv_tokenizer_from_json(json, bytes, &tokenizer, &err);
        free(json);
    }
    if (status != SAMKV_OK)
        fprintf(stderr, "%s: %s\n", path, err.text);
    return tokenizer;
}

static bool answer(const struct samkv_tokenizer *tokenizer, const char *text, uint32_t bytes, int flags)
{
    struct samkv_error err = {0};
    struct samkv_ids ids;
    char *decoded = NULL;
    size_t decoded_bytes = 0;
    samkv_ids_init(&ids);
    enum samkv_status status = samkv_tokenizer_encode(tokenizer, text, bytes, flags, &ids, &err);
    if (status == SAMKV_OK)
        status = samkv_tokenizer_decode(tokenizer, ids.data, ids.count, false, &decoded, &decoded_bytes, &err);
    if (status != SAMKV_OK)
        fprintf(stderr, "%s\n", err.text);
    uint32_t head[2] = {(uint32_t)status, (uint32_t)ids.count}, tail = (uint32_t)decoded_bytes;
    bool good = fwrite(head, sizeof head, 1, stdout) == 1 && fwrite(ids.data, 4, ids.count, stdout) == ids.count &&
                fwrite(&tail, 4, 1, stdout) == 1 && fwrite(decoded, 1, tail, stdout) == tail;
    free(decoded);
    samkv_ids_deinit(&ids);
    return good;
}

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

int main(int argc, char **argv)
{
    struct samkv_tokenizer *tokenizer = argc >= 3 ? load(argv[1]) : NULL;
    if (!tokenizer)
        return 2;
    uint32_t bytes;
    bool timing = argc > 3 && strcmp(argv[3], "time") == 0;
    double total = 0, spent = 0;
    while (fread(&bytes, 4, 1, stdin) == 1) {
        char *text = malloc((size_t)bytes + 1);
        if (!text || fread(text, 1, bytes, stdin) != bytes)
            return 1;
        if (timing) {
            struct samkv_ids ids;
            samkv_ids_init(&ids);
            double start = seconds();
            if (samkv_tokenizer_encode(tokenizer, text, bytes, atoi(argv[2]), &ids, NULL) != SAMKV_OK)
                return 1;
            spent += seconds() - start;
            total += bytes;
            samkv_ids_deinit(&ids);
        } else if (!answer(tokenizer, text, bytes, atoi(argv[2]))) {
            return 1;
        }
        free(text);
    }
    if (timing)
        printf("%.0f bytes in %.3f s: %.2f MB/s\n", total, spent, total / spent / 1e6);
    samkv_tokenizer_free(tokenizer);
    return 0;
}
