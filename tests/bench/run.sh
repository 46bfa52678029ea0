#!/bin/sh
# The main job's figures in one table: ingest, fetch, full prefill, ping, memory at rest.
# usage: run.sh BIN-DIRECTORY MODEL
set -eu
[ $# -eq 2 ] || { echo "usage: run.sh BIN-DIRECTORY MODEL" >&2; exit 2; }
bin=$1
model=$2
data=$(CDPATH='' cd -- "$(dirname -- "$0")/../data" && pwd)
work=$(mktemp -d)
daemon=
stop() {
    if [ -n "$daemon" ]; then
        kill "$daemon" 2>/dev/null || true
        wait "$daemon" 2>/dev/null || true
    fi
    rm -rf -- "$work"
}
trap stop EXIT
trap 'exit 130' INT TERM

"$bin/bench_fetch" "bench=$model" "$data/bench-questions.jsonl" 2>"$work/log" || {
    cat "$work/log" >&2
    exit 1
}

"$bin/samkvd" --store "$work/store" --socket "$work/socket" --model "bench=$model" --log-level warning &
daemon=$!
export SAMKV_SOCKET="$work/socket"
tries=0
until "$bin/samkvctl" ping >/dev/null 2>&1; do
    tries=$((tries + 1))
    [ $tries -lt 600 ] || { echo "samkvd did not start" >&2; exit 1; }
    sleep 0.1
done
memory() { awk '/^RssAnon/ { printf "%.0f MB", $2 / 1024 }' "/proc/$daemon/status"; }
weights=$("$bin/samkvctl" status --json | sed -n 's/.*"weight_bytes": *\([0-9]*\).*/\1/p' | awk '{ printf "%.0f MB", $1 / 1048576 }')
echo "memory at rest, weights included   $(memory)   weights $weights"
"$bin/samkvctl" ingest "$data/corpus" >/dev/null 2>&1
echo "  after an ingest                  $(memory)"
echo "ping  $("$bin/samkvctl" ping --count 5000)"
