#include "client/ctl/ctl_quality.h"

#include <string.h>

static void put(const char *text)
{
    ctl_put(stdout, text, strlen(text), -1, false);
}

const char *ctl_decision_name(enum samkv_fetch_decision decision)
{
    static const char *const names[] = {"sparse", "raised", "full_quality", "full_cheaper"};
    return (size_t)decision < sizeof names / sizeof *names ? names[decision] : "?";
}

void ctl_print_quality(const struct samkv_quality_info *q)
{
    printf("%-10s", "quality");
    put(q->collection);
    fputs(": ", stdout);
    put(q->target);
    if (q->full)
        fputs(", everything is recomputed", stdout);
    else if (q->ratio > 0)
        printf(", at least %g is kept", q->ratio);
    else
        fputs(", fetches keep what they ask for", stdout);
    if (q->measurements > 0 && !q->full)
        printf("; measured %.4g, surely not worse than %.4g (%.0f of late): %s", q->estimate, q->bound, q->measurements,
               q->met ? "met" : "not met");
    printf("; %g of fetches are measured, %llu so far, raised %llu times, lowered %llu\n", q->share,
           (unsigned long long)q->measured, (unsigned long long)q->raised, (unsigned long long)q->lowered);
}

void ctl_print_calibration(const struct samkv_calibration_info *c)
{
    struct ctl_buffer when;
    printf("%-10s", "stable");
    put(c->model);
    fputs(": calibrated, layers ", stdout);
    for (size_t i = 0; i < c->stable_layer_count; i++)
        printf("%s%u", i ? "," : "", c->stable_layers[i]);
    if (c->ratio > 0)
        printf(", ratio %g (filled)", c->ratio);
    if (c->block_tokens)
        printf(", blocks of %u", c->block_tokens);
    if (c->init_tokens >= 0 && c->local_tokens >= 0)
        printf(", anchors %lld and %lld", (long long)c->init_tokens, (long long)c->local_tokens);
    printf("; agreement %.3f, KL %.4f on %u questions, %s\n", c->agreement, c->kl, c->samples,
           ctl_time(&when, c->unix_s));
}

json_t *ctl_json_quality(const struct samkv_quality_info *q)
{
    json_t *o = json_object();
    json_object_set_new(o, "collection", ctl_json_text(q->collection));
    json_object_set_new(o, "target", ctl_json_text(q->target));
    json_object_set_new(o, "share", ctl_json_real(q->share));
    json_object_set_new(o, "level", json_integer(q->level));
    json_object_set_new(o, "ratio", ctl_json_real(q->ratio));
    json_object_set_new(o, "full", json_boolean(q->full));
    json_object_set_new(o, "estimate", ctl_json_real(q->estimate));
    json_object_set_new(o, "bound", ctl_json_real(q->bound));
    json_object_set_new(o, "measurements", ctl_json_real(q->measurements));
    json_object_set_new(o, "met", json_boolean(q->met));
    json_object_set_new(o, "measured", json_integer((json_int_t)q->measured));
    json_object_set_new(o, "raised", json_integer((json_int_t)q->raised));
    json_object_set_new(o, "lowered", json_integer((json_int_t)q->lowered));
    return o;
}

json_t *ctl_json_calibration(const struct samkv_calibration_info *c)
{
    json_t *o = json_object(), *layers = json_array();
    for (size_t i = 0; i < c->stable_layer_count; i++)
        json_array_append_new(layers, json_integer(c->stable_layers[i]));
    json_object_set_new(o, "model", ctl_json_text(c->model));
    json_object_set_new(o, "fingerprint", ctl_json_text(c->fingerprint));
    json_object_set_new(o, "stable_layers", layers);
    json_object_set_new(o, "ratio", c->ratio > 0 ? ctl_json_real(c->ratio) : json_null());
    json_object_set_new(o, "block_size", c->block_tokens ? json_integer(c->block_tokens) : json_null());
    json_object_set_new(o, "init_tokens", c->init_tokens >= 0 ? json_integer(c->init_tokens) : json_null());
    json_object_set_new(o, "local_tokens", c->local_tokens >= 0 ? json_integer(c->local_tokens) : json_null());
    json_object_set_new(o, "samples", json_integer(c->samples));
    json_object_set_new(o, "recall", ctl_json_real(c->recall));
    json_object_set_new(o, "agreement", ctl_json_real(c->agreement));
    json_object_set_new(o, "kl", ctl_json_real(c->kl));
    json_object_set_new(o, "unix_s", json_integer(c->unix_s));
    return o;
}
