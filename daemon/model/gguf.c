/* Opening a GGUF file: every count, length and offset is checked here once, so that later readers need not. */
#include <stdlib.h>
#include <string.h>

#include "daemon/model/gguf_private.h"

/* The fewest bytes that a pair (key length, type, value) and a tensor (name length, dimensions, type, offset) take. */
#define PAIR_BYTES_MIN   13
#define TENSOR_BYTES_MIN 24

struct cursor {
    const uint8_t *next, *end;
};

/* How much of a name goes into an error's text. */
static int printed(uint64_t bytes)
{
    return bytes < 128 ? (int)bytes : 128;
}

static bool take(struct cursor *c, size_t bytes, uint64_t *out)
{
    if ((size_t)(c->end - c->next) < bytes)
        return false;
    *out = gguf_load(c->next, bytes);
    c->next += bytes;
    return true;
}

static bool skip(struct cursor *c, uint64_t bytes)
{
    if ((uint64_t)(c->end - c->next) < bytes)
        return false;
    c->next += bytes;
    return true;
}

static bool take_string(struct cursor *c, const char **out, uint64_t *bytes)
{
    if (!take(c, 8, bytes))
        return false;
    *out = (const char *)c->next;
    return skip(c, *bytes);
}

static bool skip_array(struct cursor *c)
{
    uint64_t type, count;
    if (!take(c, 4, &type) || !take(c, 8, &count))
        return false;
    if (type == GGUF_STRING) {
        const char *s;
        uint64_t bytes;
        for (uint64_t i = 0; i < count; i++)
            if (!take_string(c, &s, &bytes))
                return false;
        return true;
    }
    /* Arrays of arrays end here too: nothing writes them, and they would nest without bound. */
    uint64_t element = samkv_gguf_value_bytes((uint32_t)type), bytes;
    return element && !__builtin_mul_overflow(element, count, &bytes) && skip(c, bytes);
}

static bool take_pair(struct cursor *c, struct gguf_pair *p)
{
    uint64_t type;
    if (!take_string(c, &p->key, &p->key_bytes) || !take(c, 4, &type))
        return false;
    p->type = (uint32_t)type;
    p->value = c->next;
    bool fits;
    if (type == GGUF_ARRAY) {
        fits = skip_array(c);
    } else if (type == GGUF_STRING) {
        const char *s;
        uint64_t bytes;
        fits = take_string(c, &s, &bytes);
    } else {
        fits = samkv_gguf_value_bytes(p->type) && skip(c, samkv_gguf_value_bytes(p->type));
    }
    p->end = c->next;
    return fits;
}

int samkv_gguf_compare(const char *a, uint64_t a_bytes, const char *b, uint64_t b_bytes)
{
    int d = memcmp(a, b, a_bytes < b_bytes ? a_bytes : b_bytes);
    return d ? d : (a_bytes > b_bytes) - (a_bytes < b_bytes);
}

static int by_key(const void *a, const void *b)
{
    const struct gguf_pair *x = a, *y = b;
    return samkv_gguf_compare(x->key, x->key_bytes, y->key, y->key_bytes);
}

int samkv_gguf_by_name(const void *a, const void *b)
{
    const struct gguf_entry *x = a, *y = b;
    return samkv_gguf_compare(x->name, x->name_bytes, y->name, y->name_bytes);
}

static int by_offset(const void *a, const void *b)
{
    const struct gguf_entry *x = *(const struct gguf_entry *const *)a, *y = *(const struct gguf_entry *const *)b;
    if (x->offset != y->offset)
        return x->offset < y->offset ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

static enum samkv_status read_pairs(struct samkv_gguf *g, struct cursor *c, uint64_t count, struct samkv_error *err)
{
    if (count > (uint64_t)(c->end - c->next) / PAIR_BYTES_MIN)
        return samkv_fail(err, SAMKV_CORRUPT, "%llu metadata entries do not fit the file", (unsigned long long)count);
    g->pairs = calloc(count + 1, sizeof *g->pairs);
    if (!g->pairs)
        return samkv_fail(err, SAMKV_NO_MEMORY, "no memory for %llu metadata entries", (unsigned long long)count);
    for (; g->pair_count < count; g->pair_count++)
        if (!take_pair(c, &g->pairs[g->pair_count]))
            return samkv_fail(err, SAMKV_CORRUPT, "metadata entry %zu is damaged or cut short", g->pair_count);
    qsort(g->pairs, g->pair_count, sizeof *g->pairs, by_key);
    for (size_t i = 1; i < g->pair_count; i++)
        if (!by_key(&g->pairs[i - 1], &g->pairs[i]))
            return samkv_fail(err, SAMKV_CORRUPT, "metadata key %.*s occurs twice", printed(g->pairs[i].key_bytes),
                              g->pairs[i].key);
    return SAMKV_OK;
}

/* Fills e->bytes for a readable type; false when the shape cannot be. */
static bool size_tensor(struct gguf_entry *e)
{
    uint32_t elements, bytes;
    uint64_t count = 1;
    for (int i = 0; i < e->dims; i++)
        if (__builtin_mul_overflow(count, e->shape[i], &count))
            return false;
    if (!samkv_gguf_type_block(e->type, &elements, &bytes))
        return true;
    return e->shape[0] % elements == 0 && !__builtin_mul_overflow(count / elements, (uint64_t)bytes, &e->bytes);
}

static bool take_tensor(struct cursor *c, struct gguf_entry *e)
{
    uint64_t dims, type;
    if (!take_string(c, &e->name, &e->name_bytes) || !take(c, 4, &dims) || dims < 1 || dims > 4)
        return false;
    e->dims = (int)dims;
    for (int i = 0; i < 4; i++)
        e->shape[i] = 1;
    for (int i = 0; i < e->dims; i++)
        if (!take(c, 8, &e->shape[i]))
            return false;
    if (!take(c, 4, &type) || !take(c, 8, &e->offset))
        return false;
    e->type = (uint32_t)type;
    return size_tensor(e);
}

static enum samkv_status read_tensors(struct samkv_gguf *g, struct cursor *c, uint64_t count, struct samkv_error *err)
{
    if (count > (uint64_t)(c->end - c->next) / TENSOR_BYTES_MIN)
        return samkv_fail(err, SAMKV_CORRUPT, "%llu tensors do not fit the file", (unsigned long long)count);
    g->entries = calloc(count + 1, sizeof *g->entries);
    g->ordered = calloc(count + 1, sizeof *g->ordered);
    if (!g->entries || !g->ordered)
        return samkv_fail(err, SAMKV_NO_MEMORY, "no memory for %llu tensors", (unsigned long long)count);
    for (; g->entry_count < count; g->entry_count++) {
        g->entries[g->entry_count].order = g->entry_count;
        if (!take_tensor(c, &g->entries[g->entry_count]))
            return samkv_fail(err, SAMKV_CORRUPT, "the entry of tensor %zu is damaged or cut short", g->entry_count);
    }
    qsort(g->entries, g->entry_count, sizeof *g->entries, samkv_gguf_by_name);
    for (size_t i = 1; i < g->entry_count; i++)
        if (!samkv_gguf_by_name(&g->entries[i - 1], &g->entries[i]))
            return samkv_fail(err, SAMKV_CORRUPT, "tensor %.*s occurs twice", printed(g->entries[i].name_bytes),
                              g->entries[i].name);
    return SAMKV_OK;
}

/* The data section begins at the next multiple of the alignment; every tensor lies in it, aligned, over no other. */
static enum samkv_status check_data(struct samkv_gguf *g, size_t directory_bytes, struct samkv_error *err)
{
    uint64_t alignment = 32;
    if (samkv_gguf_u64(g, "general.alignment", &alignment) &&
        (alignment < 1 || alignment > 1u << 30 || alignment & (alignment - 1)))
        return samkv_fail(err, SAMKV_CORRUPT, "general.alignment %llu is not a power of two",
                          (unsigned long long)alignment);
    uint64_t data_at = (directory_bytes + alignment - 1) & ~(alignment - 1);
    if (data_at > g->count_bytes) {
        if (g->entry_count)
            return samkv_fail(err, SAMKV_CORRUPT, "the file ends before its tensors; it is cut short");
        data_at = g->count_bytes;
    }
    g->data_at = (size_t)data_at;
    for (size_t i = 0; i < g->entry_count; i++)
        g->ordered[i] = &g->entries[i];
    qsort(g->ordered, g->entry_count, sizeof *g->ordered, by_offset);
    uint64_t data_bytes = g->count_bytes - data_at, used = 0;
    for (size_t i = 0; i < g->entry_count; i++) {
        const struct gguf_entry *e = g->ordered[i];
        if (e->offset % alignment || e->offset > data_bytes || e->bytes > data_bytes - e->offset)
            return samkv_fail(err, SAMKV_CORRUPT, "tensor %.*s lies outside of the file; it is damaged or cut short",
                              printed(e->name_bytes), e->name);
        if (e->offset < used)
            return samkv_fail(err, SAMKV_CORRUPT, "tensor %.*s overlaps another", printed(e->name_bytes), e->name);
        used = e->offset + e->bytes;
    }
    for (size_t i = 0; i < g->entry_count; i++) {
        g->entries[i].data = g->bytes + g->data_at + g->entries[i].offset;
        g->ordered[g->entries[i].order] = &g->entries[i];
    }
    return SAMKV_OK;
}

static enum samkv_status read_directory(struct samkv_gguf *g, struct samkv_error *err)
{
    struct cursor c = {g->bytes, g->bytes + g->count_bytes};
    uint64_t magic, version, tensors, pairs;
    if (!take(&c, 4, &magic) || magic != 0x46554747u)
        return samkv_fail(err, SAMKV_CORRUPT, "this is not a GGUF file");
    if (!take(&c, 4, &version))
        return samkv_fail(err, SAMKV_CORRUPT, "the file is cut short");
    if (version >= 1u << 16)
        return samkv_fail(err, SAMKV_UNSUPPORTED, "big-endian GGUF files are not supported");
    if (version != 2 && version != 3)
        return samkv_fail(err, SAMKV_UNSUPPORTED, "GGUF version %llu is not supported, only 2 and 3",
                          (unsigned long long)version);
    if (!take(&c, 8, &tensors) || !take(&c, 8, &pairs))
        return samkv_fail(err, SAMKV_CORRUPT, "the file is cut short");
    enum samkv_status status = read_pairs(g, &c, pairs, err);
    if (!status)
        status = read_tensors(g, &c, tensors, err);
    return status ? status : check_data(g, (size_t)(c.next - g->bytes), err);
}

enum samkv_status samkv_gguf_from_bytes(const void *bytes, size_t count, struct samkv_gguf **out,
                                        struct samkv_error *err)
{
    *out = NULL;
    struct samkv_gguf *g = calloc(1, sizeof *g);
    if (!g)
        return samkv_fail(err, SAMKV_NO_MEMORY, "no memory to open a GGUF file");
    g->bytes = bytes;
    g->count_bytes = count;
    enum samkv_status status = read_directory(g, err);
    if (status) {
        samkv_gguf_close(g);
        return status;
    }
    *out = g;
    return SAMKV_OK;
}

enum samkv_status samkv_gguf_open(const char *path, struct samkv_gguf **out, struct samkv_error *err)
{
    *out = NULL;
    struct samkv_mapping mapping;
    enum samkv_status status = samkv_mapping_open(path, SIZE_MAX, &mapping, err);
    if (status)
        return status;
    struct samkv_error why = {0};
    status = samkv_gguf_from_bytes(mapping.data, mapping.bytes, out, &why);
    if (status) {
        samkv_mapping_close(&mapping);
        return samkv_fail(err, status, "%.200s: %.280s", path, why.text);
    }
    (*out)->mapping = mapping;
    status = samkv_gguf_open_parts(*out, path, err);
    if (status) {
        samkv_gguf_close(*out);
        *out = NULL;
    }
    return status;
}

void samkv_gguf_close(struct samkv_gguf *g)
{
    if (!g)
        return;
    free(g->pairs);
    free(g->entries);
    free(g->ordered);
    for (size_t i = 0; i < g->part_count; i++)
        samkv_gguf_close(g->parts[i]);
    free(g->parts);
    samkv_mapping_close(&g->mapping);
    free(g);
}

enum samkv_status samkv_gguf_tensor(const struct samkv_gguf *g, const char *name, struct samkv_gguf_tensor *out,
                                    struct samkv_error *err)
{
    struct gguf_entry key = {.name = name, .name_bytes = strlen(name)};
    const struct gguf_entry *e = bsearch(&key, g->entries, g->entry_count, sizeof key, samkv_gguf_by_name);
    if (!e)
        return SAMKV_NOT_FOUND;
    uint32_t elements, bytes;
    if (!samkv_gguf_type_block(e->type, &elements, &bytes)) {
        const char *type = samkv_gguf_type_name(e->type);
        return samkv_fail(err, SAMKV_UNSUPPORTED, "tensor %.128s is encoded as %s (%u), which is not supported", name,
                          type ? type : "an unknown type", e->type);
    }
    *out = (struct samkv_gguf_tensor){.type = e->type, .dims = e->dims, .data = e->data, .bytes = e->bytes};
    memcpy(out->shape, e->shape, sizeof out->shape);
    return SAMKV_OK;
}

size_t samkv_gguf_tensor_count(const struct samkv_gguf *g)
{
    return g->entry_count;
}

const char *samkv_gguf_tensor_name(const struct samkv_gguf *g, size_t i, size_t *bytes)
{
    *bytes = (size_t)g->ordered[i]->name_bytes;
    return g->ordered[i]->name;
}

size_t samkv_gguf_file_count(const struct samkv_gguf *g)
{
    return 1 + g->part_count;
}

const void *samkv_gguf_bytes(const struct samkv_gguf *g, size_t file, size_t *bytes)
{
    const struct samkv_gguf *f = file ? g->parts[file - 1] : g;
    *bytes = f->count_bytes;
    return f->bytes;
}
