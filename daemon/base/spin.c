#include "daemon/base/spin.h"

#include <limits.h>
#include <stdlib.h>
#include <unistd.h>

void samkv_spin_briefly(char **argv)
{
    char path[PATH_MAX];
    if (getenv("GOMP_SPINCOUNT") || getenv("OMP_WAIT_POLICY"))
        return;
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
    if (length <= 0)
        return;
    path[length] = '\0';
    if (!setenv("GOMP_SPINCOUNT", "1000", 1))
        execv(path,
              argv); /* by its real path, so that the process keeps its name; if this fails, all works as before */
}
