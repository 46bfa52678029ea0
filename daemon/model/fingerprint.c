#include "daemon/model/fingerprint.h"

#include <string.h>
#include <sys/mman.h>
#include <xxhash.h>

/* The opaque type is xxhash's state itself, which needs the alignment that XXH3_createState gives. */
static XXH3_state_t *state(struct samkv_fingerprint *f)
{
    return (XXH3_state_t *)f;
}

struct samkv_fingerprint *samkv_fingerprint_new(const char *kind)
{
    XXH3_state_t *s = XXH3_createState();
    if (!s)
        return NULL;
    (void)XXH3_128bits_reset(s);
    struct samkv_fingerprint *f = (struct samkv_fingerprint *)s;
    samkv_fingerprint_add(f, kind, strlen(kind));
    return f;
}

/* With its length, so that bytes cannot move from one part to the next unnoticed. */
void samkv_fingerprint_add(struct samkv_fingerprint *f, const void *bytes, size_t count)
{
    uint8_t length[8];
    for (int i = 0; i < 8; i++)
        length[i] = (uint8_t)((uint64_t)count >> 8 * i);
    (void)XXH3_128bits_update(state(f), length, sizeof length);
    (void)XXH3_128bits_update(state(f), bytes, count);
}

void samkv_fingerprint_add_file(struct samkv_fingerprint *f, const void *mapping, size_t count)
{
    (void)madvise((void *)mapping, count, MADV_SEQUENTIAL);
    samkv_fingerprint_add(f, mapping, count);
    (void)madvise((void *)mapping, count, MADV_NORMAL);
}

void samkv_fingerprint_finish(struct samkv_fingerprint *f, uint8_t out[16])
{
    if (!f)
        return;
    XXH128_canonical_t digest;
    XXH128_canonicalFromHash(&digest, XXH3_128bits_digest(state(f)));
    memcpy(out, digest.digest, 16);
    (void)XXH3_freeState(state(f));
}
