#pragma once
/* The part of samkvctl(1) that the tables know: every command with its options, in the language of man pages. */
#include <stdio.h>

#include "client/ctl/ctl.h"

/* commands: count of them. options: the tables that all commands share, ending with NULL. */
void ctl_man_print(const struct ctl_command *const *commands, size_t count, const struct ctl_option *const *options,
                   FILE *out);
