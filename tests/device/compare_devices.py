#!/usr/bin/env python3
"""The same greedy continuations on the CPU (float32) and on a GPU (bfloat16), token by token.

usage: compare_devices.py MODEL [--questions FILE.jsonl] [--count 20] [--tokens 16] [--device cuda] [--dtype bf16]

For each question and method (full: everything recomputed; reuse: nothing; samkv) both daemons continue the same prefix; the CPU's
choice goes on. Where the choices differ, the CPU's logits say by how much: a near tie when the gap is below --tie. Exits with 1
when a difference is none. Binaries: SAMKV_BIN; libraries: LD_LIBRARY_PATH.
"""
import argparse
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))
from harness import DATA, Daemon, comma   # noqa: E402
from models import load_safetensors   # noqa: E402

METHODS = {"full": ["--ratio", 1, "--selection", "fixed"],
           "reuse": ["--ratio", 1, "--selection", "fixed", "--no-recompute"],
           "samkv": ["--ratio", 0.25, "--selection", "fixed", "--update", "cosine"]}


def load_questions(path, count):
    lines = [json.loads(line) for line in pathlib.Path(path).read_text().splitlines() if line.strip()]
    return [line for line in lines if line.get("documents")][:count]


def ingest(daemon, questions):
    documents = [{"id": "%d-%d" % (q, d), "text": document["text"]}
                 for q, question in enumerate(questions) for d, document in enumerate(question["documents"])]
    said = daemon.json("ingest", "-", "--block-size", 8, "--init-tokens", 8, "--local-tokens", 8,
                       text="".join(json.dumps(d) + "\n" for d in documents))
    assert said["failed"] == 0, said


def fetch(daemon, question, number, method, tokens):
    """(kept blocks, the query's tokens, logits behind them)"""
    names = ",".join("%d-%d" % (number, d) for d in range(len(question["documents"])))
    query = ["--query-tokens", comma(tokens)] if tokens else ["--query", "\nQuestion: %s\nAnswer:" % question["question"]]
    out = daemon.folder / "out.safetensors"
    said = daemon.json("fetch", "--docs", names, *query, "--with-query", "--out", out, *METHODS[method])
    tensors = load_safetensors(out)
    return said["keep"], tensors["tokens"][tensors["doc"] == -2].tolist(), tensors["logits"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--questions", default=DATA / "questions.jsonl")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--tie", type=float, default=0.25)
    o = parser.parse_args()
    questions, bad = load_questions(o.questions, o.count), 0
    with Daemon({"m": o.model}) as cpu, Daemon({"m": o.model}, device=o.device, dtype=o.dtype) as gpu:
        ingest(cpu, questions)
        ingest(gpu, questions)
        for method in METHODS:
            same = steps = same_blocks = whole = 0
            gaps = []
            for number, question in enumerate(questions):
                tokens, differing = None, 0
                for step in range(o.tokens):
                    kept, prompt, expected = fetch(cpu, question, number, method, tokens)
                    other, _, logits = fetch(gpu, question, number, method, tokens)
                    best, chosen = int(expected.argmax()), int(logits.argmax())
                    gap = float(expected[best] - expected[chosen])
                    steps += 1
                    same += best == chosen
                    same_blocks += kept == other
                    differing += best != chosen
                    gaps += [gap] if best != chosen else []
                    # Other blocks give another answer with every right; only the decision is to be judged then.
                    bad += gap > o.tie and kept == other
                    tokens = prompt + [best]
                whole += differing == 0
            print(json.dumps({"method": method, "questions": len(questions), "answers_equal": whole, "steps": steps,
                              "same_token": same, "same_blocks": same_blocks,
                              "gaps_of_others": [round(g, 3) for g in sorted(gaps)]}), flush=True)
    print("%d differences are no near ties" % bad)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
