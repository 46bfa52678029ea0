#pragma once
/*
 * Starting a thread the way all of the daemon's threads start: named (for top and gdb) and with signals blocked, so
 * that only the event loop sees SIGTERM and no system call of a worker returns early.
 */
#include <pthread.h>

#include "proto/status.h"

/* name: at most 15 bytes are shown. NO_MEMORY when the system has no thread left. */
enum samkv_status samkv_thread_start(pthread_t *out, const char *name, void *(*fn)(void *arg),
                                     void *arg) SAMKV_MUST_USE;
