#pragma once
/*
 * What the heap holds, counted by the sanitizers' own hooks: all threads, all libraries. Without a sanitizer nothing is
 * counted, and heap_is_counted says so.
 */
#include <stdbool.h>
#include <stddef.h>

bool heap_is_counted(void);

/* From here on. */
void heap_begin(void);

/* The most that was held at a time since heap_begin, what was there before left out. Bytes as they were asked for. */
size_t heap_peak(void);
