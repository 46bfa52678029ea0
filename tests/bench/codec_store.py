#!/usr/bin/env python3
"""Makes a store for bench_codec: real text through a model, K and V as the daemon stores them.

    codec_store.py MODEL STORE FILE.jsonl.. [--bin DIR] [--device cpu] [--tokens N] [--seed N]
                   [--dtype bf16]

Takes lines of the files in an order that --seed gives, either {"id", "text"} or {"id", "documents": [{"text"}, ..]},
until some N tokens are in STORE's collection `default`; ids begin with the file's name. A store that is there is added to. Then:
build/release/bin/bench_codec STORE default
"""
import argparse
import json
import pathlib
import random
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))
from harness import BIN, Daemon  # noqa: E402

BATCH = 200
CHUNK_TOKENS = 4096


def read_documents(paths, seed):
    documents = []
    for path in paths:
        for line in path.read_text().splitlines():
            entry = json.loads(line) if line.strip() else {}
            parts = entry.get("documents", [entry])
            documents += [("%s/%s/%d" % (path.stem, entry["id"], i), part["text"])
                          for i, part in enumerate(parts) if part.get("text")]
    random.Random(seed).shuffle(documents)
    return documents


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("store", type=pathlib.Path)
    parser.add_argument("files", type=pathlib.Path, nargs="+")
    parser.add_argument("--bin", type=pathlib.Path, default=BIN)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dtype", default="bf16")
    args = parser.parse_args()
    documents = read_documents(args.files, args.seed)
    daemon = Daemon({"m": args.model}, dtype=args.dtype, binaries=args.bin, device=args.device)
    daemon.store = args.store.resolve()
    with daemon:
        tokens = 0
        for first in range(0, len(documents), BATCH):
            lines = [json.dumps({"id": name, "text": text}) + "\n" for name, text in documents[first:first + BATCH]]
            daemon.json("ingest", "-", "--chunk-tokens", CHUNK_TOKENS, text="".join(lines), timeout=36000)
            tokens = sum(d["tokens"] for d in daemon.json("ls")["documents"])
            print("\r%d tokens" % tokens, end="", file=sys.stderr, flush=True)
            if tokens >= args.tokens:
                break
    print("\r%d tokens of %d documents' text in %s" % (tokens, min(first + BATCH, len(documents)), args.store))


if __name__ == "__main__":
    main()
