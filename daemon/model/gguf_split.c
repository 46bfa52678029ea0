/* A model in several GGUF files: the first is opened, the others follow from its name. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/model/gguf_private.h"

#define MAX_FILES      1024
#define MAX_PATH_BYTES 4096
#define SUFFIX_BYTES   64

static void write_suffix(char suffix[SUFFIX_BYTES], uint64_t file, uint64_t count)
{
    snprintf(suffix, SUFFIX_BYTES, "-%05llu-of-%05llu.gguf", (unsigned long long)file + 1, (unsigned long long)count);
}

/* The part's place in the model is what its own metadata say. */
static enum samkv_status check_part(const struct samkv_gguf *part, const char *path, uint64_t file, uint64_t count,
                                    struct samkv_error *err)
{
    uint64_t number = UINT64_MAX, files = 0;
    if (!samkv_gguf_u64(part, "split.no", &number) || !samkv_gguf_u64(part, "split.count", &files) || number != file ||
        files != count)
        return samkv_fail(err, SAMKV_CORRUPT, "%.200s is not part %llu of %llu of the model; its parts are mixed up",
                          path, (unsigned long long)file + 1, (unsigned long long)count);
    return SAMKV_OK;
}

/* One file without its own parts. */
static enum samkv_status open_part(const char *path, struct samkv_gguf **out, struct samkv_error *err)
{
    struct samkv_mapping mapping;
    struct samkv_error why = {0};
    enum samkv_status status = samkv_mapping_open(path, SIZE_MAX, &mapping, err);
    if (status)
        return status;
    status = samkv_gguf_from_bytes(mapping.data, mapping.bytes, out, &why);
    if (status) {
        samkv_mapping_close(&mapping);
        return samkv_fail(err, status, "%.200s: %.280s", path, why.text);
    }
    (*out)->mapping = mapping;
    return SAMKV_OK;
}

/* All parts' tensors in one table, by name and in order of the files. */
static enum samkv_status merge(struct samkv_gguf *g, struct samkv_error *err)
{
    size_t count = g->entry_count, at = g->entry_count;
    for (size_t i = 0; i < g->part_count; i++)
        count += g->parts[i]->entry_count;
    struct gguf_entry *entries = realloc(g->entries, (count + 1) * sizeof *entries);
    if (entries)
        g->entries = entries;
    const struct gguf_entry **ordered = realloc(g->ordered, (count + 1) * sizeof *ordered);
    if (ordered)
        g->ordered = ordered;
    if (!entries || !ordered)
        return samkv_fail(err, SAMKV_NO_MEMORY, "no memory for %zu tensors", count);
    for (size_t i = 0; i < g->part_count; i++) {
        const struct samkv_gguf *part = g->parts[i];
        for (size_t j = 0; j < part->entry_count; j++) {
            entries[at + j] = part->entries[j];
            entries[at + j].order += at;
        }
        at += part->entry_count;
    }
    g->entry_count = count;
    qsort(entries, count, sizeof *entries, samkv_gguf_by_name);
    for (size_t i = 0; i < count; i++) {
        ordered[entries[i].order] = &entries[i];
        if (i && !samkv_gguf_by_name(&entries[i - 1], &entries[i]))
            return samkv_fail(err, SAMKV_CORRUPT, "tensor %.*s occurs in two files of the model",
                              (int)(entries[i].name_bytes < 128 ? entries[i].name_bytes : 128), entries[i].name);
    }
    return SAMKV_OK;
}

static enum samkv_status open_all(struct samkv_gguf *g, const char *path, uint64_t count, struct samkv_error *err)
{
    char suffix[SUFFIX_BYTES], name[MAX_PATH_BYTES];
    write_suffix(suffix, 0, count);
    size_t bytes = strlen(path), tail = strlen(suffix);
    if (bytes < tail || strcmp(path + bytes - tail, suffix) || bytes >= sizeof name)
        return samkv_fail(err, SAMKV_INVALID,
                          "%.200s is split into %llu files, so its name must end in %s, and the others' likewise", path,
                          (unsigned long long)count, suffix);
    g->parts = calloc(count, sizeof(struct samkv_gguf *));
    if (!g->parts)
        return samkv_fail(err, SAMKV_NO_MEMORY, "no memory for %llu files", (unsigned long long)count);
    for (uint64_t i = 1; i < count; i++) {
        write_suffix(suffix, i, count);
        snprintf(name, sizeof name, "%.*s%s", (int)(bytes - tail), path, suffix);
        enum samkv_status status = open_part(name, &g->parts[g->part_count], err);
        if (status)
            return status;
        g->part_count++;
        status = check_part(g->parts[g->part_count - 1], name, i, count, err);
        if (status)
            return status;
    }
    return merge(g, err);
}

enum samkv_status samkv_gguf_open_parts(struct samkv_gguf *g, const char *path, struct samkv_error *err)
{
    uint64_t count = 1, number = 0, tensors;
    (void)samkv_gguf_u64(g, "split.count", &count);
    (void)samkv_gguf_u64(g, "split.no", &number);
    if (count <= 1)
        return SAMKV_OK;
    if (count > MAX_FILES)
        return samkv_fail(err, SAMKV_TOO_LARGE, "%.200s is split into %llu files, more than the %d that are read", path,
                          (unsigned long long)count, MAX_FILES);
    if (number)
        return samkv_fail(err, SAMKV_INVALID, "%.200s is part %llu of a model of %llu files: name the first one", path,
                          (unsigned long long)number + 1, (unsigned long long)count);
    enum samkv_status status = open_all(g, path, count, err);
    if (!status && samkv_gguf_u64(g, "split.tensors.count", &tensors) && tensors != g->entry_count)
        return samkv_fail(err, SAMKV_CORRUPT, "%.200s and its %llu other files hold %zu tensors instead of %llu", path,
                          (unsigned long long)count - 1, g->entry_count, (unsigned long long)tensors);
    return status;
}
