#include "daemon/store/guard.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>

struct section {
    sigjmp_buf leave;
    uintptr_t from;
    size_t bytes;
    struct section *outer;
};

/* A signal's handler finds its thread's section, and its predecessor, nowhere else. */
static _Thread_local struct section *volatile innermost;
static struct sigaction before;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static _Noreturn void leave(struct section *s)
{
    innermost = s->outer;
    siglongjmp(s->leave, 1);
}

static void on_bus_error(int signal_number, siginfo_t *info, void *context)
{
    uintptr_t at = (uintptr_t)info->si_addr;
    for (struct section *s = innermost; s && info->si_code > 0; s = s->outer) /* > 0: from the kernel, not from kill */
        if (at - s->from < s->bytes)
            leave(s);
    if (before.sa_flags & SA_SIGINFO)
        before.sa_sigaction(signal_number, info, context);
    else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN)
        before.sa_handler(signal_number);
    else if (signal(signal_number, SIG_DFL) == SIG_ERR || info->si_code <= 0)
        raise(signal_number); /* a fault is tried again by itself, and ends the process */
}

static void install(void)
{
    /* No mask is saved or restored on the way out: the signal is never blocked. */
    struct sigaction ours = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK};
    sigemptyset(&ours.sa_mask);
    sigaction(SIGBUS, &ours, &before);
}

void samkv_guard_install(void)
{
    pthread_once(&once, install);
}

bool samkv_guard_run(const void *from, size_t bytes, void (*fn)(void *arg), void *arg)
{
    struct section here = {.from = (uintptr_t)from, .bytes = bytes, .outer = innermost};
    if (sigsetjmp(here.leave, 0))
        return false;
    innermost = &here;
    fn(arg);
    innermost = here.outer;
    return true;
}

void samkv_guard_leave(void)
{
    if (innermost)
        leave(innermost);
}
