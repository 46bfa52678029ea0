#include "daemon/base/machine.h"

#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* memory.max of one group: a number, or "max". */
static uint64_t group_limit(const char *root, const char *group, uint64_t otherwise)
{
    char path[PATH_MAX];
    int n = snprintf(path, sizeof path, "%s%s/memory.max", root, group);
    FILE *f = n > 0 && (size_t)n < sizeof path ? fopen(path, "re") : NULL;
    unsigned long long bytes = 0;
    bool limited = f && fscanf(f, "%llu", &bytes) == 1;
    if (f)
        fclose(f);
    return limited && bytes < otherwise ? bytes : otherwise;
}

uint64_t samkv_machine_limit_bytes(uint64_t memory_bytes, const char *self, const char *root)
{
    char line[PATH_MAX] = "";
    FILE *f = fopen(self, "re");
    while (f && fgets(line, sizeof line, f) && strncmp(line, "0::", 3) != 0)
        line[0] = '\0';
    if (f)
        fclose(f);
    if (strncmp(line, "0::/", 4) != 0)
        return memory_bytes;
    char *group = line + 3, *end;
    group[strcspn(group, "\n")] = '\0';
    /* A limit on any group above counts too; inside a container the root stands for its own. */
    for (;;) {
        memory_bytes = group_limit(root, group, memory_bytes);
        end = strrchr(group, '/');
        if (!end)
            return memory_bytes;
        *end = '\0';
    }
}

uint64_t samkv_machine_memory_bytes(void)
{
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    uint64_t bytes = pages > 0 && page > 0 ? (uint64_t)pages * (uint64_t)page : (uint64_t)1 << 30;
    return samkv_machine_limit_bytes(bytes, "/proc/self/cgroup", "/sys/fs/cgroup");
}
