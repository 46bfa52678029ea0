#include "client/ctl/ctl_bundle.h"

#include <stdio.h>

#include "client/ctl/ctl_text.h"

bool ctl_bundle_progress(void *arg, const struct samkv_bundle_answer *b)
{
    struct ctl_buffer done, total, bytes;
    char text[160];
    snprintf(text, sizeof text, "%s/%s documents  %s", ctl_count(&done, b->names), ctl_count(&total, b->names_total),
             ctl_bytes(&bytes, b->bytes));
    ctl_progress_show(arg, b->names_total ? (double)b->names / (double)b->names_total : -1, text);
    return true;
}

void ctl_bundle_json(json_t *object, const struct samkv_bundle_answer *b, double seconds)
{
    json_object_set_new(object, "collection", ctl_json_text(b->collection));
    json_object_set_new(object, "documents", json_integer((json_int_t)b->names));
    json_object_set_new(object, "bytes", json_integer((json_int_t)b->bytes));
    json_object_set_new(object, "last_id", ctl_json_text(b->last_id));
    json_object_set_new(object, "seconds", ctl_json_real(seconds));
}
