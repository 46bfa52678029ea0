/*
 * A whole client: fetches what one question needs of some documents and walks over the cache, layer by layer. With
 * --device, K and V stay on the daemon's GPU, and the pointers are ones for CUDA.
 */
#include <stdio.h>
#include <string.h>

#include "samkv/samkv.h"

int main(int argc, char **argv)
{
    bool on_device = argc > 1 && !strcmp(argv[1], "--device");
    char **words = argv + (on_device ? 2 : 1);
    int count = argc - (on_device ? 2 : 1);
    if (count < 2)
        return fprintf(stderr, "usage: %s [--device] QUESTION DOCUMENT...\n", argv[0]), 2;
    struct samkv_client *client = NULL;
    struct samkv_cache *cache = NULL;
    struct samkv_error err;
    struct samkv_fetch_options options;
    samkv_fetch_options_init(&options);
    options.query = words[0], options.query_bytes = strlen(words[0]);
    options.ids = (const char *const *)words + 1, options.id_count = (size_t)count - 1;
    options.placement = on_device ? SAMKV_FETCH_DEVICE : SAMKV_FETCH_HOST;
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
