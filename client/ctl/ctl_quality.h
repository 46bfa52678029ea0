#pragma once
/* How samkvctl tells of quality gates and calibrations. */
#include "client/ctl/ctl.h"
#include "client/ctl/ctl_text.h"

/* A line each, behind a name of ten columns as in `status`. */
void ctl_print_quality(const struct samkv_quality_info *);
void ctl_print_calibration(const struct samkv_calibration_info *);

json_t *ctl_json_quality(const struct samkv_quality_info *);
json_t *ctl_json_calibration(const struct samkv_calibration_info *);

/* "sparse", "raised", "full_quality", "full_cheaper"; "?" for one of a newer daemon. */
const char *ctl_decision_name(enum samkv_fetch_decision);
