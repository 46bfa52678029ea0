/*
 * llama.cpp over a sparse cache: fetches what a query needs of some documents, makes it a sequence of a llama.cpp
 * context, decodes the query's tokens behind it and prints a greedy answer. The daemon must serve the same model:
 *
 *   samkvd --model smol=SmolLM2-135M-Instruct.Q4_1.gguf … &
 *   samkvctl ingest --preamble $'<|im_start|>user\n' docs/
 *   samkv_example_llama SmolLM2-135M-Instruct.Q4_1.gguf \
 *       $'\n\nQuestion: Who did it?<|im_end|>\n<|im_start|>assistant\n' a.txt b.txt
 *
 * Built where CMake finds llama.cpp (its package `llama`: -DCMAKE_PREFIX_PATH=PLACE).
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <llama.h>

#include "samkv/samkv_llama.h"

enum { QUERY_TOKENS = 4096, ANSWER_TOKENS = 64, BATCH_TOKENS = 512 };

static int fail(const char *text)
{
    fprintf(stderr, "%s\n", text);
    return 1;
}

static void log_errors(enum ggml_log_level level, const char *text, void *arg)
{
    (void)arg;
    if (level == GGML_LOG_LEVEL_ERROR)
        fputs(text, stderr);
}

/* What the query needs of the documents; NULL: err says why. The cache outlives the connection. */
static struct samkv_cache *fetch(const int32_t *query, int32_t count, char **ids, int id_count, struct samkv_error *err)
{
    struct samkv_client *client = NULL;
    struct samkv_cache *cache = NULL;
    struct samkv_fetch_options options;
    samkv_fetch_options_init(&options);
    options.ids = (const char *const *)ids, options.id_count = (size_t)id_count;
    options.query_tokens = query, options.query_token_count = (size_t)count;
    options.selection = SAMKV_FETCH_FIXED;
    if (samkv_client_connect(NULL, &client, err) || samkv_client_fetch(client, &options, &cache, err))
        cache = NULL;
    samkv_client_close(client);
    return cache;
}

/* How the context keeps a sequence, learned from one that has a single token. */
static enum samkv_status read_layout(const struct llama_model *model, struct llama_context *context,
                                     struct samkv_llama_layout *out, struct samkv_error *err)
{
    llama_token any = 0;
    if (llama_decode(context, llama_batch_get_one(&any, 1)))
        return samkv_fail(err, SAMKV_INTERNAL, "llama.cpp cannot decode a token");
    size_t bytes = llama_state_seq_get_size(context, 0);
    uint8_t *sample = malloc(bytes);
    if (!sample)
        return samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    bytes = llama_state_seq_get_data(context, sample, bytes, 0);
    enum samkv_status status = samkv_llama_layout_read(sample, bytes, (int)llama_model_rope_type(model), out, err);
    free(sample);
    return status;
}

/* Sequence 0 becomes the cache; the token that was in it for the layout's sake goes. */
static enum samkv_status load(const struct llama_model *model, struct llama_context *context,
                              const struct samkv_cache *cache, struct samkv_error *err)
{
    struct samkv_llama_layout layout;
    size_t bytes = 0;
    enum samkv_status status = read_layout(model, context, &layout, err);
    if (!status)
        status = samkv_llama_state_bytes(cache, &layout, &bytes, err);
    uint8_t *state = status ? NULL : malloc(bytes);
    if (!status && !state)
        status = samkv_fail(err, SAMKV_NO_MEMORY, "out of memory");
    if (!status)
        status = samkv_llama_state_write(cache, &layout, 0, state, bytes, err);
    if (!status && llama_state_seq_set_data(context, state, bytes, 0) != bytes)
        status = samkv_fail(err, SAMKV_INTERNAL, "llama.cpp did not take the cache");
    free(state);
    return status;
}

/* Tokens of sequence 0 from this position on; the last one gives logits. */
static bool decode(struct llama_context *context, const llama_token *tokens, int32_t count, llama_pos position)
{
    struct llama_batch batch = llama_batch_init(BATCH_TOKENS, 0, 1);
    bool good = true;
    for (int32_t at = 0; at < count && good; at += batch.n_tokens) {
        batch.n_tokens = count - at < BATCH_TOKENS ? count - at : BATCH_TOKENS;
        for (int32_t i = 0; i < batch.n_tokens; i++) {
            batch.token[i] = tokens[at + i];
            batch.pos[i] = position + at + i;
            batch.n_seq_id[i] = 1;
            batch.seq_id[i][0] = 0;
            batch.logits[i] = at + i == count - 1;
        }
        good = llama_decode(context, batch) == 0;
    }
    llama_batch_free(batch);
    return good;
}

static int answer(const struct llama_vocab *vocab, struct llama_context *context, const llama_token *query,
                  int32_t count, llama_pos position)
{
    struct llama_sampler *greedy = llama_sampler_init_greedy();
    bool good = decode(context, query, count, position);
    position += count;
    for (int i = 0; i < ANSWER_TOKENS && good; i++, position++) {
        char piece[256];
        llama_token token = llama_sampler_sample(greedy, context, -1);
        if (llama_vocab_is_eog(vocab, token))
            break;
        int n = llama_token_to_piece(vocab, token, piece, sizeof piece, 0, false);
        fwrite(piece, 1, n > 0 ? (size_t)n : 0, stdout);
        fflush(stdout);
        good = decode(context, &token, 1, position);
    }
    putchar('\n');
    llama_sampler_free(greedy);
    return good ? 0 : fail("llama.cpp cannot decode");
}

static int answer_over(struct llama_model *model, const struct samkv_cache *cache, const llama_token *query,
                       int32_t count)
{
    struct samkv_error err;
    struct llama_context_params params = llama_context_default_params();
    params.n_ctx = cache->rows + (uint32_t)count + ANSWER_TOKENS; /* cells; positions may be larger */
    params.n_batch = BATCH_TOKENS;
    struct llama_context *context = llama_init_from_model(model, params);
    if (!context)
        return fail("llama.cpp cannot make a context");
    int code = load(model, context, cache, &err) ? fail(err.text)
                                                 : answer(llama_model_get_vocab(model), context, query, count,
                                                          (llama_pos)cache->figures.next_position);
    llama_free(context);
    return code;
}

int main(int argc, char **argv)
{
    static llama_token query[QUERY_TOKENS];
    struct samkv_error err;
    if (argc < 4)
        return fprintf(stderr, "usage: %s MODEL.gguf QUERY DOCUMENT...\n", argv[0]), 2;
    llama_log_set(log_errors, NULL);
    struct llama_model *model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model)
        return fail("llama.cpp cannot load the model");
    int32_t count = llama_tokenize(llama_model_get_vocab(model), argv[2], (int32_t)strlen(argv[2]), query, QUERY_TOKENS,
                                   false, true);
    struct samkv_cache *cache = count > 0 ? fetch(query, count, argv + 3, argc - 3, &err) : NULL;
    int code = count <= 0 ? fail("the query is empty or too long")
               : cache    ? answer_over(model, cache, query, count)
                          : fail(err.text);
    samkv_cache_free(cache);
    llama_model_free(model);
    llama_backend_free();
    return code;
}
