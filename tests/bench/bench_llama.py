#!/usr/bin/env python3
"""Time to the first token in llama.cpp: the whole prompt of ten documents, beside their stored caches.

    bench_llama.py MODEL.gguf BIN [--questions FILE.jsonl] [--count N] [--repeats N] [--threads N] [--ratio R]

BIN is a build's folder with samkvd and samkvctl. Needs the package llama-cpp-python. One run, one machine, the same token
ids: (a) llama.cpp decodes preamble, documents and question; (b) the documents were ingested once, and a fetch, the state
that llama.cpp takes, and the question's decode follow each other. Both end when the first answer token's logits are there.
llama.cpp reads the file as it is, with K and V in f16 and flash attention; the daemon computes in float32. (a) and (b)
take turns; medians are printed. The first (b) of a question counts like the others. Beside the seconds by the clock stand
those of the CPUs, the daemon's included: on a machine that others use they are the ones to compare.
"""
import argparse
import json
import os
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))

import engines      # noqa: E402

engines.need("llama_cpp")

import samkv        # noqa: E402
from demo import PREAMBLE                   # noqa: E402
from harness import DATA, Daemon            # noqa: E402
from llama_context import F16, Context      # noqa: E402
from samkv import llama                     # noqa: E402

QUERY = "\n\nQuestion: %s<|im_end|>\n<|im_start|>assistant\n"
STEPS = ("fetch", "state", "set", "decode")


class Clock:
    """Seconds by the clock, and of the CPUs: this process's and the daemon's."""

    def __init__(self, daemon):
        self.daemon, self.at = daemon, None
        self.at = self.now()

    def now(self):
        fields = pathlib.Path("/proc/%d/stat" % self.daemon).read_text().rsplit(")", 1)[1].split()
        mine = os.times()
        ticks = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return time.monotonic(), mine.user + mine.system + ticks

    def lap(self):
        """(by the clock, of the CPUs) since the last one."""
        before, self.at = self.at, self.now()
        return tuple(now - then for now, then in zip(self.at, before))


def middle(pairs):
    """The medians of (clock, CPU) pairs."""
    return tuple(statistics.median(column) for column in zip(*pairs))


def ingest(client, clock, number, documents):
    """(ids, tokens, seconds)"""
    ids, tokens = [], 0
    clock.lap()
    for d, document in enumerate(documents):
        text = "\n".join(filter(None, (document.get("title"), document["text"]))) + "\n\n"
        ids.append("q%d-%d" % (number, d))
        tokens += client.ingest(ids[-1], text, preamble=PREAMBLE).documents[0].tokens
    return ids, tokens, clock.lap()


def full(context, clock, prompt):
    context.clear()
    clock.lap()
    context.decode(prompt, 0)
    return clock.lap()


def sparse(context, client, clock, ids, query, ratio):
    """(seconds of each step, rows)"""
    took = {}
    clock.lap()
    cache = client.fetch(ids, query, ratio=ratio)
    took["fetch"] = clock.lap()
    state = llama.state_of(cache, context.known_layout)
    took["state"] = clock.lap()
    llama.set_state(context.context, state)
    took["set"] = clock.lap()
    context.decode(query, cache.next_position)
    took["decode"] = clock.lap()
    return took, cache.rows


def measure(options, client, context, clock, number, question):
    """A row of the table; (full, samkv, ingest) as (clock, CPU) pairs, and the documents' tokens."""
    ids, document_tokens, ingested = ingest(client, clock, number, question["documents"])
    text = QUERY % question["question"]
    whole = client.fetch(ids, text, ratio=1.0, selection="fixed", recompute=False, with_query=True)
    prompt, query = whole.tokens.tolist(), whole.tokens[whole.doc == -2].tolist()
    whole.close()
    fulls, sparses = [], []
    for _ in range(options.repeats):
        fulls.append(full(context, clock, prompt))
        sparses.append(sparse(context, client, clock, ids, query, options.ratio))
    steps = [middle([took[step] for took, _ in sparses]) for step in STEPS]
    a, b = middle(fulls), middle([tuple(map(sum, zip(*took.values()))) for took, _ in sparses])
    print("%-16.16s %6d %5d  %6.1f %6.1f  %6.2f %6.2f  %6.2f %6.2f  %5.1f %5.1f   %s" % (
        question["id"], len(prompt), sparses[0][1], *ingested, *a, *b, a[0] / b[0], a[1] / b[1],
        "  ".join("%5.0f" % (1000 * cpu) for _, cpu in steps)), flush=True)
    return a, b, ingested, document_tokens


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("bin", type=pathlib.Path)
    parser.add_argument("--questions", type=pathlib.Path, default=DATA / "bench-questions.jsonl")
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ratio", type=float, default=0.15)
    return parser.parse_args()


def main():
    options = arguments()
    questions = [json.loads(line) for line in options.questions.read_text().splitlines()][:options.count]
    environment = {"GOMP_SPINCOUNT": "1000"}    # the two take turns: neither may spin while the other works
    with Daemon({"m": options.model}, binaries=options.bin, environment=environment,
                arguments=["--threads", str(options.threads)]) as daemon, samkv.Client(daemon.socket) as client, \
            Context(options.model, F16, F16, True, cells=8192, threads=options.threads) as context:
        context.known_layout = context.layout()
        print("%-16s %6s %5s  %13s  %13s  %13s  %11s   %s" % (
            "seconds: clock, CPU", "prompt", "rows", "ingest", "full prompt", "samkv", "ratio",
            "  ".join("%5s" % step for step in STEPS) + "  (CPU ms)"))
        rows = [measure(options, client, context, Clock(daemon.process.pid), i, question)
                for i, question in enumerate(questions)]
    for at, name in enumerate(("clock", "CPUs")):
        a, b, ingested = (sum(row[column][at] for row in rows) for column in range(3))
        print("by the %s, first token of all %d questions: full prompt %.2f s, samkv %.2f s, %.1f times sooner; their "
              "documents, %d tokens, were ingested once in %.1f s, which %.1f questions on each pay back" %
              (name, len(rows), a, b, a / b, sum(row[3] for row in rows), ingested, ingested / max(a - b, 1e-9)))


if __name__ == "__main__":
    main()
