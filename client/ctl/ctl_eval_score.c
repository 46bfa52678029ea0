/* Answers against the right ones: F1 and exact match as SQuAD has them (Rajpurkar et al., 2016), ROUGE-L (Lin, 2004) by
 * characters where the answer is Chinese. */
#include <stdlib.h>
#include <string.h>
#include <wctype.h>

#include "client/ctl/ctl_eval.h"

const struct eval_measure_info eval_measures[EVAL_MEASURES] = {
    [EVAL_SCORE] = {"score", "F1", true, 1},
    [EVAL_EXACT] = {"exact", "EM", true, 1},
    [EVAL_LIKELIHOOD] = {"log_likelihood", "log p", false, 3},
    [EVAL_KL] = {"kl", "KL", false, 3},
    [EVAL_AGREES] = {"agrees", "agrees", true, 1},
    [EVAL_SEQUENCE] = {"sequence_ratio", "kept", true, 1},
    [EVAL_RECOMPUTE] = {"recompute_ratio", "recomputed", true, 1},
    [EVAL_BYTES] = {"bytes_read", "read MB", false, 2},
    [EVAL_FIRST_TOKEN_MS] = {"first_token_ms", "first ms", false, 1},
    [EVAL_FACTS] = {"facts_kept", "facts", true, 1},
};

/* Units that are compared: characters of Chinese, words of anything else. Code points; a word ends with a 0. */
struct units {
    uint32_t *points;
    size_t *starts; /* [count] in points */
    size_t count, point_count;
};

static bool is_han(uint32_t point)
{
    return (point >= 0x2e80 && point < 0xa000) || (point >= 0xf900 && point < 0xfb00) ||
           (point >= 0x20000 && point < 0x32000);
}

/* The next code point; bytes that are no UTF-8 are points of their own. */
static uint32_t next_point(const char **at, const char *end)
{
    const unsigned char *s = (const unsigned char *)*at;
    size_t left = (size_t)(end - *at);
    int more = s[0] >= 0xf0 ? 3 : s[0] >= 0xe0 ? 2 : s[0] >= 0xc0 ? 1 : 0;
    uint32_t point = more == 3 ? s[0] & 7u : more == 2 ? s[0] & 15u : more == 1 ? s[0] & 31u : s[0];
    for (int i = 1; i <= more; i++) {
        if ((size_t)i >= left || (s[i] & 0xc0) != 0x80) {
            ++*at;
            return s[0];
        }
        point = point << 6 | (s[i] & 63u);
    }
    *at += 1 + more;
    return point;
}

static bool is_punctuation(uint32_t point)
{
    bool ascii = point < 0x80 && point > 0x20 && !((point | 0x20) >= 'a' && (point | 0x20) <= 'z') &&
                 !(point >= '0' && point <= '9') && point != 0x7f;
    return ascii || (point >= 0x3000 && point < 0x3030) || (point >= 0xff00 && point < 0xff10) || point == 0xff1f;
}

static bool is_article(const uint32_t *word, size_t count)
{
    return (count == 1 && word[0] == 'a') || (count == 2 && word[0] == 'a' && word[1] == 'n') ||
           (count == 3 && word[0] == 't' && word[1] == 'h' && word[2] == 'e');
}

static void end_word(struct units *u)
{
    size_t start = u->starts[u->count];
    size_t length = u->point_count - start;
    if (!length)
        return;
    if (is_article(u->points + start, length)) {
        u->point_count = start;
        return;
    }
    u->points[u->point_count++] = 0;
    u->starts[++u->count] = u->point_count;
}

/* False without memory. */
static bool units_init(struct units *u, const char *text, size_t bytes)
{
    const char *at = text, *end = text + bytes;
    *u = (struct units){.points = malloc((2 * bytes + 2) * sizeof *u->points),
                        .starts = malloc((bytes + 2) * sizeof *u->starts)};
    if (!u->points || !u->starts)
        return false;
    u->starts[0] = 0;
    while (at < end) {
        uint32_t point = next_point(&at, end);
        if (is_han(point)) {
            end_word(u);
            u->points[u->point_count++] = point;
            end_word(u);
        } else if (point <= 0x20 || point == 0xa0 || iswspace((wint_t)point)) {
            end_word(u);
        } else if (!is_punctuation(point)) {
            u->points[u->point_count++] = (uint32_t)towlower((wint_t)point);
        }
    }
    end_word(u);
    return true;
}

static void units_deinit(struct units *u)
{
    free(u->points);
    free(u->starts);
}

static bool same_unit(const struct units *a, size_t i, const struct units *b, size_t j)
{
    const uint32_t *x = a->points + a->starts[i], *y = b->points + b->starts[j];
    while (*x && *x == *y)
        x++, y++;
    return *x == *y;
}

static bool has_han(const struct units *u)
{
    for (size_t i = 0; i < u->point_count; i++)
        if (is_han(u->points[i]))
            return true;
    return false;
}

/* Units of a that b has too, each of b's used once. */
static size_t count_common(const struct units *a, const struct units *b)
{
    size_t common = 0;
    bool *used = calloc(b->count + 1, sizeof *used);
    for (size_t i = 0; used && i < a->count; i++) {
        for (size_t j = 0; j < b->count; j++) {
            if (used[j] || !same_unit(a, i, b, j))
                continue;
            used[j] = true;
            common++;
            break;
        }
    }
    free(used);
    return common;
}

/* Length of the longest common subsequence. */
static size_t longest_common(const struct units *a, const struct units *b)
{
    size_t *row = calloc(b->count + 1, sizeof *row), longest = 0;
    for (size_t i = 0; row && i < a->count; i++) {
        size_t diagonal = 0;
        for (size_t j = 0; j < b->count; j++) {
            size_t above = row[j + 1];
            row[j + 1] = same_unit(a, i, b, j) ? diagonal + 1 : above > row[j] ? above : row[j];
            diagonal = above;
        }
    }
    longest = row ? row[b->count] : 0;
    free(row);
    return longest;
}

static double harmonic(size_t common, size_t a, size_t b)
{
    return common ? 2.0 * (double)common / (double)(a + b) : 0;
}

static double score_of(const struct units *answer, const struct units *right)
{
    if (!answer->count || !right->count)
        return answer->count == right->count;
    size_t common = has_han(right) ? longest_common(answer, right) : count_common(answer, right);
    return harmonic(common, answer->count, right->count);
}

static double exact_of(const struct units *answer, const struct units *right)
{
    if (answer->count != right->count)
        return 0;
    for (size_t i = 0; i < answer->count; i++)
        if (!same_unit(answer, i, right, i))
            return 0;
    return 1;
}

static double best(const char *answer, size_t bytes, const json_t *answers,
                   double (*compare)(const struct units *, const struct units *))
{
    struct units mine, right;
    double highest = 0;
    size_t i;
    const json_t *item;
    bool ok = units_init(&mine, answer, bytes);
    json_array_foreach(answers, i, item)
    {
        bool made = units_init(&right, json_string_value(item), json_string_length(item));
        double score = ok && made ? compare(&mine, &right) : 0;
        highest = score > highest ? score : highest;
        units_deinit(&right);
    }
    units_deinit(&mine);
    return highest;
}

double eval_score(const char *answer, size_t bytes, const json_t *answers)
{
    return best(answer, bytes, answers, score_of);
}

double eval_exact(const char *answer, size_t bytes, const json_t *answers)
{
    return best(answer, bytes, answers, exact_of);
}
