/* The post_processor and the decoder of a tokenizer.json. */
#include <stdlib.h>
#include <string.h>

#include "daemon/model/tokenizer_load.h"

/* --- post_processor */

static enum samkv_status add_prefix(struct samkv_tokenizer *t, const json_t *special, struct samkv_error *err)
{
    const json_t *ids = json_object_get(special, "ids");
    if (!json_is_array(ids) || json_array_size(ids) > 64)
        return samkv_tok_json_wrong(err, "a special token of TemplateProcessing");
    size_t count = t->prefix_count + json_array_size(ids);
    int32_t *prefix = realloc(t->prefix, (count + 1) * sizeof *prefix);
    if (!prefix)
        return samkv_tok_no_memory(err);
    t->prefix = prefix;
    for (size_t i = 0; i < json_array_size(ids); i++) {
        const json_t *value = json_array_get(ids, i);
        json_int_t id = json_is_integer(value) ? json_integer_value(value) : -1;
        if (id < 0 || id >= t->vocab.ids)
            return samkv_fail(err, SAMKV_INVALID, "tokenizer.json: TemplateProcessing names an unknown token id");
        t->prefix[t->prefix_count++] = (int32_t)id;
    }
    return SAMKV_OK;
}

/* What stands before the sequence; what stands behind it is not for text that goes on. */
static enum samkv_status parse_template(struct samkv_tokenizer *t, const json_t *value, struct samkv_error *err)
{
    const json_t *single = json_object_get(value, "single"), *known = json_object_get(value, "special_tokens");
    if (!json_is_array(single) || json_array_size(single) > 64 || t->prefix)
        return samkv_tok_json_wrong(err, "TemplateProcessing's \"single\"");
    for (size_t i = 0; i < json_array_size(single); i++) {
        const json_t *item = json_array_get(single, i);
        if (json_object_get(item, "Sequence"))
            return SAMKV_OK;
        const char *name = json_string_value(json_object_get(json_object_get(item, "SpecialToken"), "id"));
        if (!name)
            return samkv_tok_json_wrong(err, "an item of TemplateProcessing's \"single\"");
        enum samkv_status status = add_prefix(t, json_object_get(known, name), err);
        if (status != SAMKV_OK)
            return status;
    }
    return samkv_fail(err, SAMKV_INVALID, "tokenizer.json: TemplateProcessing's \"single\" has no Sequence");
}

/* ByteLevel only moves offsets here. */
static enum samkv_status ignore(struct samkv_tokenizer *t, const json_t *value, struct samkv_error *err)
{
    (void)t;
    (void)value;
    (void)err;
    return SAMKV_OK;
}

static const struct samkv_tok_json_part post_processor = {
    .name = "post_processor",
    .sequence = "processors",
    .types = {{"TemplateProcessing", parse_template}, {"ByteLevel", ignore}},
};

enum samkv_status samkv_tok_json_post_processor(struct samkv_tokenizer *t, const json_t *value, struct samkv_error *err)
{
    return samkv_tok_json_parse(&post_processor, t, value, err);
}

/* --- decoder */

static enum samkv_status add_plain(struct samkv_tokenizer *t, enum samkv_tok_decoder_kind kind, struct samkv_error *err)
{
    return samkv_tok_add_decoder(t, (struct samkv_tok_decoder){.kind = kind}, NULL, 0, NULL, 0, err);
}

static enum samkv_status parse_byte_level(struct samkv_tokenizer *t, const json_t *value, struct samkv_error *err)
{
    (void)value;
    return add_plain(t, SAMKV_TOK_DECODE_BYTE_LEVEL, err);
}

static enum samkv_status parse_byte_fallback(struct samkv_tokenizer *t, const json_t *value, struct samkv_error *err)
{
    (void)value;
    return add_plain(t, SAMKV_TOK_DECODE_BYTE_FALLBACK, err);
}

static enum samkv_status parse_fuse(struct samkv_tokenizer *t, const json_t *value, struct samkv_error *err)
{
    (void)value;
    return add_plain(t, SAMKV_TOK_DECODE_FUSE, err);
}

/* Plain strings only: the bytes at hand need not be whole characters, which patterns cannot take. */
static enum samkv_status parse_replace(struct samkv_tokenizer *t, const json_t *value, struct samkv_error *err)
{
    const json_t *content = json_object_get(value, "content"), *pattern = json_object_get(value, "pattern");
    const json_t *literal = json_object_get(pattern, "String");
    if (json_object_get(pattern, "Regex"))
        return samkv_fail(err, SAMKV_UNSUPPORTED, "tokenizer.json: the decoder Replace with a Regex is not supported");
    if (!json_is_string(content) || !json_is_string(literal))
        return samkv_tok_json_wrong(err, "the decoder Replace's \"pattern\" or \"content\"");
    return samkv_tok_add_decoder(t, (struct samkv_tok_decoder){.kind = SAMKV_TOK_DECODE_REPLACE},
                                 json_string_value(content), json_string_length(content), json_string_value(literal),
                                 json_string_length(literal), err);
}

static enum samkv_status parse_strip(struct samkv_tokenizer *t, const json_t *value, struct samkv_error *err)
{
    const json_t *character, *start = json_object_get(value, "start"), *stop = json_object_get(value, "stop");
    enum samkv_status status = samkv_tok_json_char(value, "content", &character, err);
    if (status != SAMKV_OK)
        return status;
    bool bounded = json_is_integer(start) && json_integer_value(start) >= 0 && json_integer_value(start) <= INT32_MAX &&
                   json_is_integer(stop) && json_integer_value(stop) >= 0 && json_integer_value(stop) <= INT32_MAX;
    if (!bounded)
        return samkv_tok_json_wrong(err, "the decoder Strip's \"start\" or \"stop\"");
    struct samkv_tok_decoder step = {.kind = SAMKV_TOK_DECODE_STRIP,
                                     .start = (uint32_t)json_integer_value(start),
                                     .stop = (uint32_t)json_integer_value(stop)};
    return samkv_tok_add_decoder(t, step, json_string_value(character), json_string_length(character), NULL, 0, err);
}

static enum samkv_status parse_metaspace(struct samkv_tokenizer *t, const json_t *value, struct samkv_error *err)
{
    const json_t *character;
    enum samkv_tok_prepend prepend;
    enum samkv_status status = samkv_tok_json_char(value, "replacement", &character, err);
    if (status == SAMKV_OK)
        status = samkv_tok_json_prepend_scheme(value, &prepend, err);
    if (status != SAMKV_OK)
        return status;
    struct samkv_tok_decoder step = {.kind = SAMKV_TOK_DECODE_METASPACE, .keep_first = prepend == SAMKV_TOK_NEVER};
    return samkv_tok_add_decoder(t, step, json_string_value(character), json_string_length(character), NULL, 0, err);
}

static const struct samkv_tok_json_part decoder = {
    .name = "decoder",
    .sequence = "decoders",
    .types = {{"ByteLevel", parse_byte_level},
              {"ByteFallback", parse_byte_fallback},
              {"Fuse", parse_fuse},
              {"Replace", parse_replace},
              {"Strip", parse_strip},
              {"Metaspace", parse_metaspace}},
};

enum samkv_status samkv_tok_json_decoder(struct samkv_tokenizer *t, const json_t *value, struct samkv_error *err)
{
    t->join_with_spaces = !value || json_is_null(value);
    return samkv_tok_json_parse(&decoder, t, value, err);
}
