#!/usr/bin/env python3
"""Every encoding of a GGUF file's tensors beside the Python package gguf's dequantisation, bit for bit.

    compare_dequant.py [--tool build/release/tests/dequant_tool] [--blocks 20000] [--seed 1]

Blocks are random bytes, so that every bit pattern of scales and numbers occurs; scales that are no finite numbers are
left out, since NumPy and a processor may give NaN other bits. Exit code 1 when any element differs.
"""
import argparse
import subprocess
import sys

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES

TYPES = (T.F32, T.F16, T.BF16, T.Q8_0, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K)


def reference(raw, kind):
    if kind == T.F32:
        return raw.view(np.float32)
    return quants.dequantize(raw, kind).ravel().astype(np.float32)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tool", default="build/release/tests/dequant_tool")
    parser.add_argument("--blocks", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rng, bad = np.random.default_rng(args.seed), 0
    for kind in TYPES:
        elements, size = GGML_QUANT_SIZES[kind]
        blocks = args.blocks * (256 // elements if elements < 32 else 1)
        raw = rng.integers(0, 256, blocks * size, dtype=np.uint8)
        with np.errstate(all="ignore"):
            want = reference(raw, kind)
        out = subprocess.run([args.tool, str(int(kind))], input=raw.tobytes(), stdout=subprocess.PIPE, check=True).stdout
        got = np.frombuffer(out, np.float32)
        finite = np.isfinite(want)
        differ = int((got[finite].view(np.uint32) != want[finite].view(np.uint32)).sum())
        lost = int(np.isfinite(got[~finite]).sum())
        bad += differ + lost
        print("%-5s %9d elements, %9d of them finite: %d differ, %d are finite only here" % (
            kind.name, len(want), finite.sum(), differ, lost))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
