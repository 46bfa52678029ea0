#!/usr/bin/env python3
"""Prefill on the CPU beside llama.cpp and PyTorch: the same model, the same tokens, the same number of threads.

    bench_prefill.py --tool build/release/tests/logits_tool MODEL.gguf [--threads 1] [--tokens 128,512,2048,8192]
        [--rounds 3] [--engines ours-bf16,ours-f32,llama.cpp,torch-bf16,torch-f32]

Engines take turns, round by round, and the best of each counts. Printed are tokens a second of wall time and of
processor time times threads; with one thread the latter is hardly disturbed by what else the machine does. The share is
of the rate that a 2048³ product by the same kernels reaches in processor time ("peak"), counting 2 FLOPs for each weight
that is multiplied and 4 for each pair of query and key and element. MODEL.gguf may be quantised: llama.cpp computes with its
blocks (and 8-bit activations), PyTorch with what transformers makes of them, ours with the same values in f32 or bf16.
Needs llama-cpp-python and torch, transformers, gguf for their engines; engines that are missing are left out.
"""
import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import time

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent


def ids_of(count):
    return (np.arange(count, dtype=np.int64) * 7919 % 40000 + 100).astype(np.int32)


def pinned(threads):
    """Processors [0, threads) of those that this process may use."""
    return sorted(os.sched_getaffinity(0))[:threads]


class Ours:
    def __init__(self, args, *options):
        self.command = ["taskset", "-c", ",".join(map(str, pinned(args.threads))), args.tool, *options, args.model]

    def run(self, count):
        said = subprocess.run(self.command + [str(count)], input=ids_of(count).tobytes(), stdout=subprocess.DEVNULL,
                              stderr=subprocess.PIPE, check=True).stderr.decode()
        wall, spent = re.search(r"tokens ([0-9.]+) s, ([0-9.]+) s of", said).groups()
        return float(wall), float(spent)


def child(args, engine, counts):
    """Another engine in a process of its own: prints {count: [wall, processor seconds]} of one round as JSON."""
    if engine == "llama.cpp":
        run = llama_cpp_runner(args)
    else:
        run = torch_runner(args, engine)
    run(64)
    out = {}
    for count in counts:
        wall, spent = time.perf_counter(), time.process_time()
        run(count)
        out[count] = [time.perf_counter() - wall, time.process_time() - spent]
    print(json.dumps(out))


def llama_cpp_runner(args):
    sys.path.insert(0, str(HERE.parent / "integration"))
    from llama_context import F16, Context
    context = Context(args.model, F16, F16, flash=True, cells=max(args.tokens) + 64, threads=args.threads)

    def run(count):
        context.clear()
        context.decode(ids_of(count), 0)
    return run


def torch_runner(args, engine):
    import torch
    from transformers import AutoModelForCausalLM
    torch.set_num_threads(args.threads)
    path = pathlib.Path(args.model)
    dtype = torch.bfloat16 if engine.endswith("bf16") else torch.float32
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=dtype,
                                                 attn_implementation="sdpa").eval()

    def run(count):
        with torch.no_grad():
            model(torch.tensor(ids_of(count)[None].astype(np.int64)), use_cache=True, logits_to_keep=1)
    return run


class Other:
    def __init__(self, args, engine):
        self.args, self.engine = args, engine

    def run_all(self, counts):
        a = self.args
        said = subprocess.run(["taskset", "-c", ",".join(map(str, pinned(a.threads))), sys.executable, __file__, a.model,
                               "--tool", a.tool, "--threads", str(a.threads), "--tokens", ",".join(map(str, counts)),
                               "--child", self.engine], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if said.returncode:
            raise RuntimeError(said.stderr.strip().splitlines()[-1] if said.stderr.strip() else "no reason given")
        return {int(count): times for count, times in json.loads(said.stdout.splitlines()[-1]).items()}


def flops(tool, model, count):
    """(of products, of attention) of one prefill."""
    shape = json.loads(subprocess.run([tool, "--shape", model], stdout=subprocess.PIPE, check=True).stdout)
    per_token = 2 * shape["layers"] * (shape["hidden"] * (shape["heads"] + 2 * shape["kv_heads"]) * shape["head_dim"] +
                                       shape["hidden"] * shape["heads"] * shape["head_dim"] +
                                       3 * shape["hidden"] * shape["ffn"])
    pairs = count * (count + 1) / 2
    return per_token * count + 4 * pairs * shape["heads"] * shape["head_dim"] * shape["layers"]


def peak(args, *options):
    """GFLOP/s of processor time of a 2048³ product by the same operation, times threads."""
    cpus = ",".join(map(str, pinned(args.threads)))
    said = subprocess.run(["taskset", "-c", cpus, args.tool, *options, "--peak"], stdout=subprocess.PIPE, check=True)
    return float(said.stdout) * args.threads


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tool", required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=lambda text: [int(n) for n in text.split(",")], default=[128, 512, 2048, 8192])
    parser.add_argument("--engines", default="ours-bf16,ours-f32,llama.cpp,torch-bf16,torch-f32")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args, args.child, args.tokens)
    options = {"ours-bf16": ["--bf16"], "ours-f32": []}
    best, peaks, missing = {}, {}, {}
    for _ in range(args.rounds):
        for engine in args.engines.split(","):
            try:
                if engine in options:
                    ours = Ours(args, *options[engine])
                    times = {count: ours.run(count) for count in args.tokens}
                    peaks[engine] = max(peaks.get(engine, 0), peak(args, *options[engine]))
                elif engine not in missing:
                    times = Other(args, engine).run_all(args.tokens)
                else:
                    continue
            except (RuntimeError, subprocess.CalledProcessError) as error:
                missing[engine] = str(error)
                continue
            for count, (wall, spent) in times.items():
                known = best.setdefault((engine, count), [wall, spent])
                best[engine, count] = [min(known[0], wall), min(known[1], spent)]
    print("%d thread(s), load average %.1f" % (args.threads, os.getloadavg()[0]))
    for engine, rate in peaks.items():
        print("peak %s: %.0f GFLOP/s" % (engine, rate))
    for engine, why in missing.items():
        print("no %s: %s" % (engine, why))
    print("%-11s %7s %14s %14s %8s" % ("engine", "tokens", "tokens/s wall", "of processors", "share"))
    for (engine, count), (wall, spent) in best.items():
        rate = count / spent * args.threads
        share = "%.0f %%" % (100 * flops(args.tool, args.model, count) * rate / count / 1e9 /
                             peaks[engine]) if engine in peaks else ""
        print("%-11s %7d %14.0f %14.0f %8s" % (engine, count, count / wall, rate, share))
    return 0


if __name__ == "__main__":
    sys.exit(main())
