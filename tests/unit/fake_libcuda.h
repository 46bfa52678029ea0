#pragma once
/* What the fake driver lets a test see and set, under the symbol `fake_cuda`. */
struct fake_cuda {
    char uuid[17];
    const char *failing; /* the symbol whose calls fail; NULL: none */
    int contexts, current, handles, ranges, mappings;
};
