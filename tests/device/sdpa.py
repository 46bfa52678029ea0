#!/usr/bin/env python3
"""PyTorch's attention and matrix products at the shapes of bench_cuda_ops, one JSON object a line."""
import json

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

HEADS, KV_HEADS, DIM, HIDDEN, FFN = 32, 8, 128, 4096, 14336


def burst(run, turns):
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(turns):
        run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / turns * 1e-3


def seconds(run):
    """As bench_cuda_ops measures: seven times 20 ms or more, so that both meet the chip at the same temperature."""
    burst(run, 3)
    turns = int(0.02 / burst(run, 3)) + 1
    return sorted(burst(run, turns) for _ in range(7))[3]


def report(op, n, keys, t, operations):
    print(json.dumps(dict(op=op, n=n, keys=keys, us=round(t * 1e6, 2), tflop_s=round(operations / t * 1e-12, 1))), flush=True)


def attention(n):
    q, k, v = (torch.randn(1, h, n, DIM, device="cuda", dtype=torch.bfloat16) for h in (HEADS, KV_HEADS, KV_HEADS))
    backends = dict(default=None, flash=SDPBackend.FLASH_ATTENTION, cudnn=SDPBackend.CUDNN_ATTENTION)
    for name, backend in backends.items():
        def run():
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        try:
            if backend is None:
                t = seconds(run)
            else:
                with sdpa_kernel(backend):
                    t = seconds(run)
            report("sdpa " + name, n, n, t, 2 * n * (n + 1) * DIM * HEADS)
        except RuntimeError as e:
            print(json.dumps(dict(op="sdpa " + name, n=n, error=str(e)[:200])), flush=True)


def product(name, n, i, o):
    x, w = torch.randn(n, i, device="cuda", dtype=torch.bfloat16), torch.randn(o, i, device="cuda", dtype=torch.bfloat16)
    report("torch " + name, n, 0, seconds(lambda: F.linear(x, w)), 2 * n * i * o)


for n in (1024, 2458, 16384):
    attention(n)
for n in (2458, 16384):
    for name, i, o in (("qkv", HIDDEN, HIDDEN + 2 * KV_HEADS * DIM), ("o", HIDDEN, HIDDEN), ("gate_up", HIDDEN, 2 * FFN), ("down", FFN, HIDDEN)):
        product(name, n, i, o)
