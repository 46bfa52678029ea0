#!/bin/sh
# usage: check_shell.sh ROOT. Every shell script of the project passes shellcheck.
set -eu
cd "$1"
shellcheck bootstrap .ci/run tests/check/*.sh tests/packages/*.sh tests/fuzz/*.sh systemd/deb/p*
shellcheck -s bash client/completion/samkvctl.bash
