#!/bin/bash
# Runs the CUDA backend's tests, sanitizers and benchmarks on a machine with a GPU.
#   tests/device/run.sh FOLDER [STEP...]
# FOLDER is the `device` folder of a build made with -DSAMKV_CUDA=ON (target device_bundle). Steps: test bench torch
# memcheck racecheck initcheck; without any, all of them. results.json and logs.txt go to $OUT (or FOLDER/results);
# the last lines are a short table.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(cd "$1" && pwd)
shift
steps=" ${*:-test bench torch memcheck racecheck initcheck} "
results=${OUT:-$folder/results}
out=$folder/raw
rm -rf "$out"
mkdir -p "$out" "$results"
: >"$out/steps"

# cuBLASLt comes with the toolkit, or with PyTorch's packages. PyTorch itself finds its own.
for libraries in /usr/local/cuda/lib64 /usr/local/cuda/targets/x86_64-linux/lib \
    "$(python3 -c 'import nvidia.cu13, os; print(os.path.join(list(nvidia.cu13.__path__)[0], "lib"))' 2>/dev/null)"; do
    [ -e "$libraries/libcublasLt.so.13" ] && break
done
ours=(env "LD_LIBRARY_PATH=$folder:$libraries:${LD_LIBRARY_PATH:-}")
PATH=$PATH:/usr/local/cuda/bin
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
echo "cuBLASLt: $libraries"

step() { # NAME SECONDS LOG COMMAND...
    local name=$1 seconds=$2 log=$3 start=$SECONDS result
    shift 3
    timeout "$seconds" "$@" >"$out/$log" 2>"$out/$log.err"
    result=$?
    echo "$name $result" >>"$out/steps"
    echo "--- $name: exit $result, $((SECONDS - start)) s"
    if [ $result -ne 0 ]; then
        grep -m 40 -E "FAIL|ERROR|========= |rror" "$out/$log" "$out/$log.err" | cut -c1-300 | head -40
    fi
    tail -n 2 "$out/$log.err" | cut -c1-300
}

if [[ $steps == *" test "* ]]; then
    step test 120 test.log "${ours[@]}" "$folder/test_cuda_ops" "$folder/samkv_cuda.so"
    tail -n 2 "$out/test.log"
    step test-ampere 120 test-ampere.log "${ours[@]}" SAMKV_CUDA_NO_HOPPER=1 "$folder/test_cuda_ops" \
        "$folder/samkv_cuda.so" bf16
    tail -n 1 "$out/test-ampere.log"
fi
if [[ $steps == *" bench "* ]]; then
    step bench 150 bench.jsonl "${ours[@]}" "$folder/bench_cuda_ops" "$folder/samkv_cuda.so" bf16
fi
if [[ $steps == *" torch "* ]]; then
    step torch 150 torch.jsonl python3 "$here/sdpa.py"
fi
# Kernels of cuBLASLt are not ours to check, and much slower under the tools.
only_ours=(--kernel-name-exclude kernel_substring=cutlass --kernel-name-exclude kernel_substring=cublas
    --kernel-name-exclude kernel_substring=gemm --kernel-name-exclude kernel_substring=nvjet)
said=$(compute-sanitizer "${only_ours[@]}" true 2>&1)
if grep -qiE "unrecogni|invalid|usage" <<<"$said"; then
    only_ours=()
fi
for tool in memcheck racecheck initcheck; do
    if [[ $steps == *" $tool "* ]]; then
        quiet=()
        without=(shared lost) # they have processes of their own, one of them to fail
        if [ $tool = memcheck ]; then # the tests ask for too much memory on purpose
            quiet=(--report-api-errors no)
        elif [ $tool = racecheck ]; then # the tool itself breaks off in a kernel of cuBLASLt
            without+=(matmul)
        fi
        step $tool 150 $tool.log "${ours[@]}" compute-sanitizer --tool $tool "${quiet[@]}" --error-exitcode 9 --print-limit 20 \
            "${only_ours[@]}" "$folder/test_cuda_ops" "$folder/samkv_cuda.so" bf16 "${without[@]}"
        tail -n 2 "$out/$tool.log"
    fi
done
for log in "$out"/*.log* "$out"/*.err; do
    [ -s "$log" ] && { echo "=== ${log##*/}"; cat "$log"; }
done >"$results/logs.txt"
python3 "$here/table.py" "$out" "$results/results.json"
! grep -qv ' 0$' "$out/steps"
