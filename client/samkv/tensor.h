#pragma once
/* In the source tree only: an installation has proto/tensor.h itself at this place. */
#include "proto/tensor.h"
