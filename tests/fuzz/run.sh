#!/bin/bash
# usage: run.sh [--no-build DIR] [--work DIR] [--cores N] [--each N] SECONDS [TARGET...]
# Builds the fuzzers (preset fuzz: clang), runs every target (or those named) for SECONDS and prints a table. A target's
# processes share one corpus, which stays in the work folder and is where the next run goes on.
#   --no-build DIR  run those of a folder that bundle.sh has made; needs no compiler and no library
#   --work DIR      corpora, crashes, logs, times (default: build/fuzz/work, or DIR/work)
#   --cores N       processes at a time (default: all processors)
#   --each N        processes of a target (default: 1), so that a target gets N x SECONDS of processor time
# Exits with 1 when an input was found that a target does not stand.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
programs='' work='' cores=$(nproc) each=1
while [ $# -gt 0 ]; do
    case $1 in
    --no-build) programs=$(cd "$2" && pwd) && shift 2 ;;
    --work) work=$2 && shift 2 ;;
    --cores) cores=$2 && shift 2 ;;
    --each) each=$2 && shift 2 ;;
    *) break ;;
    esac
done
if ! [[ ${1:-} =~ ^[1-9][0-9]*$ ]]; then
    sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
seconds=$1
shift

if [ -z "$programs" ]; then
    root=$(cd "$here/../.." && pwd)
    (cd "$root" && cmake --preset fuzz >/dev/null && cmake --build build/fuzz --target fuzzers) >&2
    programs=$root/build/fuzz/fuzz
    corpus=$here/corpus dictionaries=$here
    work=${work:-$root/build/fuzz/work}
    "$programs/fuzz_seeds" "$work.seeds" >/dev/null
    seeds=$work.seeds
else
    corpus=$programs/corpus dictionaries=$programs seeds=$programs/seeds
    work=${work:-$programs/work}
fi
mkdir -p "$work"
work=$(cd "$work" && pwd)

targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
    for program in "$programs"/fuzz_*; do
        [ "${program##*/}" = fuzz_seeds ] || targets+=("${program##*/fuzz_}")
    done
fi

# run_one TARGET NUMBER: one process, whose log is TARGET/log.NUMBER
# shellcheck disable=SC2317 # xargs calls it
run_one() {
    local target=$1 folder=$work/$1 options=()
    [ ! -e "$dictionaries/$target.dict" ] || options+=("-dict=$dictionaries/$target.dict")
    [ ! -d "$corpus/$target" ] || options+=("$corpus/$target")
    export ASAN_OPTIONS=abort_on_error=0:allocator_may_return_null=1:detect_leaks=1
    local status=0 begun
    begun=$(date +%s)
    "$programs/fuzz_$target" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=3000 -malloc_limit_mb=1500 \
        -reload=10 -print_final_stats=1 -max_len=20000 -use_value_profile=0 -artifact_prefix="$folder/crashes/" \
        "$folder/corpus" "$seeds/$target" "${options[@]}" >"$folder/log.$2" 2>&1 || status=$?
    echo "$status" >"$folder/status.$2"
    echo $(($(date +%s) - begun)) >>"$folder/times"
}
export -f run_one
export programs corpus dictionaries seeds work seconds

for target in "${targets[@]}"; do
    [ -x "$programs/fuzz_$target" ] || { echo "run.sh: there is no target $target in $programs" >&2 && exit 2; }
    mkdir -p "$work/$target/corpus" "$work/$target/crashes"
    rm -f "$work/$target"/log.* "$work/$target"/status.*
done
tasks=()
for number in $(seq "$each"); do
    tasks+=("${targets[@]/%/ $number}")
done
# shellcheck disable=SC2016 # the inner shell expands them
printf '%s\n' "${tasks[@]}" | xargs -P "$cores" -L 1 bash -c 'run_one "$1" "$2"' run_one

printf '%-12s %14s %9s %9s %8s %12s %8s\n' target executions coverage features corpus 'seconds all' crashes
failed=0
for target in "${targets[@]}"; do
    folder=$work/$target
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$folder"/log.* | awk '{s += $1} END {print s + 0}')
    echo "$runs" >>"$folder/runs"
    read -r coverage features < <(grep -hoE 'cov: [0-9]+ ft: [0-9]+' "$folder"/log.* |
        awk '{c = $2 > c ? $2 : c; f = $4 > f ? $4 : f} END {print c + 0, f + 0}')
    crashes=$(find "$folder/crashes" -type f | wc -l)
    if [ "$crashes" -gt 0 ] || grep -qvx 0 "$folder"/status.*; then
        failed=1
    fi
    printf '%-12s %14s %9s %9s %8s %12s %8s\n' "$target" "$(awk '{s += $1} END {print s}' "$folder/runs")" "$coverage" \
        "$features" "$(find "$folder/corpus" -type f | wc -l)" "$(awk '{s += $1} END {print s}' "$folder/times")" "$crashes"
    grep -hE -m 3 '^SUMMARY|is broken:' "$folder"/log.* || true
done
exit $failed
