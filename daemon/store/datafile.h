#pragma once
/*
 * A look at LMDB's data file before LMDB maps it: reading a page that a truncated file lacks would end the process,
 * and LMDB trusts what its pages say of each other.
 */
#include <stdbool.h>
#include <stdint.h>

#include "proto/status.h"

struct samkv_datafile {
    bool exists;
    uint64_t file_bytes;
    uint64_t used_bytes; /* up to the last page that was ever used */
    uint32_t page_bytes;
};

/*
 * OK also when there is none (out->exists). CORRUPT: truncated, empty, garbage, or (deep) pages that do not fit
 * together. MISMATCH: another version of LMDB's format. The text names the file. With `deep` no process may write to
 * the file meanwhile; one that lacks only pages never written is made as long as LMDB believes it to be. Any thread.
 */
enum samkv_status samkv_datafile_check(const char *path, bool deep, struct samkv_datafile *out,
                                       struct samkv_error *) SAMKV_MUST_USE;
