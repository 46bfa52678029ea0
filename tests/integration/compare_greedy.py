#!/usr/bin/env python3
"""Compares our forward pass with llama.cpp's: greedy answers and logits of the same token ids.

    compare_greedy.py MODEL.gguf BIN [--prompts N] [--tokens N] [--every-step]

BIN is a build's folder with samkvd and samkvctl. Needs the packages `xllamacpp` (llama.cpp), `gguf` and `numpy`; not
part of ctest. llama.cpp gets a float32 copy of the model (weights dequantised by the package `gguf`), float32 caches
and no fused attention, so that rounding is all that may differ. (From a quantised file it would compute with 8-bit
activations, whose logits are some percent away, enough to answer otherwise.) We read the file itself.

A prompt is a collection's preamble, one document and a query. `samkvctl ask --method full` answers greedily; llama.cpp
continues the token ids that `samkvctl fetch` reports for the same rows. Two answers are equal when text and number of
tokens are. Where they differ, the first token at which our logits (of a fetch at ratio 1, given llama.cpp's tokens so
far) prefer another is looked at in both: a near tie when each one's gap between the two tokens is below --tie.
--every-step checks our choice from a fetch at every token of every prompt, differing or not.

Printed for a prompt: its tokens, those of the answer, how llama.cpp's answer and ours compare, the smallest gap between
llama.cpp's two best tokens on the way, and the relative error of the last prompt position's logits, less their mean.
Exit code 1 when an answer differs without a near tie, or a relative error exceeds --logits.
"""
import argparse
import json
import math
import pathlib
import sys
import tempfile
import time
import urllib.request

import numpy as np

from harness import DATA, Daemon, comma, documents_jsonl
from models import load_safetensors

MODEL = "m"
PREAMBLES = {"plain": "", "chat": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"}
CLOSING = "<|im_end|>\n<|im_start|>assistant\n"
CONTEXT_TOKENS = 2048
CANDIDATES = 16     # of llama.cpp's tokens at each step


# ---------------------------------------------------------------------------------------------------------- prompts

def opening(text, characters):
    """The text's first words; and where its last third begins, at a space."""
    words = text[:characters].rsplit(None, 1)[0]
    return words, words.index(" ", len(words) * 2 // 3)


def make_prompts():
    """20 of (name, collection, document, query): openings of real texts, questions, and questions about a text."""
    questions = [json.loads(line) for line in (DATA / "bench-questions.jsonl").read_text().splitlines()]
    out = []
    for path in sorted((DATA / "corpus").glob("*.txt"))[:4]:
        text, cut = opening(path.read_text(), 1200 - 250 * len(out))
        out.append((path.name, "plain", text[:cut], text[cut:]))
    for q, question in enumerate(questions[:4]):
        for d in (0, 5):
            text, cut = opening(question["documents"][d]["text"], 150 + 140 * len(out))
            out.append(("%s document %d" % (question["id"], d), "plain", text[:cut], text[cut:]))
    for question in questions[:4]:
        out.append((question["id"] + " question", "chat", question["question"], CLOSING))
    for q, question in enumerate(questions[:4]):
        text, _ = opening(question["documents"][q]["text"], 300 + 250 * q)
        out.append((question["id"] + " with text", "chat", text, "\n\n" + question["question"] + CLOSING))
    return out


# ------------------------------------------------------------------------------------------------------------- ours

class Ours:
    """samkvd with the prompts' documents."""

    def __init__(self, daemon, prompts):
        self.daemon, self.prompts = daemon, prompts
        for collection, preamble in PREAMBLES.items():
            lines = [json.dumps({"id": "p%d" % i, "text": p[2]}) for i, p in enumerate(prompts) if p[1] == collection]
            if lines:
                said = daemon.json("ingest", "-", "--collection", collection, "--preamble", preamble,
                                   text="\n".join(lines) + "\n")
                assert said["failed"] == 0, said

    def where(self, i):
        return "--collection", self.prompts[i][1], "--docs", "p%d" % i

    def fetch(self, i, *query):
        """Row tokens and the last row's logits of prompt i with this query, everything kept."""
        out = self.daemon.folder / "out.safetensors"
        said = self.daemon.json("fetch", *self.where(i), *query, "--with-query", "--ratio", 1, "--selection", "fixed",
                                "--out", out)
        assert said["kept_tokens"] == said["total_tokens"], said
        tensors = load_safetensors(out)
        tokens = tensors["tokens"].tolist()
        return tokens, tokens[int(np.count_nonzero(tensors["doc"] != -2)):], tensors["logits"].astype(np.float64)

    def prompt(self, i):
        """(all token ids, the query's token ids, logits of what follows)"""
        return self.fetch(i, "--query", self.prompts[i][3])

    def logits_after(self, i, query, continuation):
        return self.fetch(i, "--query-tokens", comma(query + continuation))[2]

    def answer(self, i, count):
        """(text, tokens) of what `ask` says."""
        said = self.daemon.json("ask", *self.where(i), "--method", "full", "--raw", "--max-tokens", count,
                                self.prompts[i][3])
        return said["answer"], said["answer_tokens"]


# -------------------------------------------------------------------------------------------------------- llama.cpp

def write_float32_copy(source, target):
    """The same GGUF metadata and tensors, every tensor as float32."""
    import gguf
    reader = gguf.GGUFReader(source)
    architecture = reader.get_field(gguf.Keys.General.ARCHITECTURE).contents()
    writer = gguf.GGUFWriter(target, architecture)
    for field in reader.fields.values():
        if field.name == gguf.Keys.General.ARCHITECTURE or field.name.startswith("GGUF."):
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        value = 0 if field.name == gguf.Keys.General.FILE_TYPE else field.contents()
        writer.add_key_value(field.name, value, kind, sub_type=inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Theirs:
    """llama.cpp's own server inside this process, asked for token ids and log probabilities."""

    def __init__(self, path, threads):
        import xllamacpp
        self.version = "xllamacpp %s" % xllamacpp.__version__
        p = xllamacpp.CommonParams()
        p.model.path = str(path)
        p.n_ctx, p.n_parallel, p.cache_ram_mib = CONTEXT_TOKENS, 1, 0
        p.fit_params = p.warmup = False
        p.verbosity = 1
        p.cache_type_k = p.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        p.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        p.cpuparams.n_threads = p.cpuparams_batch.n_threads = threads
        self.server = xllamacpp.Server(p)

    def complete(self, ids, count, candidates):
        """(ended by itself, [(token, its bytes, {candidate: log probability})])"""
        body = {"prompt": ids, "n_predict": count, "temperature": 0, "n_probs": candidates, "return_tokens": True,
                "cache_prompt": False}
        request = urllib.request.Request(self.server.listening_address + "/completion", json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=600) as reply:
            said = json.load(reply)
        assert said["tokens_evaluated"] == len(ids) and not said["truncated"], said
        steps = [(step["id"], bytes(step["bytes"]), {c["id"]: c["logprob"] for c in step["top_logprobs"]})
                 for step in said["completion_probabilities"]]
        return said["stop_type"] == "eos", steps

    def log_probabilities(self, ids, vocabulary):
        """Those of every token after ids."""
        found = self.complete(ids, 1, vocabulary)[1][0][2]
        assert len(found) == vocabulary, (len(found), vocabulary)
        return np.array([found[i] for i in range(vocabulary)], np.float64)


# ------------------------------------------------------------------------------------------------------- comparison

def relative_error(logits, log_probabilities):
    """Both less their means: a softmax's logarithm is its logits less a constant."""
    a, b = logits - logits.mean(), log_probabilities - log_probabilities.mean()
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def gap(values):
    """Between the two largest."""
    first, second = sorted(values, reverse=True)[:2]
    return first - second


class Comparison:
    """Of one prompt's continuations."""

    def __init__(self, ours, theirs, number, tokens):
        self.ours, self.number = ours, number
        self.ids, self.query, self.logits = ours.prompt(number)
        self.ended, self.steps = theirs.complete(self.ids, tokens, CANDIDATES)
        self.error = relative_error(self.logits, theirs.log_probabilities(self.ids, len(self.logits)))
        self.text, self.count = ours.answer(number, tokens)

    def same_answer(self):
        """A token that ends an answer is no part of its text."""
        spoken = self.steps[:-1] if self.ended else self.steps
        text = b"".join(raw for _, raw, _ in spoken).decode(errors="replace")
        return text == self.text and len(spoken) == self.count

    def first_difference(self):
        """(step, our token, our gap, llama.cpp's gap) where our logits first prefer another token; None: nowhere."""
        continuation = [token for token, _, _ in self.steps]
        logits = self.logits
        for k, (token, _, candidates) in enumerate(self.steps):
            if k:
                logits = self.ours.logits_after(self.number, self.query, continuation[:k])
            mine = int(logits.argmax())
            if mine != token:
                return k, mine, float(logits[mine] - logits[token]), candidates[token] - candidates.get(mine, -math.inf)
        return None

    def verdict(self, tie, every_step):
        """(acceptable, what to print)"""
        same = self.same_answer()
        found = None if same and not every_step else self.first_difference()
        if found is None:
            return same, "equal" if same else "DIFFERS: our answer is not what our own logits choose: %r" % self.text
        k, mine, our_gap, their_gap = found
        near = our_gap < tie and their_gap < tie
        return near, "%s at %d: we %d (gap %.2g), they %d (gap %.2g)" % (
            "near tie" if near else "DIFFERS", k, mine, our_gap, self.steps[k][0], their_gap)


def compare(options, ours, theirs, prompts):
    """Prints the table; the number of prompts that fail."""
    print("%-27s %6s %6s %9s %9s  %s" % ("prompt", "tokens", "answer", "least gap", "logits", "continuation"))
    counts, worst = {"equal": 0, "near": 0, "failed": 0}, 0.0
    for i, prompt in enumerate(prompts):
        c = Comparison(ours, theirs, i, options.tokens)
        good, words = c.verdict(options.tie, options.every_step)
        if not c.error <= options.logits:
            good, words = False, words + ", LOGITS DIFFER"
        counts["failed" if not good else "equal" if words == "equal" else "near"] += 1
        worst = max(worst, c.error)
        print("%-27s %6d %6d %9.2g %9.2g  %s%s" % (
            prompt[0], len(c.ids), len(c.steps), min(gap(step[2].values()) for step in c.steps), c.error, words,
            ", ended" if c.ended else ""), flush=True)
    print("%d prompts, up to %d tokens each: %d equal, %d differ first at a near tie (gap below %g), %d fail; "
          "largest relative error of logits %.2g (at most %g)" % (
              len(prompts), options.tokens, counts["equal"], counts["near"], options.tie, counts["failed"], worst,
              options.logits))
    return counts["failed"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("bin", type=pathlib.Path)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1, help="of either side [1]")
    parser.add_argument("--every-step", action="store_true", help="check our logits at every token")
    parser.add_argument("--tie", type=float, default=0.01, help="logit gap below which two tokens tie [0.01]")
    parser.add_argument("--logits", type=float, default=1e-4, help="largest relative error of logits [1e-4]")
    return parser.parse_args()


def main():
    options = arguments()
    prompts = make_prompts()[:options.prompts]
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "float32.gguf"
        write_float32_copy(options.model, path)
        theirs = Theirs(path, options.threads)
        print("against %s, float32 weights" % theirs.version, flush=True)
        with Daemon({MODEL: options.model}, binaries=options.bin, arguments=["--threads", str(options.threads)],
                    environment={"GOMP_SPINCOUNT": "1000"}) as daemon:
            failed = compare(options, Ours(daemon, prompts), theirs, prompts)
    print("%.0f s" % (time.monotonic() - started))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
