#!/bin/bash
# `samkvctl eval` on a machine with a GPU: starts a daemon of its own and evaluates until all is done or time is up.
#   tests/device/eval.sh FOLDER MODEL RESULTS SECONDS [OPTION...] QUESTIONS.jsonl...
# FOLDER is the `device` folder of a build made with -DSAMKV_CUDA=ON (target device_bundle). RESULTS is a folder for
# results.jsonl, report.html and summary.json; run again with the same arguments, it goes on where it ended. Nothing is
# cached between store and device, so that bytes read are what each method reads. PARALLEL: questions at a time (4).
set -uo pipefail
folder=$(cd "$1" && pwd) model=$2 results=$3 seconds=$4
shift 4
mkdir -p "$results"
work=$(mktemp -d)
# cuBLASLt comes with the toolkit, or with PyTorch's packages.
for libraries in /usr/local/cuda/lib64 /usr/local/cuda/targets/x86_64-linux/lib \
    "$(python3 -c 'import nvidia.cu13, os; print(os.path.join(list(nvidia.cu13.__path__)[0], "lib"))' 2>/dev/null)"; do
    [ -e "$libraries/libcublasLt.so.13" ] && break
done
export LD_LIBRARY_PATH=$folder:$libraries:${LD_LIBRARY_PATH:-} SAMKV_SOCKET=$work/socket
"$folder/samkvd" --store "$work/store" --socket "$work/socket" --device "${DEVICE:-cuda}" --dtype bf16 --model "m=$model" \
    --device-cache-bytes 1M --host-cache-bytes 0 --store-max-bytes "${STORE_BYTES:-30G}" >"$results/log.txt" 2>&1 &
daemon=$!
trap 'kill $daemon; wait $daemon; rm -rf "$work"' EXIT
for _ in $(seq 100); do
    "$folder/samkvctl" ping >/dev/null 2>&1 && break
    sleep 0.2
done
# In the foreground: else the signal comes twice, to the program and to its group, and twice means at once.
timeout --foreground --signal INT --kill-after 60 "$seconds" "$folder/samkvctl" eval --resume --out "$results/results.jsonl" \
    --html "$results/report.html" --json --parallel "${PARALLEL:-4}" "$@" >"$results/summary.json"
code=$?
wc -l "$results/results.jsonl"
tail -n 3 "$results/log.txt"
exit $code
