#!/usr/bin/env python3
"""Greedy answers over sparse caches: in llama.cpp and in Hugging Face transformers, beside the daemon's own (`ask`).

    compare_engines.py MODEL.gguf BIN [--questions FILE.jsonl]... [--count N] [--tokens N] [--update U] [--ratio R]

BIN is a build's folder with samkvd and samkvctl. Needs torch, transformers, accelerate, llama-cpp-python and gguf; not part of
ctest.
Each line of a file is {"id", "question", "documents": [{"title", "text"}]}. The daemon reads the file itself. llama.cpp
and transformers get a float32 copy of the model (as in compare_greedy.py), and llama.cpp float32 K and V without flash
attention: rounding is all that may differ. --stock adds llama.cpp as people run it: the file itself, f16 K and V.

An engine's answer is equal when text and number of tokens are. Where not, the first other token is looked at: a near tie
when the engine's logits for the two tokens are less than --tie apart. Exit code 1 when an answer differs without one.
"""
import argparse
import json
import os
import pathlib
import sys
import tempfile
import time

import engines

engines.need("torch", "transformers", "accelerate", "llama_cpp", "gguf")

import numpy as np      # noqa: E402
import torch            # noqa: E402
import transformers     # noqa: E402

import samkv            # noqa: E402
from compare_greedy import write_float32_copy           # noqa: E402
from demo import ANCHOR_TOKENS, BLOCK_TOKENS, PREAMBLE  # noqa: E402
from harness import DATA, Daemon                        # noqa: E402
from llama_context import F16, F32, Context             # noqa: E402
from samkv.transformers import forward_inputs, generation_inputs    # noqa: E402

QUERY = "\n\nQuestion: %s<|im_end|>\n<|im_start|>assistant\n"


class LlamaCpp:
    def __init__(self, path, kind, flash, cells, threads):
        self.context = Context(path, kind, kind, flash, cells=cells, threads=threads)

    def answer(self, cache, query, count):
        """(tokens, logits of each of them and of what would follow)"""
        self.context.load(cache)
        tokens, logits = [], [self.context.decode(query, cache.next_position)]
        while len(tokens) < count and not self.context.is_end(int(logits[-1].argmax())):
            tokens.append(int(logits[-1].argmax()))
            logits.append(self.context.decode(tokens[-1:], cache.next_position + len(query) + len(tokens) - 1))
        return tokens, logits


class HuggingFace:
    def __init__(self, path, context):
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self.model = transformers.AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name,
                                                                       dtype=torch.float32).eval()
        self.is_end = context.is_end

    def answer(self, cache, query, count):
        out = self.model.generate(**generation_inputs(self.model, cache, query), max_new_tokens=count, do_sample=False,
                                  pad_token_id=0, return_dict_in_generate=True, output_logits=True)
        tokens = out.sequences[0, cache.rows + len(query):].tolist()
        tokens = tokens[:-1] if tokens and self.is_end(tokens[-1]) else tokens
        return tokens, [step[0].numpy() for step in out.logits]


def verdict(context, said, tokens, logits, tie):
    """"equal", "near tie …" or "DIFFERS …" for an engine's answer beside the daemon's."""
    if context.text(tokens) == said.text and len(tokens) == said.answer_tokens:
        return "equal"
    theirs = context.tokens(said.text)
    at = next((i for i, (a, b) in enumerate(zip(tokens, theirs)) if a != b), min(len(tokens), len(theirs)))
    if at >= len(logits):
        return "DIFFERS in the number of tokens"
    order = np.sort(logits[at])
    gap = float(order[-1] - logits[at][theirs[at]] if at < len(theirs) else order[-1] - order[-2])
    return "%s at token %d (gap %.2g): %r" % ("near tie" if gap < tie else "DIFFERS", at, gap,
                                              context.text(tokens)[:60])


def ingest(client, name, documents):
    ids = []
    for d, document in enumerate(documents):
        text = "\n".join(filter(None, (document.get("title"), document["text"]))) + "\n\n"
        ids.append("%s-%d" % (name, d))
        client.ingest(ids[-1], text, preamble=PREAMBLE, block_tokens=BLOCK_TOKENS, init_tokens=ANCHOR_TOKENS,
                      local_tokens=ANCHOR_TOKENS)
    return ids


def compare(options, client, contenders, context, questions):
    """Counts of verdicts for each contender."""
    how = {"ratio": options.ratio, "selection": "fixed", "update": options.update}
    counts = {name: {"equal": 0, "near": 0, "differs": 0} for name in contenders}
    for number, question in enumerate(questions):
        ids, query = ingest(client, "q%d" % number, question["documents"]), QUERY % question["question"]
        with client.fetch(ids, query, **how) as cache:
            tokens = context.tokens(query)
            said = client.ask(ids, query, raw=True, max_tokens=options.tokens, **how)
            words = []
            for name, engine in contenders.items():
                v = verdict(context, said, *engine.answer(cache, tokens, options.tokens), options.tie)
                counts[name]["equal" if v == "equal" else "near" if v.startswith("near") else "differs"] += 1
                words.append("%s %s" % (name, v))
            print("%2d %4d of %4d rows  %-40.40r %s" % (number + 1, cache.rows, cache.figures.total_tokens, said.text,
                                                        "; ".join(words)), flush=True)
        client.rm(ids)
    return counts


def check_first_logits(options, client, contenders, context, question):
    """The largest relative error of what follows the query, over a sparse cache of the first question."""
    ids, query = ingest(client, "first", question["documents"]), QUERY % question["question"]
    whole = client.fetch(ids, query, ratio=options.ratio, with_query=True)
    tokens = whole.tokens[whole.doc == -2].tolist()
    assert tokens == context.tokens(query), "llama.cpp and the daemon tokenise the query differently"
    cache = client.fetch(ids, query, ratio=options.ratio)
    for name, engine in contenders.items():
        if isinstance(engine, HuggingFace):
            with torch.no_grad():
                logits = engine.model(**forward_inputs(engine.model, cache, tokens)).logits[0, -1].numpy()
        else:
            logits = engine.answer(cache, tokens, 0)[1][0]
        print("%s: relative error of the first logits %.2g" %
              (name, np.linalg.norm(logits - whole.logits) / np.linalg.norm(whole.logits)), flush=True)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("bin", type=pathlib.Path)
    parser.add_argument("--questions", type=pathlib.Path, action="append", help="[those of tests/data]")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--ratio", type=float, default=0.25)
    parser.add_argument("--update", default="cosine")
    parser.add_argument("--threads", type=int, default=1, help="of each side [1]")
    parser.add_argument("--cells", type=int, default=4096, help="of llama.cpp's contexts [4096]")
    parser.add_argument("--tie", type=float, default=0.01, help="logit gap below which two tokens tie [0.01]")
    parser.add_argument("--stock", action="store_true", help="also llama.cpp with the file itself and f16")
    return parser.parse_args()


def main():
    options, started = arguments(), time.monotonic()
    files = options.questions or [DATA / "questions.jsonl", DATA / "bench-questions.jsonl"]
    questions = [json.loads(line) for file in files for line in file.read_text().splitlines()][:options.count]
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "float32.gguf"
        write_float32_copy(options.model, path)
        llama = LlamaCpp(path, F32, False, options.cells, options.threads)
        contenders = {"llama.cpp": llama, "transformers": HuggingFace(path, llama.context)}
        if options.stock:
            contenders["stock"] = LlamaCpp(options.model, F16, True, options.cells, options.threads)
        with Daemon({"m": options.model}, binaries=options.bin, environment=dict(os.environ),
                    arguments=["--threads", str(options.threads)]) as daemon, samkv.Client(daemon.socket) as client:
            check_first_logits(options, client, contenders, llama.context, questions[0])
            counts = compare(options, client, contenders, llama.context, questions)
    for name, c in counts.items():
        print("%s: of %d answers %d equal, %d differ first at a near tie (gap below %g), %d differ" %
              (name, len(questions), c["equal"], c["near"], options.tie, c["differs"]))
    print("%.0f s" % (time.monotonic() - started))
    return 1 if any(c["differs"] for name, c in counts.items() if name != "stock") else 0


if __name__ == "__main__":
    sys.exit(main())
