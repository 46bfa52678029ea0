#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/ctl/ctl_fetch_options.h"
#include "client/ctl/ctl_text.h"

struct fetch_args {
    struct ctl_fetch_args shared;
    const char *query, *out;
    struct ctl_tokens query_tokens;
    int placement;
    bool with_query;
};

static const char *const placements[] = {"host", "device", NULL}; /* by enum samkv_fetch_placement */

static const struct ctl_option options[] = {
    {"query", "TEXT", CTL_TEXT, offsetof(struct fetch_args, query), "what is asked"},
    {"query-tokens", "1,2,..", CTL_TOKENS, offsetof(struct fetch_args, query_tokens), "the same, as token ids"},
    {"with-query", NULL, CTL_FLAG, offsetof(struct fetch_args, with_query), "the query's own rows and logits come too"},
    {"placement", "WHERE", CTL_CHOICE, offsetof(struct fetch_args, placement),
     "of K and V: host, or device (the daemon's GPU) [host]", .choices = placements},
    {"out", "FILE.safetensors", CTL_TEXT, offsetof(struct fetch_args, out), "write the cache there"},
    {"json", NULL, CTL_FLAG, offsetof(struct ctl_common, json), "print one JSON object"},
    {0},
};

/* ------------------------------------------------------------------ what was kept of a document */

/* Block numbers as ranges: "0,7-9,31". False when they do not fit. */
static bool write_ranges(const struct samkv_blocks_kept *keep, char *out, size_t size)
{
    size_t at = 0;
    *out = 0;
    for (size_t i = 0; i < keep->count;) {
        size_t last = i;
        while (last + 1 < keep->count && keep->blocks[last + 1] == keep->blocks[last] + 1)
            last++;
        int n = last > i ? snprintf(out + at, size - at, "%s%u-%u", at ? "," : "", keep->blocks[i], keep->blocks[last])
                         : snprintf(out + at, size - at, "%s%u", at ? "," : "", keep->blocks[i]);
        if (n < 0 || (size_t)n >= size - at)
            return false;
        at += (size_t)n;
        i = last + 1;
    }
    return true;
}

#define STRIP_CELLS 48

/* A strip of the document from start to end: █ all blocks of a cell are kept, ▒ some, · none. */
static void write_strip(const struct samkv_blocks_kept *keep, uint32_t blocks, char *out, size_t size)
{
    uint32_t cells = blocks < STRIP_CELLS ? blocks : STRIP_CELLS, kept[STRIP_CELLS] = {0};
    for (size_t i = 0; i < keep->count; i++)
        if (keep->blocks[i] < blocks)
            kept[(uint64_t)keep->blocks[i] * cells / blocks]++;
    size_t at = 0;
    for (uint32_t c = 0; c < cells; c++) {
        /* Cell c holds the blocks b with b * cells / blocks == c. */
        uint64_t first = ((uint64_t)c * blocks + cells - 1) / cells;
        uint64_t next = ((uint64_t)(c + 1) * blocks + cells - 1) / cells;
        const char *mark = !kept[c] ? "·" : kept[c] == next - first ? "█" : "▒";
        at += (size_t)snprintf(out + at, size - at, "%s", mark);
    }
}

static uint32_t *count_kept_tokens(const struct samkv_cache *cache)
{
    uint32_t *kept = calloc(cache->figures.documents ? cache->figures.documents : 1, sizeof *kept);
    for (uint32_t i = 0; kept && i < cache->rows; i++)
        if (cache->doc[i] >= 0 && (uint32_t)cache->doc[i] < cache->figures.documents)
            kept[cache->doc[i]]++;
    return kept;
}

static void print_documents(const struct samkv_cache *cache, const struct ctl_texts *ids)
{
    const struct samkv_figures *f = &cache->figures;
    struct ctl_table table = {.columns = 5,
                              .names = {"DOCUMENT", "TOKENS", "KEPT", "TOP-P", "BLOCKS"},
                              .right = {false, true, true, true, false}};
    uint32_t *kept = count_kept_tokens(cache);
    for (uint32_t i = 0; kept && i < f->documents; i++) {
        struct ctl_buffer tokens, count;
        char top_p[16], blocks[1024];
        snprintf(top_p, sizeof top_p, "%.2f", f->top_p[i]);
        uint32_t block_count =
            f->block_tokens ? (uint32_t)(((uint64_t)f->document_tokens[i] + f->block_tokens - 1) / f->block_tokens) : 0;
        if (block_count && ctl_is_terminal(stdout))
            write_strip(&f->keep[i], block_count, blocks, sizeof blocks);
        else if (!write_ranges(&f->keep[i], blocks, sizeof blocks))
            snprintf(blocks, sizeof blocks, "%zu blocks", f->keep[i].count);
        const char *cells[] = {i < ids->count ? ids->items[i] : "?", ctl_count(&tokens, f->document_tokens[i]),
                               ctl_count(&count, kept[i]), top_p, blocks};
        if (!ctl_table_add(&table, cells))
            break;
    }
    ctl_table_print(&table, stdout);
    ctl_table_free(&table);
    free(kept);
}

static void print_timing(const struct samkv_figures *f)
{
    const struct samkv_timing *t = &f->timing_ms;
    const struct {
        const char *name;
        double ms;
    } parts[] = {
        {"queue", t->queue}, {"index", t->index},         {"query", t->query}, {"select", t->select},
        {"read", t->read},   {"recompute", t->recompute}, {"reply", t->reply},
    };
    printf("%.1f ms:", t->total);
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        printf("%s %s %.1f", i ? "," : "", parts[i].name, parts[i].ms);
    fputs("; on ", stdout);
    ctl_put(stdout, f->backend, strlen(f->backend), -1, false);
    printf("; req %llu\n", (unsigned long long)f->request);
}

/* Of the file, and of what lies on a device beside it. */
static uint64_t cache_bytes(const struct samkv_cache *cache)
{
    uint64_t layer = cache->rows * cache->row_stride_bytes;
    return cache->memory_bytes + (cache->where == SAMKV_FETCH_DEVICE ? 2 * cache->layers * layer : 0);
}

static void print_place(const struct samkv_cache *cache)
{
    if (cache->where == SAMKV_FETCH_HOST)
        puts("; in host memory");
    else if (cache->device >= 0)
        printf("; K and V in the memory of GPU %d\n", cache->device);
    else
        puts("; K and V in the daemon's device memory");
}

static void print_cache(const struct samkv_cache *cache, const struct ctl_texts *ids)
{
    const struct samkv_figures *f = &cache->figures;
    struct ctl_buffer size;
    print_documents(cache, ids);
    ctl_print_ratios(f, stdout);
    printf("\ncache of %u rows, %u layers, (%u, %u) %s: %s; goes on at position %u; stable layers", cache->rows,
           cache->layers, cache->kv_heads, cache->head_dim, samkv_dtype_name(cache->dtype),
           ctl_bytes(&size, cache_bytes(cache)), f->next_position);
    for (size_t i = 0; i < f->stable_layer_count; i++)
        printf("%s%u", i ? "," : " ", f->stable_layers[i]);
    print_place(cache);
    print_timing(f);
}

static int print_json(const struct samkv_cache *cache, const struct fetch_args *args)
{
    json_t *o = json_object();
    ctl_json_figures(o, &cache->figures);
    json_object_set_new(o, "rows", json_integer(cache->rows));
    json_object_set_new(o, "layers", json_integer(cache->layers));
    json_object_set_new(o, "kv_heads", json_integer(cache->kv_heads));
    json_object_set_new(o, "head_dim", json_integer(cache->head_dim));
    json_object_set_new(o, "dtype", ctl_json_text(samkv_dtype_name(cache->dtype)));
    json_object_set_new(o, "memory_bytes", json_integer((json_int_t)cache->memory_bytes));
    json_object_set_new(o, "placement", ctl_json_text(placements[cache->where]));
    if (args->out)
        json_object_set_new(o, "out", ctl_json_text(args->out));
    return ctl_json_print(o);
}

static int run(struct ctl *ctl)
{
    const struct fetch_args *args = ctl->args;
    struct samkv_fetch_options request;
    struct samkv_error err;
    if (ctl_fetch_fill(&args->shared, &request, &err)) {
        ctl_error("%s", err.text);
        return CTL_USAGE;
    }
    if (!args->query == !args->query_tokens.given) {
        ctl_error("give one of --query TEXT and --query-tokens 1,2,..");
        return CTL_USAGE;
    }
    request.query = args->query;
    request.query_bytes = args->query ? strlen(args->query) : 0;
    /* An empty list is the daemon's to refuse: it must not look like none. */
    static const int32_t nothing[1];
    request.query_tokens = args->query_tokens.given && !args->query_tokens.ids ? nothing : args->query_tokens.ids;
    request.query_token_count = args->query_tokens.count;
    request.with_query = args->with_query;
    request.placement = (enum samkv_fetch_placement)args->placement;
    int code = ctl_connect(ctl);
    if (code)
        return code;
    struct samkv_cache *cache;
    if (samkv_client_fetch(ctl->client, &request, &cache, &err))
        return ctl_fail(&err);
    if (args->out && samkv_cache_save(cache, args->out, &err))
        code = ctl_fail(&err);
    else if (ctl->common->json)
        code = print_json(cache, args);
    else
        print_cache(cache, &args->shared.ids);
    samkv_cache_free(cache);
    return code;
}

const struct ctl_command ctl_command_fetch = {
    .name = "fetch",
    .arguments = "--docs ID,.. (--query TEXT | --query-tokens 1,2,..)",
    .summary = "Makes a small KV cache of documents for a query",
    .details = "Keeps only the tokens that the query needs. On a terminal the last column shows each document from\n"
               "start to end: █ kept, ▒ partly kept, · left out; elsewhere the numbers of kept blocks.",
    .options = {options, ctl_fetch_shared_options},
    .args_bytes = sizeof(struct fetch_args),
    .defaults = ctl_fetch_defaults,
    .run = run,
};
