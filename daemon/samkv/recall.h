#pragma once
/*
 * How well a selection found the blocks that the query really attends to: calibration's measure of a ranking. Pure.
 */
#include "daemon/samkv/select.h"

/*
 * The attention that the kept middle blocks got in a full prefill, as a share of the most that as many tokens of middle
 * blocks could have got. Anchors are left out: they are kept whatever the ranking says, and much attention rests on a
 * document's first tokens without meaning anything. mass: [all blocks], documents in order. Negative: there was nothing
 * to choose (no middle block was kept, or none got any attention).
 */
double samkv_mass_recall(const struct samkv_blocks *documents, uint32_t count, const struct samkv_selected *kept,
                         const float *mass);

/* The ratio at which a fixed selection keeps this share of the middle blocks' tokens besides all anchors. */
double samkv_middle_ratio(const struct samkv_blocks *documents, uint32_t count, double share);
