#include "daemon/model/safetensors.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/model/mapping.h"

/* Real headers have some 150 bytes a tensor; the cap bounds what the JSON parser can be made to allocate. */
#define MAX_HEADER_BYTES (4u << 20)
#define MAX_DIMS         4

struct entry {
    char *name; /* heap */
    char type[8];
    int dims; /* more than MAX_DIMS are counted, but not kept */
    uint64_t shape[MAX_DIMS];
    uint64_t begin, end; /* in the data section */
};

struct samkv_safetensors {
    struct samkv_mapping mapping; /* zeros when the bytes are the caller's */
    const uint8_t *bytes;
    size_t count_bytes, data_at;
    struct entry *entries; /* [count], by name */
    size_t count;
};

static int element_bytes(const char *type)
{
    static const struct {
        const char *name;
        int bytes;
    } types[] = {{"F64", 8}, {"I64", 8}, {"U64", 8},  {"F32", 4},     {"I32", 4},
                 {"U32", 4}, {"F16", 2}, {"BF16", 2}, {"I16", 2},     {"U16", 2},
                 {"I8", 1},  {"U8", 1},  {"BOOL", 1}, {"F8_E4M3", 1}, {"F8_E5M2", 1}};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (!strcmp(type, types[i].name))
            return types[i].bytes;
    return 0;
}

/* A non-negative integer member; false for anything else. */
static bool read_size(const json_t *v, uint64_t *out)
{
    if (!json_is_integer(v) || json_integer_value(v) < 0)
        return false;
    *out = (uint64_t)json_integer_value(v);
    return true;
}

static enum samkv_status read_shape(const json_t *shape, struct entry *e, struct samkv_error *err)
{
    if (!json_is_array(shape))
        return samkv_fail(err, SAMKV_CORRUPT, "tensor %.128s has no shape", e->name);
    uint64_t count = 1;
    size_t dims = json_array_size(shape);
    for (size_t i = 0; i < dims; i++) {
        uint64_t n;
        if (!read_size(json_array_get(shape, i), &n) || __builtin_mul_overflow(count, n, &count))
            return samkv_fail(err, SAMKV_CORRUPT, "tensor %.128s has an impossible shape", e->name);
        if (i < MAX_DIMS)
            e->shape[i] = n;
    }
    e->dims = dims > MAX_DIMS ? MAX_DIMS + 1 : (int)dims;
    uint64_t bytes, element = (uint64_t)element_bytes(e->type);
    if (element && (__builtin_mul_overflow(count, element, &bytes) || bytes != e->end - e->begin))
        return samkv_fail(err, SAMKV_CORRUPT, "tensor %.128s: its shape does not fit its %llu bytes", e->name,
                          (unsigned long long)(e->end - e->begin));
    return SAMKV_OK;
}

static enum samkv_status read_entry(const char *name, const json_t *object, uint64_t data_bytes, struct entry *e,
                                    struct samkv_error *err)
{
    e->name = strdup(name);
    if (!e->name)
        return samkv_fail(err, SAMKV_NO_MEMORY, "no memory for the tensor table");
    const char *type = json_string_value(json_object_get(object, "dtype"));
    if (!type)
        return samkv_fail(err, SAMKV_CORRUPT, "tensor %.128s has no dtype", name);
    strncpy(e->type, type, sizeof e->type - 1);
    const json_t *offsets = json_object_get(object, "data_offsets");
    if (json_array_size(offsets) != 2 || !read_size(json_array_get(offsets, 0), &e->begin) ||
        !read_size(json_array_get(offsets, 1), &e->end) || e->begin > e->end || e->end > data_bytes)
        return samkv_fail(err, SAMKV_CORRUPT, "tensor %.128s lies outside of the file; it is damaged or cut short",
                          name);
    return read_shape(json_object_get(object, "shape"), e, err);
}

static int by_offset(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return (x->end > y->end) - (x->end < y->end);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct entry *)a)->name, ((const struct entry *)b)->name);
}

/* The format knows neither holes nor overlaps nor a tail: together the tensors are the data section. */
static enum samkv_status check_cover(struct samkv_safetensors *s, struct samkv_error *err)
{
    uint64_t at = 0, data_bytes = s->count_bytes - s->data_at;
    qsort(s->entries, s->count, sizeof *s->entries, by_offset);
    for (size_t i = 0; i < s->count; i++) {
        if (s->entries[i].begin != at)
            return samkv_fail(err, SAMKV_CORRUPT, "tensor %.128s %s", s->entries[i].name,
                              s->entries[i].begin < at ? "overlaps another" : "follows a hole");
        at = s->entries[i].end;
    }
    if (at != data_bytes)
        return samkv_fail(err, SAMKV_CORRUPT, "the file has %llu bytes of data, its header speaks of %llu",
                          (unsigned long long)data_bytes, (unsigned long long)at);
    qsort(s->entries, s->count, sizeof *s->entries, by_name);
    return SAMKV_OK;
}

static enum samkv_status read_entries(struct samkv_safetensors *s, json_t *root, struct samkv_error *err)
{
    if (!json_is_object(root))
        return samkv_fail(err, SAMKV_CORRUPT, "the header is not a JSON object");
    s->entries = calloc(json_object_size(root) + 1, sizeof *s->entries);
    if (!s->entries)
        return samkv_fail(err, SAMKV_NO_MEMORY, "no memory for the tensor table");
    const char *name;
    json_t *object;
    json_object_foreach(root, name, object)
    {
        if (!strcmp(name, "__metadata__"))
            continue;
        enum samkv_status status = read_entry(name, object, s->count_bytes - s->data_at, &s->entries[s->count++], err);
        if (status)
            return status;
    }
    return check_cover(s, err);
}

static enum samkv_status read_header(struct samkv_safetensors *s, struct samkv_error *err)
{
    if (s->count_bytes < 8)
        return samkv_fail(err, SAMKV_CORRUPT, "the file is cut short");
    uint64_t header = 0;
    for (int i = 0; i < 8; i++)
        header |= (uint64_t)s->bytes[i] << 8 * i;
    if (header > s->count_bytes - 8)
        return samkv_fail(err, SAMKV_CORRUPT,
                          "its header of %llu bytes does not fit the file; it is damaged or cut short",
                          (unsigned long long)header);
    if (header > MAX_HEADER_BYTES)
        return samkv_fail(err, SAMKV_TOO_LARGE, "its header has %llu bytes, more than the %u that are read",
                          (unsigned long long)header, MAX_HEADER_BYTES);
    s->data_at = 8 + (size_t)header;
    json_error_t why;
    json_t *root = json_loadb((const char *)s->bytes + 8, (size_t)header, JSON_REJECT_DUPLICATES, &why);
    if (!root)
        return samkv_fail(err, SAMKV_CORRUPT, "its header is not valid JSON: %.128s", why.text);
    enum samkv_status status = read_entries(s, root, err);
    json_decref(root);
    return status;
}

enum samkv_status samkv_safetensors_from_bytes(const void *bytes, size_t count, struct samkv_safetensors **out,
                                               struct samkv_error *err)
{
    *out = NULL;
    struct samkv_safetensors *s = calloc(1, sizeof *s);
    if (!s)
        return samkv_fail(err, SAMKV_NO_MEMORY, "no memory to open a safetensors file");
    s->bytes = bytes;
    s->count_bytes = count;
    enum samkv_status status = read_header(s, err);
    if (status) {
        samkv_safetensors_close(s);
        return status;
    }
    *out = s;
    return SAMKV_OK;
}

enum samkv_status samkv_safetensors_open(const char *path, struct samkv_safetensors **out, struct samkv_error *err)
{
    *out = NULL;
    struct samkv_mapping mapping;
    enum samkv_status status = samkv_mapping_open(path, SIZE_MAX, &mapping, err);
    if (status)
        return status;
    struct samkv_error why = {0};
    status = samkv_safetensors_from_bytes(mapping.data, mapping.bytes, out, &why);
    if (status) {
        samkv_mapping_close(&mapping);
        return samkv_fail(err, status, "%.200s: %.280s", path, why.text);
    }
    (*out)->mapping = mapping;
    return SAMKV_OK;
}

void samkv_safetensors_close(struct samkv_safetensors *s)
{
    if (!s)
        return;
    for (size_t i = 0; i < s->count; i++)
        free(s->entries[i].name);
    free(s->entries);
    samkv_mapping_close(&s->mapping);
    free(s);
}

static const struct entry *find(const struct samkv_safetensors *s, const char *name)
{
    struct entry key = {.name = (char *)name};
    return bsearch(&key, s->entries, s->count, sizeof key, by_name);
}

enum samkv_status samkv_safetensors_find(const struct samkv_safetensors *s, const char *name,
                                         struct samkv_tensor_view *out, struct samkv_error *err)
{
    static const struct {
        const char *name;
        enum samkv_dtype dtype;
    } types[] = {{"F32", SAMKV_F32}, {"F16", SAMKV_F16}, {"BF16", SAMKV_BF16}};
    const struct entry *e = find(s, name);
    if (!e)
        return SAMKV_NOT_FOUND;
    if (e->dims > MAX_DIMS)
        return samkv_fail(err, SAMKV_UNSUPPORTED, "tensor %.128s has more than %d dimensions", name, MAX_DIMS);
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        if (strcmp(e->type, types[i].name))
            continue;
        *out = (struct samkv_tensor_view){.data = s->bytes + s->data_at + e->begin,
                                          .dtype = types[i].dtype,
                                          .dims = e->dims,
                                          .bytes = e->end - e->begin};
        memcpy(out->shape, e->shape, sizeof out->shape);
        return SAMKV_OK;
    }
    return samkv_fail(err, SAMKV_UNSUPPORTED, "tensor %.128s has elements of type %s; F32, F16 and BF16 are supported",
                      name, e->type);
}

const void *samkv_safetensors_bytes(const struct samkv_safetensors *s, size_t *bytes)
{
    *bytes = s->count_bytes;
    return s->bytes;
}
