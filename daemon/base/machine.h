#pragma once
/* What the machine, or the container or service that this process runs in, has to offer. Any thread. */
#include <stdint.h>

/* Memory that this process may use: the machine's, or less where a control group (version 2) limits it. */
uint64_t samkv_machine_memory_bytes(void);

/* The same with other files than the system's: `self` as /proc/self/cgroup, `root` as /sys/fs/cgroup. */
uint64_t samkv_machine_limit_bytes(uint64_t memory_bytes, const char *self, const char *root);
