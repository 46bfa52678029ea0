#include "daemon/model/tokenizer_pattern.h"

#include <ctype.h>
#include <string.h>
#include <strings.h>

#include "daemon/model/tokenizer_younger.h"

/* PCRE2's \s also takes U+180E, and its \w knows neither marks nor joiners: the classes are spelt out. */
#define SPACES "\\x09-\\x0d\\x20\\x85\\xa0\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define NO_SPACES                                                                                                      \
    "\\x00-\\x08\\x0e-\\x1f\\x21-\\x84\\x86-\\x9f\\xa1-\\x{167f}\\x{1681}-\\x{1fff}\\x{200b}-\\x{2027}"                \
    "\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}\\x{2060}-\\x{2fff}\\x{3001}-\\x{10ffff}"
/* Symbols and numbers that count as parts of words: enclosed letters, and what Oniguruma takes from Latin-1. */
#define WORD_SYMBOLS                                                                                                   \
    "\\xb2\\xb3\\xb9\\xbc-\\xbe\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{1f189}"

/* Han of Unicode 15 and 15.1. PCRE2 takes a bare script name as script extensions, so it is said in full. */
#define HAN "\\p{sc:Han}\\x{2b739}\\x{2ebf0}-\\x{2ee5d}\\x{31350}-\\x{323af}"

static const struct {
    char letter;
    const char *inside, *outside; /* of a [class]; NULL has no translation */
} escapes[] = {
    {'s', SPACES, "[" SPACES "]"},
    {'S', NO_SPACES, "[^" SPACES "]"},
    {'r', "\\r", "\\r"},
    {'n', "\\n", "\\n"},
    {'t', "\\t", "\\t"},
    {'f', "\\f", "\\f"},
    {'v', "\\x0b", "\\x0b"},
    {'z', NULL, "\\z"},
    {'A', NULL, "\\A"},
};

/* Classes that are unions of general categories. */
static const struct {
    char letter;
    const char *categories[6], *more;
} unions[] = {
    {'d', {"Nd"}, ""},
    {'w', {"L", "M", "Nd", "Nl", "Pc"}, WORD_SYMBOLS},
};

static const char *const general_categories[] = {
    "L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M",  "Mn", "Mc", "Me", "N", "Nd", "Nl", "No", "P",  "Pc", "Pd",
    "Ps", "Pe", "Pi", "Pf", "Po", "S",  "Sm", "Sc", "Sk", "So", "Z", "Zs", "Zl", "Zp", "Cc", "Cf", "Co",
};

struct translation {
    const char *in;
    size_t bytes, at;
    bool in_class;
    struct samkv_tok_buffer *out;
    struct samkv_error *err;
};

static enum samkv_status refuse(struct translation *t, const char *what)
{
    return samkv_fail(t->err, SAMKV_UNSUPPORTED, "the tokenizer's pattern uses %s, which is not supported: \"%.*s\"",
                      what, (int)(t->bytes < 300 ? t->bytes : 300), t->in);
}

static enum samkv_status put(struct translation *t, const char *text)
{
    return samkv_tok_append(t->out, text, strlen(text));
}

static bool looking_at(const struct translation *t, const char *text)
{
    size_t length = strlen(text);
    return t->bytes - t->at >= length && memcmp(t->in + t->at, text, length) == 0;
}

/* A general category, with the characters that PCRE2's tables may lack, as part of a class. */
static enum samkv_status put_category(struct translation *t, const char *name, size_t length)
{
    enum samkv_status status = put(t, "\\p{");
    if (status == SAMKV_OK)
        status = samkv_tok_append(t->out, name, length);
    if (status == SAMKV_OK)
        status = put(t, "}");
    return status == SAMKV_OK ? samkv_tok_younger_ranges(name, length, t->out) : status;
}

static enum samkv_status property_named(struct translation *t, const char *name, size_t length, bool negative)
{
    bool category = false, han = length == 3 && memcmp(name, "Han", 3) == 0;
    for (size_t i = 0; i < sizeof general_categories / sizeof *general_categories; i++)
        category |= strlen(general_categories[i]) == length && !memcmp(general_categories[i], name, length);
    if (!category && !han)
        return refuse(t, "a \\p{} that is no general category");
    if (t->in_class && negative)
        return refuse(t, "\\P{} within []");
    enum samkv_status status = t->in_class ? SAMKV_OK : put(t, negative ? "[^" : "[");
    if (status == SAMKV_OK)
        status = han ? put(t, HAN) : put_category(t, name, length);
    return status == SAMKV_OK && !t->in_class ? put(t, "]") : status;
}

/* \p{Lu}, \P{L}, \p{^L}, \p{Han}; `at` is behind the p. */
static enum samkv_status property(struct translation *t, bool negative)
{
    const char *end = t->at < t->bytes ? memchr(t->in + t->at, '}', t->bytes - t->at) : NULL;
    if (!end || t->in[t->at] != '{')
        return refuse(t, "\\p without {}");
    const char *name = t->in + t->at + 1;
    if (*name == '^') {
        negative = !negative;
        name++;
    }
    t->at = (size_t)(end - t->in) + 1;
    return property_named(t, name, (size_t)(end - name), negative);
}

/* \d, \w and their opposites. */
static enum samkv_status put_union(struct translation *t, size_t index, bool negative)
{
    if (t->in_class && negative)
        return refuse(t, "\\D or \\W within []");
    enum samkv_status status = t->in_class ? SAMKV_OK : put(t, negative ? "[^" : "[");
    for (int i = 0; status == SAMKV_OK && unions[index].categories[i]; i++)
        status = put_category(t, unions[index].categories[i], strlen(unions[index].categories[i]));
    if (status == SAMKV_OK)
        status = put(t, unions[index].more);
    return status == SAMKV_OK && !t->in_class ? put(t, "]") : status;
}

/* \xHH below 0x80, \x{H..}, \uHHHH: all become \x{..}. `at` is behind the letter. */
static enum samkv_status hexadecimal(struct translation *t, char letter)
{
    size_t digits = 0, limit = letter == 'u' ? 4 : 2;
    bool braces = letter == 'x' && t->at < t->bytes && t->in[t->at] == '{';
    if (braces) {
        t->at++;
        limit = 6;
    }
    while (digits < limit && t->at + digits < t->bytes && isxdigit((unsigned char)t->in[t->at + digits]))
        digits++;
    const char *start = t->in + t->at;
    t->at += digits;
    bool closed = !braces || (t->at < t->bytes && t->in[t->at] == '}');
    bool one_byte = letter == 'x' && !braces;
    if (!digits || !closed || (letter == 'u' && digits != 4) || (one_byte && digits == 2 && start[0] >= '8'))
        return refuse(t, "an odd \\x or \\u escape");
    t->at += braces;
    enum samkv_status status = put(t, "\\x{");
    if (status == SAMKV_OK)
        status = samkv_tok_append(t->out, start, digits);
    return status == SAMKV_OK ? put(t, "}") : status;
}

static enum samkv_status escape(struct translation *t)
{
    if (++t->at == t->bytes)
        return refuse(t, "a backslash at its end");
    char letter = t->in[t->at++];
    if (letter == 'p' || letter == 'P')
        return property(t, letter == 'P');
    if (letter == 'x' || letter == 'u')
        return hexadecimal(t, letter);
    for (size_t i = 0; i < sizeof escapes / sizeof *escapes; i++) {
        const char *words = t->in_class ? escapes[i].inside : escapes[i].outside;
        if (escapes[i].letter == letter && words)
            return put(t, words);
    }
    for (size_t i = 0; i < sizeof unions / sizeof *unions; i++)
        if (unions[i].letter == tolower((unsigned char)letter))
            return put_union(t, i, unions[i].letter != letter);
    if ((unsigned char)letter < 0x80 && ispunct((unsigned char)letter))
        return samkv_tok_append(t->out, (char[]){'\\', letter}, 2);
    char what[] = "the escape \\?";
    what[sizeof what - 2] = isprint((unsigned char)letter) ? letter : '?';
    return refuse(t, what);
}

static enum samkv_status in_class(struct translation *t)
{
    char c = t->in[t->at];
    if (c == '[') /* nested and POSIX classes */
        return refuse(t, "a [ within []");
    if (looking_at(t, "&&"))
        return refuse(t, "&& within []");
    if (c == ']')
        t->in_class = false;
    t->at++;
    return samkv_tok_append(t->out, &c, 1);
}

static enum samkv_status open_class(struct translation *t)
{
    bool negative = looking_at(t, "[^");
    t->at += negative ? 2 : 1;
    if (t->at < t->bytes && t->in[t->at] == ']')
        return refuse(t, "an empty []");
    t->in_class = true;
    return put(t, negative ? "[^" : "[");
}

static enum samkv_status open_group(struct translation *t)
{
    static const char *const kinds[] = {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:", "(?-i:"};
    if (!looking_at(t, "(?")) {
        t->at++;
        return put(t, "(?:"); /* captures are of no use here */
    }
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (looking_at(t, kinds[i])) {
            t->at += strlen(kinds[i]);
            return put(t, kinds[i]);
        }
    return refuse(t, "a (? group of its own kind");
}

static enum samkv_status outside_class(struct translation *t)
{
    char c = t->in[t->at];
    if (c == '[')
        return open_class(t);
    if (c == '(')
        return open_group(t);
    if (looking_at(t, "{,") || looking_at(t, "}+"))
        return refuse(t, "{,n} or {n}+");
    if (c == '^')
        return refuse(t, "the anchor ^");
    t->at++;
    if (c == '$') /* Ruby's $ is the end of a line */
        return put(t, "(?m:$)");
    return samkv_tok_append(t->out, &c, 1);
}

/* Without regard to case, Oniguruma also takes some letters for two ("st" for U+FB06), which PCRE2 does not. */
static bool has_folding_pair(const struct translation *t)
{
    static const char *const pairs[] = {"ss", "st", "ff", "fi", "fl"};
    bool caseless = memmem(t->in, t->bytes, "(?i", 3) != NULL;
    for (size_t at = 0; caseless && at < t->bytes; at++) {
        if ((unsigned char)t->in[at] >= 0x80)
            return true;
        for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
            if (t->bytes - at >= 2 && strncasecmp(t->in + at, pairs[i], 2) == 0)
                return true;
    }
    return false;
}

enum samkv_status samkv_tok_pattern_translate(const char *pattern, size_t bytes, struct samkv_tok_buffer *out,
                                              struct samkv_error *err)
{
    struct translation t = {.in = pattern, .bytes = bytes, .out = out, .err = err};
    enum samkv_status status = SAMKV_OK;
    if (has_folding_pair(&t))
        return refuse(&t, "(?i: with letters that fold with others");
    while (status == SAMKV_OK && t.at < t.bytes) {
        if (t.in[t.at] == '\\')
            status = escape(&t);
        else
            status = t.in_class ? in_class(&t) : outside_class(&t);
    }
    if (status == SAMKV_OK && t.in_class)
        return refuse(&t, "a [ without ]");
    return status;
}
