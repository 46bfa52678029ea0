#include "daemon/model/tokenizer_pattern.h"

#include <ctype.h>
#include <string.h>

/* PCRE2's \s also takes U+180E, and its \w knows neither marks nor joiners: the classes are spelt out. */
#define SPACES "\\x09-\\x0d\\x20\\x85\\xa0\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define NO_SPACES                                                                                                      \
    "\\x00-\\x08\\x0e-\\x1f\\x21-\\x84\\x86-\\x9f\\xa1-\\x{167f}\\x{1681}-\\x{1fff}\\x{200b}-\\x{2027}"                \
    "\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}\\x{2060}-\\x{2fff}\\x{3001}-\\x{10ffff}"
#define WORDS                                                                                                          \
    "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}"                   \
    "\\x{1f170}-\\x{1f189}"

static const struct {
    char letter;
    const char *inside, *outside; /* of a [class]; NULL has no translation */
} escapes[] = {
    {'s', SPACES, "[" SPACES "]"},
    {'S', NO_SPACES, "[^" SPACES "]"},
    {'d', "\\p{Nd}", "\\p{Nd}"},
    {'D', "\\P{Nd}", "\\P{Nd}"},
    {'w', WORDS, "[" WORDS "]"},
    {'W', NULL, "[^" WORDS "]"},
    {'r', "\\r", "\\r"},
    {'n', "\\n", "\\n"},
    {'t', "\\t", "\\t"},
    {'f', "\\f", "\\f"},
    {'v', "\\x0b", "\\x0b"},
    {'z', NULL, "\\z"},
    {'A', NULL, "\\A"},
};

static const char *const general_categories[] = {
    "L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M",  "Mn", "Mc", "Me", "N",  "Nd", "Nl", "No", "P",  "Pc", "Pd", "Ps",
    "Pe", "Pi", "Pf", "Po", "S",  "Sm", "Sc", "Sk", "So", "Z",  "Zs", "Zl", "Zp", "C",  "Cc", "Cf", "Cn", "Co",
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
    size_t length = (size_t)(end - name);
    t->at = (size_t)(end - t->in) + 1;
    enum samkv_status status = put(t, negative ? "\\P{" : "\\p{");
    bool category = false, script = length > 2;
    for (size_t i = 0; i < sizeof general_categories / sizeof *general_categories; i++)
        category |= strlen(general_categories[i]) == length && !memcmp(general_categories[i], name, length);
    for (size_t i = 0; i < length; i++)
        script &= isalpha((unsigned char)name[i]) != 0;
    if (!category && !script)
        return refuse(t, "an unknown \\p{} property");
    /* PCRE2 would take a bare name as script extensions. */
    if (status == SAMKV_OK && !category)
        status = put(t, "sc:");
    if (status == SAMKV_OK)
        status = samkv_tok_append(t->out, name, length);
    return status == SAMKV_OK ? put(t, "}") : status;
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

enum samkv_status samkv_tok_pattern_translate(const char *pattern, size_t bytes, struct samkv_tok_buffer *out,
                                              struct samkv_error *err)
{
    struct translation t = {.in = pattern, .bytes = bytes, .out = out, .err = err};
    enum samkv_status status = SAMKV_OK;
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
