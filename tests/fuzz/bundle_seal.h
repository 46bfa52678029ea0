#pragma once
/* Makes the checksums of a bundle fit again, so that what stands below them is read. */
#include <stddef.h>
#include <stdint.h>

/* In place: records, entries, digests of documents and of the whole, as far as the entries' lengths lead. */
void bundle_seal(uint8_t *bytes, size_t count);
