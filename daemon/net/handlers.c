#include "daemon/net/handlers.h"

#include <stdio.h>

#include "daemon/net/validate.h"

static const struct samkv_handler handlers[] = {
    {SAMKV_TYPE_INGEST, SAMKV_METRIC_INGESTS, SAMKV_RELAXED, &samkv__ingest_request__descriptor, samkv_check_ingest,
     samkv_handle_ingest},
    {SAMKV_TYPE_FETCH, SAMKV_METRIC_FETCHES, SAMKV_URGENT, &samkv__fetch_request__descriptor, samkv_check_fetch,
     samkv_handle_fetch},
    {SAMKV_TYPE_ASK, SAMKV_METRIC_ASKS, SAMKV_URGENT, &samkv__ask_request__descriptor, samkv_check_ask,
     samkv_handle_ask},
    {SAMKV_TYPE_LIST, SAMKV_METRIC_LISTS, SAMKV_URGENT, &samkv__list_request__descriptor, samkv_check_list,
     samkv_handle_list},
    {SAMKV_TYPE_SHOW, SAMKV_METRIC_SHOWS, SAMKV_URGENT, &samkv__show_request__descriptor, samkv_check_show,
     samkv_handle_show},
    {SAMKV_TYPE_REMOVE, SAMKV_METRIC_REMOVES, SAMKV_DURABLE, &samkv__remove_request__descriptor, samkv_check_remove,
     samkv_handle_remove, .unlimited = true},
    {SAMKV_TYPE_STATUS, SAMKV_METRIC_STATUSES, SAMKV_URGENT, &samkv__status_request__descriptor, NULL,
     samkv_handle_status},
    {SAMKV_TYPE_COMPACT, SAMKV_METRIC_COMPACTS, SAMKV_RELAXED, &samkv__compact_request__descriptor, NULL,
     samkv_handle_compact, .unlimited = true},
    {SAMKV_TYPE_VERIFY, SAMKV_METRIC_VERIFIES, SAMKV_RELAXED, &samkv__verify_request__descriptor, samkv_check_verify,
     samkv_handle_verify, .unlimited = true},
    {SAMKV_TYPE_EXPORT, SAMKV_METRIC_EXPORTS, SAMKV_RELAXED, &samkv__export_request__descriptor, samkv_check_export,
     samkv_handle_export, true, .unlimited = true},
    {SAMKV_TYPE_IMPORT, SAMKV_METRIC_IMPORTS, SAMKV_RELAXED, &samkv__import_request__descriptor, samkv_check_import,
     samkv_handle_import, true, .unlimited = true},
    {SAMKV_TYPE_CONFIGURE, SAMKV_METRIC_CONFIGURES, SAMKV_DURABLE, &samkv__configure_request__descriptor,
     samkv_check_configure, samkv_handle_configure},
    {SAMKV_TYPE_PIN, SAMKV_METRIC_PINS, SAMKV_DURABLE, &samkv__pin_request__descriptor, samkv_check_pin,
     samkv_handle_pin},
    {SAMKV_TYPE_GC, SAMKV_METRIC_GCS, SAMKV_RELAXED, &samkv__gc_request__descriptor, NULL, samkv_handle_gc,
     .unlimited = true},
    {SAMKV_TYPE_CALIBRATE, SAMKV_METRIC_CALIBRATES, SAMKV_RELAXED, &samkv__calibrate_request__descriptor,
     samkv_check_calibrate, samkv_handle_calibrate, .unlimited = true},
    {SAMKV_TYPE_EVALUATE, SAMKV_METRIC_EVALUATIONS, SAMKV_RELAXED, &samkv__evaluate_request__descriptor,
     samkv_check_evaluate, samkv_handle_evaluate, .unlimited = true},
    {SAMKV_TYPE_TRACE, SAMKV_METRIC_TRACES, SAMKV_URGENT, &samkv__trace_request__descriptor, NULL, samkv_handle_trace},
};

const struct samkv_handler *samkv_handler_find(uint16_t type)
{
    for (size_t i = 0; i < sizeof handlers / sizeof *handlers; i++)
        if (handlers[i].type == type)
            return &handlers[i];
    return NULL;
}

void samkv_hex(const uint8_t bytes[16], char out[33])
{
    for (int i = 0; i < 16; i++)
        snprintf(out + 2 * i, 3, "%02x", bytes[i]);
}
