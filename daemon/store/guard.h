#pragma once
/*
 * A guarded section: code that reads the mapped data file and survives that a page of it cannot be had. The file may be
 * cut short under a running daemon, or its disk may fail; the kernel then sends SIGBUS to the thread that touched the
 * page. LMDB's trees are read in place, so there is no call that could return an error instead.
 *
 * What runs inside may be left at any access to the guarded memory, as by longjmp: it must not hold a lock that is
 * taken inside, and what it allocated inside is lost. LMDB's reading calls fulfil that: a read-only transaction is not
 * changed by them, and the reader table is another map. A cursor that was left in the middle may only be closed.
 * A write transaction is not usable any more, not even to abort it: its cursors stand on the stack that is gone.
 *
 * SIGBUS is the only process-wide thing here. Faults outside any section, or outside the memory it names, go on to
 * whoever had the signal before.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Takes the signal, once in a process. Any thread. */
void samkv_guard_install(void);

/* Runs fn(arg); false when it was left because a page in [from, from + bytes) could not be read. Sections may be
 * nested. */
bool samkv_guard_run(const void *from, size_t bytes, void (*fn)(void *arg), void *arg);

/* Leaves this thread's innermost section, which then gives false: for a library's own notice that what it reads makes
 * no sense. Returns when there is no section. */
void samkv_guard_leave(void);
