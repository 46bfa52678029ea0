/* A whole client: fetches what one question needs of two documents and walks over the cache, layer by layer. */
#include <stdio.h>
#include <string.h>

#include "samkv/samkv.h"

int main(int argc, char **argv)
{
    if (argc < 3)
        return fprintf(stderr, "usage: %s QUESTION DOCUMENT...\n", argv[0]), 2;
    struct samkv_client *client = NULL;
    struct samkv_cache *cache = NULL;
    struct samkv_error err;
    struct samkv_fetch_options options;
    samkv_fetch_options_init(&options);
    options.query = argv[1], options.query_bytes = strlen(argv[1]);
    options.ids = (const char *const *)argv + 2, options.id_count = (size_t)argc - 2;
    if (samkv_client_connect(NULL, &client, &err) || samkv_client_fetch(client, &options, &cache, &err)) {
        fprintf(stderr, "%s\n", err.text);
        samkv_client_close(client);
        return 1;
    }
    samkv_client_close(client); /* the cache needs it no more */
    printf("%u rows of %u tokens, K and V (%u, %u, %u) %s\n", cache->rows, cache->figures.total_tokens, cache->rows,
           cache->kv_heads, cache->head_dim, samkv_dtype_name(cache->dtype));
    for (uint32_t l = 0; l < cache->layers; l++)
        printf("layer %u: K at %p, V at %p\n", l, samkv_cache_k(cache, l), samkv_cache_v(cache, l));
    samkv_cache_free(cache);
    return 0;
}
