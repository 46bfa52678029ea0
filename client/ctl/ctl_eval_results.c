/* The results' file: a first line with the settings, then a line a question, so that a run can go on where it ended. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/ctl/ctl_eval.h"
#include "client/ctl/ctl_source.h"
#include "client/ctl/ctl_text.h"

#define MAX_LINE_BYTES (64u << 20)

enum samkv_status eval_results_init(struct eval_results *r, const struct eval_questions *questions,
                                    const struct eval_variants *variants, struct samkv_error *err)
{
    size_t count = questions->count * variants->count * EVAL_MEASURES;
    *r = (struct eval_results){.questions = questions, .variants = variants};
    r->values = malloc((count + 1) * sizeof *r->values);
    r->done = calloc(questions->count + 1, sizeof *r->done);
    if (!r->values || !r->done)
        return samkv_fail(err, SAMKV_NO_MEMORY, "no memory for the results");
    for (size_t i = 0; i < count; i++)
        r->values[i] = NAN;
    return SAMKV_OK;
}

void eval_results_deinit(struct eval_results *r)
{
    if (r->out)
        fclose(r->out);
    free(r->values);
    free(r->done);
    free(r->memo);
    *r = (struct eval_results){0};
}

double *eval_results_at(const struct eval_results *r, size_t question, size_t variant)
{
    return r->values + (question * r->variants->count + variant) * EVAL_MEASURES;
}

/* ------------------------------------------------------------------ reading */

static void read_measures(const json_t *object, double *values)
{
    for (size_t m = 0; m < EVAL_MEASURES; m++) {
        const json_t *value = json_object_get(object, eval_measures[m].key);
        values[m] = json_is_number(value) ? json_number_value(value) : NAN;
    }
}

static size_t find_question(const struct eval_results *r, const char *key)
{
    size_t i = 0;
    while (i < r->questions->count && strcmp(r->questions->list[i].key, key) != 0)
        i++;
    return i;
}

/* A line of a question that this run has, too; others are passed over. False when it is not whole. */
static bool take_line(struct eval_results *r, const char *line, size_t bytes)
{
    json_error_t why;
    json_t *object = json_loadb(line, bytes, 0, &why);
    const char *key = json_string_value(json_object_get(object, "key"));
    const json_t *variants = json_object_get(object, "variants");
    bool whole = key && json_array_size(variants) == r->variants->count;
    size_t question = whole ? find_question(r, key) : r->questions->count;
    for (size_t v = 0; question < r->questions->count && v < r->variants->count; v++)
        read_measures(json_array_get(variants, v), eval_results_at(r, question, v));
    if (question < r->questions->count)
        r->done[question] = true;
    json_decref(object);
    return whole;
}

static enum samkv_status check_settings(const char *line, size_t bytes, const char *path, const json_t *settings,
                                        struct samkv_error *err)
{
    json_error_t why;
    json_t *object = json_loadb(line, bytes, 0, &why);
    bool same = object && json_equal(json_object_get(object, "eval"), (json_t *)settings);
    json_decref(object);
    if (same)
        return SAMKV_OK;
    return samkv_fail(err, SAMKV_MISMATCH,
                      "%s was made with other methods, ratios or options: give those, or another --out", path);
}

/* Reads what is there; *whole_bytes is where the last whole line ends. */
static enum samkv_status read_file(struct eval_results *r, const char *path, int fd, const json_t *settings,
                                   uint64_t *whole_bytes, struct samkv_error *err)
{
    static const volatile sig_atomic_t never = 0;
    struct ctl_lines lines;
    char *line;
    size_t bytes;
    uint64_t used, at = 0;
    enum samkv_status status = SAMKV_OK;
    struct samkv_error why;
    *whole_bytes = 0;
    ctl_lines_init(&lines, fd, MAX_LINE_BYTES);
    while (!status && !ctl_lines_next(&lines, &never, &line, &bytes, &used, &why)) {
        at += used;
        if (!*whole_bytes)
            status = check_settings(line, bytes, path, settings, err);
        else if (!take_line(r, line, bytes))
            break;
        *whole_bytes = at;
    }
    ctl_lines_deinit(&lines);
    return status;
}

/* ------------------------------------------------------------------ writing */

static enum samkv_status cannot(struct samkv_error *err, const char *what, const char *path)
{
    return samkv_fail(err, SAMKV_IO, "cannot %s %s: %s", what, path, strerror(errno));
}

static enum samkv_status write_line(FILE *out, json_t *object, struct samkv_error *err)
{
    int dumped = json_dumpf(object, out, JSON_COMPACT);
    json_decref(object);
    if (dumped || fputc('\n', out) == EOF || fflush(out))
        return samkv_fail(err, SAMKV_IO, "cannot write the results: is the disk full?");
    return SAMKV_OK;
}

enum samkv_status eval_results_open(struct eval_results *r, const char *path, const json_t *settings, bool resume,
                                    struct samkv_error *err)
{
    uint64_t whole_bytes = 0;
    int fd = resume ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (resume && fd < 0 && errno != ENOENT)
        return cannot(err, "read", path);
    enum samkv_status status = fd >= 0 ? read_file(r, path, fd, settings, &whole_bytes, err) : SAMKV_OK;
    if (status)
        return status;
    fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | (resume ? 0 : O_EXCL), 0666);
    if (fd < 0 && errno == EEXIST)
        return samkv_fail(err, SAMKV_INVALID, "%s is there already: --resume goes on with it", path);
    if (fd < 0)
        return cannot(err, "write", path);
    if (ftruncate(fd, (off_t)whole_bytes) || lseek(fd, 0, SEEK_END) < 0 || !(r->out = fdopen(fd, "w"))) {
        close(fd);
        return cannot(err, "write", path);
    }
    return whole_bytes ? SAMKV_OK : write_line(r->out, json_pack("{s:O}", "eval", (json_t *)settings), err);
}

enum samkv_status eval_results_write(struct eval_results *r, size_t question, json_t *variants, struct samkv_error *err)
{
    const struct eval_question *q = &r->questions->list[question];
    r->done[question] = true;
    if (!r->out) {
        json_decref(variants);
        return SAMKV_OK;
    }
    json_t *line = json_object();
    json_object_set_new(line, "key", ctl_json_text(q->key));
    json_object_set_new(line, "set", ctl_json_text(q->set));
    if (q->answers)
        json_object_set(line, "answers", q->answers);
    json_object_set_new(line, "variants", variants);
    return write_line(r->out, line, err);
}
