#!/usr/bin/env python3
"""What lossy codecs do to what a model says: each collection codec beside the lossless one, same documents and questions.

    codec_quality.py MODEL [--bin DIR] [--questions FILE.jsonl] [--sample N] [--seed N] [--dtype bf16] [--codecs q8,q4]

Starts a daemon of its own, ingests every question's documents once for each codec, and fetches with the question behind
them. Two ways of fetching: `stored` keeps every token and recomputes none, so that all that is read was through the codec;
`default` is what a fetch does when nothing is asked for (few tokens, recomputed: only what is not recomputed is lossy).

Printed for each codec and way:
  KL       of the next token's distribution behind the question, lossless against this codec, in nats: mean and largest
  same     how often the most probable next token is the same
  answer   mean change of the answer's log-likelihood a token, by teacher forcing (question, then the answer so far)
  bytes    how many times smaller its documents are than K and V, index included
A line of FILE is {"id", "question", "answers", "documents": [{"title", "text"}, ..]}; --sample picks N of them by --seed.
Needs numpy.
"""
import argparse
import json
import pathlib
import random
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))
from harness import BIN, DATA, Daemon, comma  # noqa: E402
from models import load_safetensors  # noqa: E402

LOSSLESS = "rans"
WAYS = {"stored": ("--ratio", 1, "--selection", "fixed", "--no-recompute"), "default": ()}
ASKED = "\n\nQuestion: %s\nAnswer:"


def read_questions(path, sample, seed):
    questions = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    questions = [q for q in questions if q["answers"] and q["documents"]]
    if sample and sample < len(questions):
        questions = random.Random(seed).sample(questions, sample)
    return questions


def ingest(daemon, codec, questions):
    """One collection a codec; bytes of K and V by bytes stored."""
    lines = [json.dumps({"id": "%d.%d" % (i, j), "text": d["title"] + "\n" + d["text"] + "\n\n"})
             for i, q in enumerate(questions) for j, d in enumerate(q["documents"])]
    said = daemon.json("ingest", "-", "--collection", codec, "--codec", codec, text="\n".join(lines) + "\n",
                       timeout=7200)
    if said["failed"]:
        raise SystemExit("codec_quality.py: %d documents could not be ingested" % said["failed"])
    listed = daemon.json("ls", "--collection", codec)["documents"]
    return sum(d["bytes_raw"] for d in listed) / sum(d["bytes_stored"] for d in listed)


def fetch(daemon, codec, way, number, question, *query):
    """The query's token ids, and log-probabilities of what follows it."""
    out = daemon.folder / "quality.safetensors"
    ids = ",".join("%d.%d" % (number, j) for j in range(len(question["documents"])))
    daemon.json("fetch", "--collection", codec, "--docs", ids, *query, "--with-query", *WAYS[way], "--out", out,
                timeout=3600)
    tensors = load_safetensors(out)
    tokens = tensors["tokens"].tolist()
    logits = tensors["logits"].astype(np.float64)
    logits -= logits.max()
    return tokens[int(np.count_nonzero(tensors["doc"] != -2)):], logits - np.log(np.exp(logits).sum())


def answer_ids(daemon, number, question):
    """Token ids of the question, and of its first answer behind it."""
    asked = ASKED % question["question"]
    before, _ = fetch(daemon, LOSSLESS, "default", number, question, "--query", asked)
    after, _ = fetch(daemon, LOSSLESS, "default", number, question, "--query", asked + " " + question["answers"][0])
    same = 0
    while same < len(before) and before[same] == after[same]:
        same += 1
    return after[:same], after[same:]


def score(daemon, codec, way, number, question, asked, answer):
    """Log-probabilities behind the question, and the answer's log-likelihood a token."""
    first, total = None, 0.0
    for n, token in enumerate(answer):
        _, log_p = fetch(daemon, codec, way, number, question, "--query-tokens", comma(asked + answer[:n]))
        first = log_p if first is None else first
        total += log_p[token]
    return first, total / len(answer)


def compare(daemon, codecs, questions):
    """(codec, way) → rows of KL, whether the best token is the same, change of the answer's log-likelihood."""
    rows = {(codec, way): [] for codec in codecs for way in WAYS}
    for number, question in enumerate(questions):
        asked, answer = answer_ids(daemon, number, question)
        for way in WAYS:
            p, likelihood = score(daemon, LOSSLESS, way, number, question, asked, answer)
            for codec in codecs:
                q, other = score(daemon, codec, way, number, question, asked, answer)
                kl = float((np.exp(p) * (p - q)).sum())
                rows[codec, way].append((kl, p.argmax() == q.argmax(), other - likelihood))
        print("question %d of %d" % (number + 1, len(questions)), file=sys.stderr, flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--bin", type=pathlib.Path, default=BIN)
    parser.add_argument("--questions", type=pathlib.Path, default=DATA / "questions.jsonl")
    parser.add_argument("--sample", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--codecs", default="q8,q4")
    args = parser.parse_args()
    questions, codecs = read_questions(args.questions, args.sample, args.seed), args.codecs.split(",")
    with Daemon({"m": args.model}, dtype=args.dtype, binaries=args.bin) as daemon:
        smaller = {codec: ingest(daemon, codec, questions) for codec in [LOSSLESS] + codecs}
        rows = compare(daemon, codecs, questions)
    print("%d questions of %s, %s; %s is %.2f times smaller" % (len(questions), args.questions.name, args.dtype, LOSSLESS,
                                                                smaller[LOSSLESS]))
    print("%-6s %-8s %6s %12s %12s %6s %10s" % ("codec", "fetch", "bytes", "KL mean", "KL largest", "same", "answer"))
    for (codec, way), row in rows.items():
        kl, same, change = map(np.array, zip(*row))
        print("%-6s %-8s %6.2f %12.6f %12.6f %5.0f%% %+10.5f" %
              (codec, way, smaller[codec], kl.mean(), kl.max(), 100 * same.mean(), change.mean()))


if __name__ == "__main__":
    main()
