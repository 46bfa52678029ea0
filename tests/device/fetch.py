#!/usr/bin/env python3
"""Fetches of an 8B-shaped model on a GPU beside a full prefill by Hugging Face transformers, in one run.

usage: fetch.py BIN RESULTS.json [--steps hf,ingest,hot,host,cold,documents,ratios,clients,alternatives]
                [--layers 32] [--documents 64] [--folder /dev/shm]

BIN: samkvd, samkvctl, bench_hand_off and bench_blend with their libraries. The model has the shape of Llama-3.1-8B and
random weights; its files are made in --folder (16 GB). Every measurement is a line of JSON in RESULTS (tests/bench/page.py
makes a page with plots of them); the last lines are a short table.
Needs PyTorch, and transformers for `hf`.
"""
import argparse
import json
import os
import pathlib
import random
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import time

SHAPE = dict(hidden=4096, heads=32, kv_heads=8, head_dim=128, ffn=14336, vocab=128256, theta=500000.0)
DOCUMENT_TOKENS, QUERY_TOKENS, RATIO = 1024, 64, 0.15
START_S = 150
results = []


def note(**line):
    results.append(line)
    print(json.dumps(line), flush=True)


def config(layers):
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": SHAPE["hidden"],
            "intermediate_size": SHAPE["ffn"], "num_hidden_layers": layers, "num_attention_heads": SHAPE["heads"],
            "num_key_value_heads": SHAPE["kv_heads"], "head_dim": SHAPE["head_dim"], "vocab_size": SHAPE["vocab"],
            "rms_norm_eps": 1e-5, "rope_theta": SHAPE["theta"], "max_position_embeddings": 131072, "hidden_act": "silu",
            "tie_word_embeddings": False, "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2}


def layer_parameters():
    q, kv = SHAPE["heads"] * SHAPE["head_dim"], SHAPE["kv_heads"] * SHAPE["head_dim"]
    return SHAPE["hidden"] * (2 * q + 2 * kv + 3 * SHAPE["ffn"])


def prefill_tflop(tokens, layers, contexts):
    """Products with the layers' weights, and causal attention within each context. No embedding, no logits."""
    attention = sum(2 * n * n * SHAPE["heads"] * SHAPE["head_dim"] for n in contexts)
    return layers * (2 * tokens * layer_parameters() + attention) * 1e-12


# ------------------------------------------------------------------ the model

def make_model(folder, layers):
    import torch
    folder.mkdir(parents=True, exist_ok=True)
    h, f, d = SHAPE["hidden"], SHAPE["ffn"], SHAPE["head_dim"]
    q, kv = SHAPE["heads"] * d, SHAPE["kv_heads"] * d
    tensors = [("model.embed_tokens.weight", (SHAPE["vocab"], h)), ("lm_head.weight", (SHAPE["vocab"], h)),
               ("model.norm.weight", (h,))]
    for l in range(layers):
        p = "model.layers.%d." % l
        tensors += [(p + "self_attn.q_proj.weight", (q, h)), (p + "self_attn.k_proj.weight", (kv, h)),
                    (p + "self_attn.v_proj.weight", (kv, h)), (p + "self_attn.o_proj.weight", (h, q)),
                    (p + "mlp.gate_proj.weight", (f, h)), (p + "mlp.up_proj.weight", (f, h)),
                    (p + "mlp.down_proj.weight", (h, f)), (p + "input_layernorm.weight", (h,)),
                    (p + "post_attention_layernorm.weight", (h,))]
    header, at = {}, 0
    for name, shape in tensors:
        size = 2 * int(torch.Size(shape).numel())
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    torch.manual_seed(1)
    with open(folder / "model.safetensors", "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name, shape in tensors:
            values = torch.ones(shape) if len(shape) == 1 else torch.randn(shape, device="cuda") * (1.2 / shape[1]**0.5)
            out.write(memoryview(values.to(torch.bfloat16).cpu().view(torch.int16).numpy()).cast("B"))
    torch.cuda.empty_cache()
    (folder / "config.json").write_text(json.dumps(config(layers)))


# ------------------------------------------------------------------ Hugging Face

def median_ms(run, repeats=5):
    import torch
    times = []
    for i in range(repeats + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times[1:])


def describe(o):
    """What the floors of the other lines need: the device, the model's shape, and the rate of copies from pinned memory."""
    import torch
    properties = torch.cuda.get_device_properties(0)
    note(step="setup", device=properties.name, memory_gb=round(properties.total_memory * 1e-9, 1), torch=torch.__version__,
         layers=o.layers, shape=SHAPE, document_tokens=DOCUMENT_TOKENS, query_tokens=QUERY_TOKENS, ratio=RATIO)
    size = 256 << 20
    host = torch.zeros(size, dtype=torch.uint8).pin_memory()
    device = torch.zeros(size, dtype=torch.uint8, device="cuda")
    for what, to, source in (("host to device", device, host), ("device to host", host, device)):
        ms = median_ms(lambda: to.copy_(source, non_blocking=True))
        note(step="copy", what=what, bytes=size, ms=round(ms, 3), gb_s=round(size / ms * 1e-6, 1))
    del host, device
    torch.cuda.empty_cache()


def prompt(model, tokens, layers, label, repeats):
    import torch
    try:
        ids = torch.randint(3, SHAPE["vocab"], (1, tokens), device="cuda")
        ms = median_ms(lambda: model(ids, use_cache=True, logits_to_keep=1), repeats)
        note(step="hf", what=label, tokens=tokens, repeats=repeats, ms=round(ms, 2),
             tflop_s=round(prefill_tflop(tokens, layers, [tokens]) / ms * 1e3, 1))
    except torch.cuda.OutOfMemoryError as e:
        note(step="hf", what=label, tokens=tokens, error=str(e)[:200])


def hugging_face(layers, documents):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    settings = {k: v for k, v in config(layers).items() if k not in ("architectures", "model_type", "torch_dtype")}
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(LlamaConfig(**settings, attn_implementation="sdpa")).eval()
    torch.set_default_dtype(torch.float32)
    with torch.inference_mode():
        prompt(model, 16 * DOCUMENT_TOKENS + QUERY_TOKENS, layers, "prompt", 5)
        prompt(model, DOCUMENT_TOKENS, layers, "document", 5)
        for n in (4, 8, 32, 64):  # 16: above
            if n <= documents:
                prompt(model, n * DOCUMENT_TOKENS + QUERY_TOKENS, layers, "prompt", 5 if n < 16 else 1)
        x = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
        ms = median_ms(lambda: [x @ x for _ in range(20)]) / 20
        note(step="hf", what="product 8192^3", ms=round(ms, 3), tflop_s=round(2 * 8192**3 / ms * 1e-9, 1))
    del model
    torch.cuda.empty_cache()


# ------------------------------------------------------------------ the daemon

def cublas_folder():
    """Where the toolkit's or PyTorch's cuBLASLt is."""
    for folder in ("/usr/local/cuda/lib64", "/usr/local/cuda/targets/x86_64-linux/lib"):
        if os.path.exists(folder + "/libcublasLt.so.13"):
            return folder
    import nvidia.cu13
    return os.path.join(list(nvidia.cu13.__path__)[0], "lib")


def environment(o):
    libraries = [str(o.bin), cublas_folder(), os.environ.get("LD_LIBRARY_PATH", "")]
    return dict(os.environ, LD_LIBRARY_PATH=":".join(libraries))


class Daemon:
    def __init__(self, o, *arguments):
        self.o, self.socket, self.environment = o, o.folder / "samkv-bench.sock", environment(o)
        command = [str(o.bin / "samkvd"), "--store", str(o.store), "--socket", str(self.socket), "--model",
                   "m=%s" % o.model, "--device", "cuda", "--dtype", "bf16", *arguments]
        self.log = open(o.folder / "samkv-bench.log", "ab")
        start = time.perf_counter()
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
                                        env=self.environment)
        while self.ctl("ping", check=False).returncode:
            if self.process.poll() is not None or time.perf_counter() - start > START_S:
                raise SystemExit("samkvd did not start:\n" + (o.folder / "samkv-bench.log").read_text()[-3000:])
            time.sleep(0.05)
        note(step="start", seconds=round(time.perf_counter() - start, 1))

    def ctl(self, *arguments, check=True, **more):
        return subprocess.run([str(self.o.bin / "samkvctl"), "--socket", str(self.socket), *arguments], check=check,
                              capture_output=True, text=True, env=self.environment, **more)

    def bench(self, label, **options):
        arguments = [str(self.o.bin / "bench_hand_off"), "--socket", str(self.socket), "--vocab", str(SHAPE["vocab"]),
                     "--label", label]
        for name, value in options.items():
            arguments += ["--" + name.replace("_", "-")] + ([] if value is True else [str(value)])
        said = subprocess.run(arguments, capture_output=True, text=True, env=self.environment)
        if said.returncode:
            note(step=label, error=said.stderr.strip()[-300:], **{k: str(v) for k, v in options.items()})
            return None
        line = json.loads(said.stdout)
        note(step=label, **line)
        return line

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        self.log.close()


def write_documents(path, count, seed):
    rng = random.Random(seed)
    with open(path, "w") as out:
        for i in range(count):
            tokens = [rng.randrange(3, SHAPE["vocab"]) for _ in range(DOCUMENT_TOKENS)]
            out.write(json.dumps({"id": "d%d" % i, "tokens": tokens}) + "\n")


def ingest(daemon, o):
    path = o.folder / "samkv-bench.jsonl"
    for collection, count, seed in (("warm-up", min(16, o.documents), 1), ("default", o.documents, 7)):
        write_documents(path, count, seed)
        start = time.perf_counter()
        said = json.loads(daemon.ctl("ingest", str(path), "--collection", collection, "--json").stdout)
        seconds = time.perf_counter() - start
        tflop = prefill_tflop(said["tokens"], o.layers, [DOCUMENT_TOKENS] * count)
        line = dict(step="ingest", collection=collection, documents=count, tokens=said["tokens"],
                    seconds=round(seconds, 2), tokens_s=round(said["tokens"] / seconds),
                    gb_stored=round(said["bytes_stored"] * 1e-9, 2), gb_raw=round(said["bytes_raw"] * 1e-9, 2))
        if said.get("prefill_ms"):
            line.update(prefill_ms=round(said["prefill_ms"], 1), tflop_s=round(tflop / said["prefill_ms"] * 1e3, 1))
        note(**line)
        if said["failed"]:
            raise SystemExit("ingest failed")


def drop_command(o):
    """Shell: throws the store's file out of the page cache, but for what is mapped. Needs no privileges."""
    return "sync; dd if=%s/data.mdb iflag=nocache count=0 status=none" % o.store


def disk(o):
    """The disk's own rate: the store's file, read past the page cache."""
    subprocess.run(drop_command(o), shell=True, check=True)
    file, size = o.store / "data.mdb", 1 << 30
    start = time.perf_counter()
    subprocess.run(["dd", "if=%s" % file, "of=/dev/null", "bs=4M", "count=%d" % (size >> 22), "iflag=direct", "status=none"],
                   check=True)
    seconds = time.perf_counter() - start
    note(step="disk", gb_s=round(min(size, file.stat().st_size) / seconds * 1e-9, 2))


def mb_read(text):
    """What a process has caused to be read from a disk, page faults included, by its /proc file; None if that says nothing."""
    for line in text.splitlines():
        if line.startswith("read_bytes:"):
            return int(line.split(":")[1]) * 1e-6
    return None


def cold(o, label, **options):
    """One fetch by a daemon and a client that have served other documents: all is warm in them but these."""
    daemon = Daemon(o, "--device-cache-bytes", "1M", "--host-cache-bytes", "0")
    counters, before = pathlib.Path("/proc/%d/io" % daemon.process.pid), o.folder / "samkv-bench-io"
    try:
        line = daemon.bench(label, fetches=1, warm_up=2, warm_collection="warm-up",
                            between="cat %s >%s; %s" % (counters, before, drop_command(o)), **options)
        if line and mb_read(counters.read_text()) is not None:
            results[-1]["mb_disk"] = round(mb_read(counters.read_text()) - mb_read(before.read_text()), 2)
    finally:
        daemon.stop()


def blend(o):
    """The daemon must not have the store."""
    said = subprocess.run([str(o.bin / "bench_blend"), "m=%s" % o.model, str(o.store), "d", "16", str(QUERY_TOKENS),
                           str(RATIO)], capture_output=True, text=True, env=environment(o))
    if said.returncode:
        note(step="cacheblend", error=said.stderr.strip()[-300:])
    else:
        note(step="cacheblend", **json.loads(said.stdout))


# ------------------------------------------------------------------ the steps

def run_steps(o):
    steps = set(o.steps.split(","))
    describe(o)
    if "hf" in steps:
        hugging_face(o.layers, o.hf_documents)
    make_model(o.model, o.layers)
    head = dict(ratio=RATIO, query=QUERY_TOKENS, fixed=True)
    daemon = Daemon(o)
    try:
        ingest(daemon, o)
        for placement in o.placements.split(","):
            if "hot" in steps:
                daemon.bench("hot", placement=placement, fetches=15, warm_up=3, **head)
                daemon.bench("hot dynamic", placement=placement, fetches=9, warm_up=2, ratio=RATIO, query=QUERY_TOKENS)
                daemon.bench("hot cosine", placement=placement, fetches=9, warm_up=2, update="cosine", **head)
                daemon.bench("hot no query", placement=placement, fetches=9, warm_up=2, without_query=True, **head)
        placement = o.placements.split(",")[0]
        if "documents" in steps:
            for n in (4, 8, 16, 32, 64):
                if n <= o.documents:
                    daemon.bench("documents", placement=placement, documents=n, fetches=5, warm_up=2, **head)
        if "ratios" in steps:
            for ratio in (0.05, 0.1, 0.15, 0.25, 0.5, 1.0):
                daemon.bench("ratio", placement=placement, fetches=5, warm_up=2, ratio=ratio, query=QUERY_TOKENS, fixed=True)
        if "clients" in steps:
            for n in (1, 4, 16):
                daemon.bench("clients", placement=placement, clients=n, fetches=max(4, 24 // n), warm_up=2, **head)
        if "alternatives" in steps:
            daemon.bench("full prefill", placement=placement, fetches=3, warm_up=1, ratio=1.0, query=QUERY_TOKENS, fixed=True)
            daemon.bench("naive reuse", placement=placement, fetches=5, warm_up=1, ratio=1.0, query=QUERY_TOKENS,
                         no_recompute=True, fixed=True)
    finally:
        daemon.stop()
    if "host" in steps:
        daemon = Daemon(o, "--device-cache-bytes", "1M", "--host-cache-bytes", "0")
        try:
            daemon.bench("warm in host memory", placement=placement, fetches=9, warm_up=3, **head)
            daemon.bench("warm in host memory, cosine", placement=placement, fetches=9, warm_up=2, update="cosine", **head)
        finally:
            daemon.stop()
    if "alternatives" in steps:
        blend(o)
    if "cold" in steps:
        disk(o)
        for i in range(3):
            cold(o, "cold", placement=placement, **head)
        cold(o, "cold, cosine", placement=placement, update="cosine", **head)


def table():
    print("\n%-30s %4s %5s %3s %8s %8s %7s %7s %7s %7s %7s %7s %8s" % (
        "what", "docs", "ratio", "cl", "ms", "p90", "index", "query", "select", "read", "recomp", "reply", "fetch/s"))
    for r in results:
        if "daemon" in r:
            print("%-30s %4d %5.2f %3d %8.2f %8.2f %7.2f %7.2f %7.2f %7.2f %7.2f %7.2f %8.2f" % (
                r["step"] + " " + r["placement"], r["documents"], r["ratio"], r["clients"], r["ms"], r["p90"], r["index"],
                r["query_ms"], r["select"], r["read"], r["recompute"], r["reply"], r["fetches_s"]))
        elif r["step"] in ("setup", "copy", "disk", "hf", "ingest", "cacheblend", "start") or "error" in r:
            print(json.dumps(r))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bin", type=pathlib.Path)
    parser.add_argument("results", type=pathlib.Path)
    parser.add_argument("--steps", default="hf,hot,host,cold,documents,ratios,clients,alternatives")
    parser.add_argument("--placements", default="device,host")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--documents", type=int, default=64)
    parser.add_argument("--hf-documents", type=int, default=64)
    parser.add_argument("--folder", type=pathlib.Path, default="/dev/shm")
    parser.add_argument("--store", type=pathlib.Path, default="/tmp/samkv-bench-store")
    o = parser.parse_args()
    o.model = o.folder / "samkv-bench-model"
    shutil.rmtree(o.store, ignore_errors=True)
    try:
        run_steps(o)
    finally:
        o.results.write_text("\n".join(map(json.dumps, results)) + "\n")
        table()
        shutil.rmtree(o.store, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
