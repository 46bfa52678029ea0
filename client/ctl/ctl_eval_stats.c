/* Means over questions and how sure they are: percentile bootstrap (Efron, 1979), questions drawn with replacement. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "client/ctl/ctl_eval.h"

#define RESAMPLES 2000
#define PLACES    16384

static uint64_t next_random(uint64_t *state)
{
    /* SplitMix64 (Steele, Lea, Flood, OOPSLA 2014). */
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* values: [count] */
static struct eval_estimate resample(const double *values, size_t count)
{
    struct eval_estimate e = {NAN, NAN, NAN, count};
    double sum = 0, *means = malloc(RESAMPLES * sizeof *means);
    uint64_t state = 1;
    for (size_t i = 0; i < count; i++)
        sum += values[i];
    if (!count || !means) {
        free(means);
        return e;
    }
    for (int r = 0; r < RESAMPLES; r++) {
        means[r] = 0;
        for (size_t i = 0; i < count; i++)
            means[r] += values[next_random(&state) % count];
        means[r] /= (double)count;
    }
    qsort(means, RESAMPLES, sizeof *means, compare);
    e.mean = sum / (double)count;
    e.low = means[(int)(0.025 * RESAMPLES)];
    e.high = means[(int)(0.975 * RESAMPLES) - 1];
    free(means);
    return e;
}

static struct eval_estimate make_estimate(const struct eval_results *r, const char *set, size_t variant, int against,
                                          enum eval_measure measure)
{
    double *values = malloc((r->questions->count + 1) * sizeof *values);
    size_t count = 0;
    for (size_t i = 0; values && i < r->questions->count; i++) {
        if (!r->done[i] || (set && strcmp(set, r->questions->list[i].set) != 0))
            continue;
        double value = eval_results_at(r, i, variant)[measure];
        if (against >= 0)
            value -= eval_results_at(r, i, (size_t)against)[measure];
        if (!isnan(value))
            values[count++] = value;
    }
    struct eval_estimate e = resample(values, count);
    free(values);
    return e;
}

/* Tables and plots ask for the same again and again. Places by hash; when they are used up, the rest is made anew. */
struct eval_memo {
    struct {
        const char *set; /* the pointer: a set's name is that of its first question */
        size_t variant;
        int against;
        enum eval_measure measure;
        bool used;
        struct eval_estimate estimate;
    } places[PLACES];
    size_t count;
};

struct eval_estimate eval_estimate(struct eval_results *r, const char *set, size_t variant, int against,
                                   enum eval_measure measure)
{
    if (!r->memo)
        r->memo = calloc(1, sizeof *r->memo);
    if (!r->memo || r->memo->count == PLACES - 1)
        return make_estimate(r, set, variant, against, measure);
    size_t at = ((uintptr_t)set / 8 * 31 + variant * 1021 + (size_t)(against + 1) * 97 + measure) % PLACES;
    while (r->memo->places[at].used &&
           (r->memo->places[at].set != set || r->memo->places[at].variant != variant ||
            r->memo->places[at].against != against || r->memo->places[at].measure != measure))
        at = (at + 1) % PLACES;
    if (!r->memo->places[at].used) {
        r->memo->places[at].set = set;
        r->memo->places[at].variant = variant;
        r->memo->places[at].against = against;
        r->memo->places[at].measure = measure;
        r->memo->places[at].estimate = make_estimate(r, set, variant, against, measure);
        r->memo->places[at].used = true;
        r->memo->count++;
    }
    return r->memo->places[at].estimate;
}

size_t eval_sets(const struct eval_questions *questions, const char ***out)
{
    const char **sets = calloc(questions->count + 2, sizeof *sets);
    size_t count = 0;
    for (size_t i = 0; sets && i < questions->count; i++) {
        size_t s = 0;
        while (s < count && strcmp(sets[s], questions->list[i].set) != 0)
            s++;
        if (s == count)
            sets[count++] = questions->list[i].set;
    }
    *out = sets;
    return count > 1 ? count + 1 : count;
}
