#include <string.h>

#include "samkv/samkv_llama.h"

/* clang-format off */
static const struct {
    const char *name;
    size_t bytes;
} structures[] = {
#define STRUCTURE(name) {#name, sizeof(struct name)}
    STRUCTURE(samkv_error),
    STRUCTURE(samkv_collection_options),
    STRUCTURE(samkv_document),
    STRUCTURE(samkv_fetch_options),
    STRUCTURE(samkv_ask_options),
    STRUCTURE(samkv_evaluated_variant),
    STRUCTURE(samkv_evaluate_options),
    STRUCTURE(samkv_evaluate_answer),
    STRUCTURE(samkv_timing),
    STRUCTURE(samkv_blocks_kept),
    STRUCTURE(samkv_figures),
    STRUCTURE(samkv_cache),
    STRUCTURE(samkv_ingested_document),
    STRUCTURE(samkv_document_info),
    STRUCTURE(samkv_collection_info),
    STRUCTURE(samkv_model_info),
    STRUCTURE(samkv_counter),
    STRUCTURE(samkv_ingest_answer),
    STRUCTURE(samkv_ask_answer),
    STRUCTURE(samkv_list_answer),
    STRUCTURE(samkv_show_answer),
    STRUCTURE(samkv_remove_answer),
    STRUCTURE(samkv_status_answer),
    STRUCTURE(samkv_verify_answer),
    STRUCTURE(samkv_configure_answer),
    STRUCTURE(samkv_pin_answer),
    STRUCTURE(samkv_gc_answer),
    STRUCTURE(samkv_quality_info),
    STRUCTURE(samkv_calibration_info),
    STRUCTURE(samkv_calibrate_question),
    STRUCTURE(samkv_calibrate_options),
    STRUCTURE(samkv_calibrate_answer),
    STRUCTURE(samkv_reply),
    STRUCTURE(samkv_llama_layout),
#undef STRUCTURE
};
/* clang-format on */

size_t samkv_client_struct_bytes(const char *name)
{
    for (size_t i = 0; i < sizeof structures / sizeof *structures; i++)
        if (!strcmp(structures[i].name, name))
            return structures[i].bytes;
    return 0;
}
