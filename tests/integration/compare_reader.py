#!/usr/bin/env python3
"""As compare_engines.py, for a small model without a tokenizer and many cases of token ids: seconds, not an hour.

    compare_reader.py MODEL CASES.jsonl BIN [--count N] [--tokens N] [--ratio R]

MODEL is a Hugging Face directory of the Llama architecture. A case is {"id", "preamble", "docs", "query", "answer"}, all
token ids. So that the daemon's `ask` can be spoken to, the model gets a tokenizer in which every id is one character.
llama.cpp and transformers answer over the same fetched cache, in float32; their tokens must be those of `ask`. Printed
besides: how often each is the case's answer.
"""
import argparse
import collections
import json
import pathlib
import sys
import tempfile

import engines

engines.need("torch", "transformers", "llama_cpp", "gguf")

import torch            # noqa: E402
import transformers     # noqa: E402

import samkv            # noqa: E402
from harness import Daemon              # noqa: E402
from llama_context import F32, Context  # noqa: E402
from samkv.transformers import generation_inputs    # noqa: E402

FIRST = 0x4E00      # the character of id 0: a range of 20,000 ideographs


def to_text(tokens):
    return "".join(chr(FIRST + token) for token in tokens)


def to_tokens(text):
    return [ord(letter) - FIRST for letter in text]


def copy_with_tokenizer(source, target):
    """The model's folder with a tokenizer of one character a token."""
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config))
    (target / "model.safetensors").symlink_to((source / "model.safetensors").resolve())
    (target / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": None, "post_processor": None, "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {chr(FIRST + i): i for i in range(config["vocab_size"])}, "merges": []}}))
    return config


class Engines:
    def __init__(self, folder, config):
        engines.write_gguf(config, folder, folder / "model.gguf")
        self.llama = Context(folder / "model.gguf", F32, F32, False, cells=4096)
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.end = config["eos_token_id"]

    def llama_cpp(self, cache, query, count):
        self.llama.load(cache)
        out, logits = [], self.llama.decode(query, cache.next_position)
        while len(out) < count and logits.argmax() != self.end:
            out.append(int(logits.argmax()))
            logits = self.llama.decode(out[-1:], cache.next_position + len(query) + len(out) - 1)
        return out

    def transformers(self, cache, query, count):
        out = self.model.generate(**generation_inputs(self.model, cache, query), max_new_tokens=count, do_sample=False,
                                  pad_token_id=0)[0, cache.rows + len(query):].tolist()
        return out[:-1] if out and out[-1] == self.end else out


def compare(client, contenders, case, options, counts):
    """Whether all answers to this case are the same tokens."""
    ids = ["d%d" % i for i in range(len(case["docs"]))]
    for name, tokens in zip(ids, case["docs"]):
        client.ingest(name, tokens, preamble=case["preamble"], block_tokens=8, init_tokens=8, local_tokens=8)
    how = {"ratio": options.ratio, "selection": "fixed"}
    answers = {"ask": to_tokens(client.ask(ids, to_text(case["query"]), raw=True, max_tokens=options.tokens, **how).text)}
    with client.fetch(ids, case["query"], **how) as cache:
        for name in ("llama_cpp", "transformers"):
            answers[name] = getattr(contenders, name)(cache, case["query"], options.tokens)
    for name, answer in answers.items():
        counts[name + " right"] += answer[:len(case["answer"])] == case["answer"]
        counts[name + " equal"] += answer == answers["ask"]
    same = all(answer == answers["ask"] for answer in answers.values())
    if not same:
        print("%s DIFFERS: %s, expected %s" % (case["id"], answers, case["answer"]), flush=True)
    return same


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("cases", type=pathlib.Path)
    parser.add_argument("bin", type=pathlib.Path)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--tokens", type=int, default=4)
    parser.add_argument("--ratio", type=float, default=0.25)
    options = parser.parse_args()
    cases = [json.loads(line) for line in options.cases.read_text().splitlines()][:options.count]
    torch.set_num_threads(1)
    counts = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        contenders = Engines(folder, copy_with_tokenizer(options.model, folder))
        with Daemon({"m": folder}, binaries=options.bin, arguments=["--threads", "1"]) as daemon, \
                samkv.Client(daemon.socket) as client:
            same = sum(compare(client, contenders, case, options, counts) for case in cases)
    for name in ("ask", "llama_cpp", "transformers"):
        print("%-12s equal to ask %d of %d, right %d" % (name, counts[name + " equal"], len(cases),
                                                         counts[name + " right"]))
    return 0 if same == len(cases) else 1


if __name__ == "__main__":
    sys.exit(main())
