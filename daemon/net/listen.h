#pragma once
/* The daemon's socket: made, or handed over by systemd. At start, before any thread needs it. */
#include <stdbool.h>
#include <sys/types.h>

#include "proto/status.h"

struct samkv_listener {
    int fd;         /* listening, non-blocking, close-on-exec */
    bool activated; /* systemd's: its file stays */
    char path[108];
    dev_t device; /* the file we made, to remove no other */
    ino_t inode;
};

/*
 * Socket activation first (fd 3 when LISTEN_PID is us); else binds path with mode 0660. A socket file there is replaced
 * only when nobody answers on it: BUSY when somebody does, INVALID when it is another kind of file.
 */
enum samkv_status samkv_listen(const char *path, struct samkv_listener *out, struct samkv_error *) SAMKV_MUST_USE;

/* The same without socket activation. */
enum samkv_status samkv_listen_path(const char *path, struct samkv_listener *out, struct samkv_error *) SAMKV_MUST_USE;

/* Closes, and removes the file when it is still ours. Twice is allowed. */
void samkv_listener_close(struct samkv_listener *);

/* systemd's readiness protocol: "READY=1", "STOPPING=1", "STATUS=...". Does nothing without NOTIFY_SOCKET. */
/* Whether systemd's watchdog waits for "WATCHDOG=1" from this process. */
bool samkv_is_watched(void);

void samkv_notify(const char *state);
