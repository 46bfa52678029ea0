#pragma once
/* In the source tree only: an installation has proto/status.h itself at this place. */
#include "proto/status.h"
