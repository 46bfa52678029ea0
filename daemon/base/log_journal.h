#pragma once
/* A log line as the journal's own protocol wants it: https://systemd.io/JOURNAL_NATIVE_PROTOCOL. Pure. */
#include <stddef.h>

#define SAMKV_JOURNAL_BYTES 8192 /* of one entry, at most */

/*
 * "req=17 type=FETCH: some text" → PRIORITY, SYSLOG_IDENTIFIER, MESSAGE, and SAMKV_REQ=17, SAMKV_TYPE=FETCH. Fields end
 * at the first ": ", since text behind it may be a client's. Of two with the same name the first one counts. `text` has
 * no control characters. Returns the bytes of the entry.
 */
size_t samkv_journal_entry(int priority, const char *text, size_t count, char out[SAMKV_JOURNAL_BYTES]);
