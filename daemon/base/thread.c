#include "daemon/base/thread.h"

#include <signal.h>
#include <stdio.h>

enum samkv_status samkv_thread_start(pthread_t *out, const char *name, void *(*fn)(void *arg), void *arg)
{
    sigset_t all, before;
    sigfillset(&all);
    /* Faults are the thread's own: blocked, they would end the process without a word. */
    static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP};
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++)
        sigdelset(&all, faults[i]);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    int rc = pthread_create(out, NULL, fn, arg);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc != 0)
        return SAMKV_NO_MEMORY;
    char shown[16];
    snprintf(shown, sizeof shown, "%.15s", name);
    pthread_setname_np(*out, shown);
    return SAMKV_OK;
}
