#include "tests/fuzz/heap.h"

#include <stdatomic.h>

/* From sanitizer/allocator_interface.h, which not every compiler installs. */
extern int __sanitizer_install_malloc_and_free_hooks(void (*allocated)(const volatile void *, size_t),
                                                     void (*freed)(const volatile void *)) __attribute__((weak));
extern size_t __sanitizer_get_allocated_size(const volatile void *) __attribute__((weak));

static _Atomic long long held, peak;

static void on_malloc(const volatile void *at, size_t bytes)
{
    (void)at;
    long long now = atomic_fetch_add(&held, (long long)bytes) + (long long)bytes, most = atomic_load(&peak);
    while (now > most && !atomic_compare_exchange_weak(&peak, &most, now))
        ;
}

static void on_free(const volatile void *at)
{
    if (at)
        atomic_fetch_sub(&held, (long long)__sanitizer_get_allocated_size(at));
}

bool heap_is_counted(void)
{
    return __sanitizer_install_malloc_and_free_hooks && __sanitizer_get_allocated_size;
}

void heap_begin(void)
{
    static atomic_bool installed;
    if (heap_is_counted() && !atomic_exchange(&installed, true))
        __sanitizer_install_malloc_and_free_hooks(on_malloc, on_free);
    atomic_store(&held, 0);
    atomic_store(&peak, 0);
}

size_t heap_peak(void)
{
    return (size_t)atomic_load(&peak);
}
