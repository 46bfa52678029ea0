/* How parts of a tokenizer.json are read (a table of types each, a function a type), and the parts that change and cut
 * the text. */
#include <string.h>

#include "daemon/model/tokenizer_load.h"

#define MAX_NESTING 8 /* Sequences within Sequences */

enum samkv_status samkv_tok_json_wrong(struct samkv_error *err, const char *what)
{
    return samkv_fail(err, SAMKV_INVALID, "tokenizer.json: %s is missing or of a wrong type", what);
}

enum samkv_status samkv_tok_json_bool(const json_t *object, const char *key, bool missing, bool *out,
                                      struct samkv_error *err)
{
    const json_t *value = json_object_get(object, key);
    *out = missing;
    if (value && !json_is_boolean(value) && !json_is_null(value))
        return samkv_fail(err, SAMKV_INVALID, "tokenizer.json: \"%s\" is no boolean", key);
    if (json_is_boolean(value))
        *out = json_is_true(value);
    return SAMKV_OK;
}

static enum samkv_status parse_nested(const struct samkv_tok_json_part *part, struct samkv_tokenizer *tokenizer,
                                      const json_t *value, int depth, struct samkv_error *err)
{
    if (!value || json_is_null(value))
        return SAMKV_OK;
    const char *type = json_string_value(json_object_get(value, "type"));
    if (!type)
        return samkv_tok_json_wrong(err, part->name);
    if (strcmp(type, "Sequence") != 0) {
        for (const struct samkv_tok_json_type *known = part->types; known->name; known++)
            if (strcmp(known->name, type) == 0)
                return known->parse(tokenizer, value, err);
        return samkv_fail(err, SAMKV_UNSUPPORTED, "tokenizer.json: the %s \"%.64s\" is not supported", part->name,
                          type);
    }
    const json_t *list = json_object_get(value, part->sequence);
    if (!json_is_array(list) || depth == MAX_NESTING)
        return samkv_tok_json_wrong(err, part->name);
    enum samkv_status status = SAMKV_OK;
    for (size_t i = 0; status == SAMKV_OK && i < json_array_size(list); i++) {
        const json_t *item = json_array_get(list, i);
        status = json_is_null(item) ? samkv_tok_json_wrong(err, part->name)
                                    : parse_nested(part, tokenizer, item, depth + 1, err);
    }
    return status;
}

enum samkv_status samkv_tok_json_parse(const struct samkv_tok_json_part *part, struct samkv_tokenizer *tokenizer,
                                       const json_t *value, struct samkv_error *err)
{
    return parse_nested(part, tokenizer, value, 0, err);
}

/* pattern: {"String": text} or {"Regex": text}. */
static enum samkv_status parse_pattern(const json_t *value, struct samkv_tok_regex **out, struct samkv_error *err)
{
    const json_t *pattern = json_object_get(value, "pattern");
    const json_t *text = json_object_get(pattern, "String"), *regex = json_object_get(pattern, "Regex");
    if (json_is_string(text))
        return samkv_tok_regex_literal(json_string_value(text), json_string_length(text), out, err);
    if (json_is_string(regex))
        return samkv_tok_regex_compile(json_string_value(regex), json_string_length(regex), out, err);
    return samkv_tok_json_wrong(err, "\"pattern\"");
}

/* --- normalizer */

static enum samkv_status parse_nfc(struct samkv_tokenizer *t, const json_t *value, struct samkv_error *err)
{
    (void)value;
    return samkv_tok_add_normaliser(t, (struct samkv_tok_normaliser){.kind = SAMKV_TOK_NFC}, err);
}

static enum samkv_status parse_nfd(struct samkv_tokenizer *t, const json_t *value, struct samkv_error *err)
{
    (void)value;
    return samkv_tok_add_normaliser(t, (struct samkv_tok_normaliser){.kind = SAMKV_TOK_NFD}, err);
}

static enum samkv_status parse_nfkc(struct samkv_tokenizer *t, const json_t *value, struct samkv_error *err)
{
    (void)value;
    return samkv_tok_add_normaliser(t, (struct samkv_tok_normaliser){.kind = SAMKV_TOK_NFKC}, err);
}

static enum samkv_status parse_nfkd(struct samkv_tokenizer *t, const json_t *value, struct samkv_error *err)
{
    (void)value;
    return samkv_tok_add_normaliser(t, (struct samkv_tok_normaliser){.kind = SAMKV_TOK_NFKD}, err);
}

static enum samkv_status parse_prepend(struct samkv_tokenizer *t, const json_t *value, struct samkv_error *err)
{
    const json_t *text = json_object_get(value, "prepend");
    if (!json_is_string(text))
        return samkv_tok_json_wrong(err, "Prepend's \"prepend\"");
    return samkv_tok_add_prepend(t, json_string_value(text), json_string_length(text), err);
}

static enum samkv_status parse_replace(struct samkv_tokenizer *t, const json_t *value, struct samkv_error *err)
{
    const json_t *content = json_object_get(value, "content");
    if (!json_is_string(content))
        return samkv_tok_json_wrong(err, "Replace's \"content\"");
    struct samkv_tok_normaliser step = {.kind = SAMKV_TOK_REPLACE_ALL,
                                        .text = (char *)json_string_value(content),
                                        .text_bytes = json_string_length(content)};
    enum samkv_status status = parse_pattern(value, &step.pattern, err);
    return status == SAMKV_OK ? samkv_tok_add_normaliser(t, step, err) : status;
}

static enum samkv_status parse_trim(struct samkv_tokenizer *t, const json_t *value, struct samkv_error *err)
{
    struct samkv_tok_normaliser step = {.kind = SAMKV_TOK_TRIM};
    enum samkv_status status = samkv_tok_json_bool(value, "strip_left", true, &step.left, err);
    if (status == SAMKV_OK)
        status = samkv_tok_json_bool(value, "strip_right", true, &step.right, err);
    return status == SAMKV_OK ? samkv_tok_add_normaliser(t, step, err) : status;
}

static const struct samkv_tok_json_part normalizer = {
    .name = "normalizer",
    .sequence = "normalizers",
    .types = {{"NFC", parse_nfc},
              {"NFD", parse_nfd},
              {"NFKC", parse_nfkc},
              {"NFKD", parse_nfkd},
              {"Prepend", parse_prepend},
              {"Replace", parse_replace},
              {"Strip", parse_trim}},
};

enum samkv_status samkv_tok_json_normalizer(struct samkv_tokenizer *t, const json_t *value, struct samkv_error *err)
{
    return samkv_tok_json_parse(&normalizer, t, value, err);
}

/* --- pre_tokenizer */

static enum samkv_status before_byte_level(const struct samkv_tokenizer *t, struct samkv_error *err)
{
    if (!t->bpe.byte_level)
        return SAMKV_OK;
    return samkv_fail(err, SAMKV_UNSUPPORTED, "tokenizer.json: a pre_tokenizer behind ByteLevel is not supported");
}

static enum samkv_status parse_split(struct samkv_tokenizer *t, const json_t *value, struct samkv_error *err)
{
    static const struct {
        const char *name;
        enum samkv_tok_behaviour behaviour;
    } behaviours[] = {
        {"Isolated", SAMKV_TOK_ISOLATED},
        {"Removed", SAMKV_TOK_REMOVED},
        {"MergedWithPrevious", SAMKV_TOK_MERGED_WITH_PREVIOUS},
        {"MergedWithNext", SAMKV_TOK_MERGED_WITH_NEXT},
        {"Contiguous", SAMKV_TOK_CONTIGUOUS},
    };
    struct samkv_tok_stage stage = {.kind = SAMKV_TOK_SPLIT};
    const char *name = json_string_value(json_object_get(value, "behavior"));
    bool known = false;
    for (size_t i = 0; name && !known && i < sizeof behaviours / sizeof *behaviours; i++)
        if (strcmp(behaviours[i].name, name) == 0) {
            stage.behaviour = behaviours[i].behaviour;
            known = true;
        }
    if (!known)
        return samkv_tok_json_wrong(err, "Split's \"behavior\"");
    enum samkv_status status = before_byte_level(t, err);
    if (status == SAMKV_OK)
        status = samkv_tok_json_bool(value, "invert", false, &stage.invert, err);
    if (status == SAMKV_OK)
        status = parse_pattern(value, &stage.pattern, err);
    return status == SAMKV_OK ? samkv_tok_add_stage(t, stage, err) : status;
}

static enum samkv_status parse_digits(struct samkv_tokenizer *t, const json_t *value, struct samkv_error *err)
{
    bool individual;
    enum samkv_status status = before_byte_level(t, err);
    if (status == SAMKV_OK)
        status = samkv_tok_json_bool(value, "individual_digits", false, &individual, err);
    if (status != SAMKV_OK)
        return status;
    struct samkv_tok_stage stage = {.kind = SAMKV_TOK_DIGITS,
                                    .behaviour = individual ? SAMKV_TOK_ISOLATED : SAMKV_TOK_CONTIGUOUS};
    return samkv_tok_add_stage(t, stage, err);
}

static enum samkv_status parse_byte_level(struct samkv_tokenizer *t, const json_t *value, struct samkv_error *err)
{
    bool prefix_space, use_regex;
    enum samkv_status status = before_byte_level(t, err);
    if (status == SAMKV_OK)
        status = samkv_tok_json_bool(value, "add_prefix_space", true, &prefix_space, err);
    if (status == SAMKV_OK)
        status = samkv_tok_json_bool(value, "use_regex", true, &use_regex, err);
    if (status == SAMKV_OK && prefix_space)
        status = samkv_tok_add_stage(t, (struct samkv_tok_stage){.kind = SAMKV_TOK_PREFIX_SPACE}, err);
    if (status == SAMKV_OK && use_regex)
        status = samkv_tok_add_split(t, SAMKV_TOK_GPT2_PATTERN, strlen(SAMKV_TOK_GPT2_PATTERN), SAMKV_TOK_ISOLATED,
                                     false, err);
    t->bpe.byte_level = true;
    return status;
}

enum samkv_status samkv_tok_json_char(const json_t *value, const char *key, const json_t **out, struct samkv_error *err)
{
    const json_t *text = json_object_get(value, key);
    size_t end = 0, bytes = json_string_length(text);
    if (json_is_string(text) && bytes)
        samkv_tok_utf8_next(json_string_value(text), bytes, &end);
    *out = text;
    return end && end == bytes ? SAMKV_OK
                               : samkv_fail(err, SAMKV_INVALID, "tokenizer.json: \"%s\" is no character", key);
}

enum samkv_status samkv_tok_json_prepend_scheme(const json_t *value, enum samkv_tok_prepend *out,
                                                struct samkv_error *err)
{
    static const char *const names[] = {
        [SAMKV_TOK_ALWAYS] = "always", [SAMKV_TOK_FIRST] = "first", [SAMKV_TOK_NEVER] = "never"};
    bool prefix_space;
    enum samkv_status status = samkv_tok_json_bool(value, "add_prefix_space", true, &prefix_space, err);
    if (status != SAMKV_OK)
        return status;
    const json_t *scheme = json_object_get(value, "prepend_scheme");
    *out = prefix_space ? SAMKV_TOK_ALWAYS : SAMKV_TOK_NEVER;
    if (!scheme)
        return SAMKV_OK;
    for (int i = SAMKV_TOK_ALWAYS; json_is_string(scheme) && i <= SAMKV_TOK_NEVER; i++)
        if (strcmp(json_string_value(scheme), names[i]) == 0 && (prefix_space || i == SAMKV_TOK_NEVER)) {
            *out = (enum samkv_tok_prepend)i;
            return SAMKV_OK;
        }
    return samkv_tok_json_wrong(err, "Metaspace's \"prepend_scheme\"");
}

static enum samkv_status parse_metaspace(struct samkv_tokenizer *t, const json_t *value, struct samkv_error *err)
{
    struct samkv_tok_stage stage = {.kind = SAMKV_TOK_METASPACE, .behaviour = SAMKV_TOK_MERGED_WITH_NEXT};
    const json_t *character;
    bool split;
    enum samkv_status status = before_byte_level(t, err);
    if (status == SAMKV_OK)
        status = samkv_tok_json_char(value, "replacement", &character, err);
    if (status == SAMKV_OK)
        status = samkv_tok_json_prepend_scheme(value, &stage.prepend, err);
    if (status == SAMKV_OK)
        status = samkv_tok_json_bool(value, "split", true, &split, err);
    if (status != SAMKV_OK)
        return status;
    stage.whole = !split;
    stage.replacement_bytes = (int)json_string_length(character);
    memcpy(stage.replacement, json_string_value(character), (size_t)stage.replacement_bytes);
    status = samkv_tok_regex_literal(stage.replacement, (size_t)stage.replacement_bytes, &stage.pattern, err);
    return status == SAMKV_OK ? samkv_tok_add_stage(t, stage, err) : status;
}

static const struct samkv_tok_json_part pre_tokenizer = {
    .name = "pre_tokenizer",
    .sequence = "pretokenizers",
    .types = {{"Split", parse_split},
              {"Digits", parse_digits},
              {"ByteLevel", parse_byte_level},
              {"Metaspace", parse_metaspace}},
};

enum samkv_status samkv_tok_json_pre_tokenizer(struct samkv_tokenizer *t, const json_t *value, struct samkv_error *err)
{
    return samkv_tok_json_parse(&pre_tokenizer, t, value, err);
}
