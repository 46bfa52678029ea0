"""Scores that look at every token of the query, neighbours, and the update delta, against NumPy.

In layer 0, Q and K need no forward pass: Q is a projection of the query's embeddings, and the stored K come back from a
fetch that keeps everything and recomputes nothing. So which blocks must be kept can be said independently.
"""
import json
import tempfile
import unittest

import numpy as np

import models
from cases import comma, documents_jsonl
from harness import Daemon, enter

BLOCK, RATIO = 4, 0.3
PREAMBLE = [(37 * i + 13) % 251 for i in range(60)]     # enough that some heads attend to it
DOCUMENTS = {"a": [(11 * i + 5) % 251 for i in range(37)], "b": [(29 * i + 1) % 251 for i in range(50)],
             "c": [(53 * i + 17) % 251 for i in range(26)]}
QUERY = [13, 99, 41, 180]
TOTAL = sum(map(len, DOCUMENTS.values()))


def rotate(x, positions, theta):
    """RoPE on (tokens, heads, d), halves paired."""
    half = x.shape[-1] // 2
    angle = np.asarray(positions)[:, None, None] * theta ** (-np.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)


def queries(folder, tokens=QUERY):
    """(tokens, heads, d): Q of layer 0 after RoPE at the query's joint positions."""
    config = json.loads((folder / "config.json").read_text())
    w = models.load_safetensors(folder / "model.safetensors")
    h = w["model.embed_tokens.weight"][tokens].astype(np.float64)
    h *= w["model.layers.0.input_layernorm.weight"] / np.sqrt((h * h).mean(-1, keepdims=True) + config["rms_norm_eps"])
    q = h @ w["model.layers.0.self_attn.q_proj.weight"].T.astype(np.float64)
    heads = config["num_attention_heads"]
    return rotate(q.reshape(len(tokens), heads, -1), len(PREAMBLE) + TOTAL + np.arange(len(tokens)), config["rope_theta"])


def blocks():
    """(document, block, [tokens' places among all documents' tokens]) in order."""
    out, at = [], 0
    for i, tokens in enumerate(DOCUMENTS.values()):
        for first in range(0, len(tokens), BLOCK):
            out.append((i, first // BLOCK, list(range(at + first, at + min(first + BLOCK, len(tokens))))))
        at += len(tokens)
    return out


def masses(q, k, way):
    """A score a block. q (tokens, heads, d); k (preamble and documents, kv_heads, d), rotated."""
    group = q.shape[1] // k.shape[1]
    documents = k[len(PREAMBLE):]
    if way == "tokens":
        keys = np.stack([documents[places].mean(0) for _, _, places in blocks()])
        extra = np.log([len(places) for _, _, places in blocks()])
    else:
        keys, extra = k, np.zeros(len(k))
    rows = q[-1:] if way == "last" else q
    logits = np.einsum("thd,khd->thk", rows, np.repeat(keys, group, 1)) / np.sqrt(q.shape[-1]) + extra
    share = np.exp(logits - logits.max(-1, keepdims=True))
    share = (share / share.sum(-1, keepdims=True)).mean((0, 1))
    if way == "tokens":
        return share
    return np.array([share[len(PREAMBLE):][places].sum() for _, _, places in blocks()])


def masses_of_documents(q, k):
    """As EXACT would be without the preamble."""
    group = q.shape[1] // k.shape[1]
    logits = np.einsum("thd,khd->thk", q, np.repeat(k[len(PREAMBLE):], group, 1)) / np.sqrt(q.shape[-1])
    share = np.exp(logits - logits.max(-1, keepdims=True))
    share = (share / share.sum(-1, keepdims=True)).mean((0, 1))
    return np.array([share[places].sum() for _, _, places in blocks()])


def chosen(scores, neighbours="none"):
    """The blocks of each document that fill the budget, best first, as the daemon's selection fills it."""
    listed, kept = blocks(), set()
    room = int(np.ceil(RATIO * TOTAL - 1e-6))
    for b in sorted(range(len(listed)), key=lambda b: -scores[b]):
        if b in kept:
            continue
        if len(listed[b][2]) > room:
            break
        kept.add(b)
        room -= len(listed[b][2])
        for side in {"none": [], "left": [b - 1], "both": [b - 1, b + 1]}[neighbours]:
            if 0 <= side < len(listed) and listed[side][0] == listed[b][0] and side not in kept and \
                    len(listed[side][2]) <= room:
                kept.add(side)
                room -= len(listed[side][2])
    return [[listed[b][1] for b in sorted(kept) if listed[b][0] == i] for i in range(len(DOCUMENTS))]


class Scores(unittest.TestCase):
    device = "cpu"

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="samkv-models-")
        cls.addClassCleanup(cls.folder.cleanup)
        cls.model = models.make_model(cls.folder.name + "/llama", "llama")
        cls.daemon = enter(cls, Daemon({"llama": cls.model}, device=cls.device))
        said = cls.daemon.json("ingest", "-", "--block-size", BLOCK, "--init-tokens", BLOCK, "--local-tokens", BLOCK,
                               "--preamble-tokens", comma(PREAMBLE), text=documents_jsonl(DOCUMENTS))
        assert said["failed"] == 0, said
        _, everything = cls.fetch("--ratio", 1, "--no-recompute")
        cls.k = everything["k.0"].astype(np.float64)
        cls.q = queries(cls.model)

    @classmethod
    def fetch(cls, *arguments, documents=",".join(DOCUMENTS)):
        out = cls.daemon.folder / "out.safetensors"
        said = cls.daemon.json("fetch", "--docs", documents, "--query-tokens", comma(QUERY), "--selection", "fixed",
                               "--out", out, "--json", *arguments)
        return said, models.load_safetensors(out)

    def check(self, way, neighbours):
        said, _ = self.fetch("--ratio", RATIO, "--score", way, "--neighbours", neighbours, "--stable-layers", 0,
                             "--init-tokens", 0, "--local-tokens", 0)
        # In layer 0 the query's own Q does not depend on what its pass sees: attend is exact there.
        scores = masses(self.q, self.k, "exact" if way == "attend" else way)
        self.assertEqual(said["keep"], chosen(scores, neighbours))

    def test_tokens(self):
        self.check("tokens", "none")

    def test_exact(self):
        self.check("exact", "none")
        self.check("exact", "left")
        self.check("exact", "both")

    def test_last(self):
        self.check("last", "none")

    def test_attend(self):
        self.check("attend", "both")

    def test_long_queries(self):
        """Of a query of more than 256 tokens, the last 256 count, whatever chunks its pass has."""
        tokens = [(31 * i + 2) % 251 for i in range(600)]
        q = queries(self.model, tokens)[-256:]
        said = self.daemon.json("fetch", "--docs", ",".join(DOCUMENTS), "--query-tokens", comma(tokens), "--selection",
                                "fixed", "--ratio", RATIO, "--score", "exact", "--stable-layers", 0, "--init-tokens", 0,
                                "--local-tokens", 0, "--json", "--out", self.daemon.folder / "x")
        self.assertEqual(said["keep"], chosen(masses(q, self.k, "exact")))

    def test_scores_differ(self):
        """Else one of the tests above would prove nothing about the others' way."""
        kept = [json.dumps(chosen(masses(self.q, self.k, way))) for way in ("tokens", "exact", "last")]
        self.assertEqual(len(set(kept)), 3)

    def test_preamble_counts(self):
        """What heads give to the preamble they do not give to documents: the ranking is another one."""
        alone = masses_of_documents(self.q, self.k)
        self.assertNotEqual(chosen(masses(self.q, self.k, "exact")), chosen(alone))

    def test_attend_looks_further_down(self):
        """Behind layer 0 it matters what the query's pass saw."""
        arguments = ("--ratio", 0.5, "--stable-layers", 3, "--init-tokens", 0, "--local-tokens", 0)
        exact, _ = self.fetch("--score", "exact", *arguments)
        attend, _ = self.fetch("--score", "attend", *arguments)
        self.assertNotEqual(exact["keep"], attend["keep"])

    def test_what_is_read(self):
        said, _ = self.fetch("--ratio", RATIO, "--score", "tokens", "--stable-layers", 3)
        self.assertLess(said["kept_tokens"], TOTAL)
        self.assertEqual(said["total_tokens"], TOTAL)

    def assert_same(self, a, b):
        for name, values in a.items():
            self.assertLess(np.abs(values.astype(np.float64) - b[name]).max(), 2e-5, name)

    def test_delta_of_everything_is_a_prefill(self):
        """Nothing dropped: what a document's own recomputation gives is what is stored, and the rest is the joint one."""
        overwrite = self.fetch("--ratio", 1)[1]
        delta = self.fetch("--ratio", 1, "--update", "delta")[1]
        self.assert_same(overwrite, delta)
        reuse = self.fetch("--ratio", 1, "--no-recompute")[1]
        self.assertGreater(np.abs(reuse["v.3"] - delta["v.3"]).max(), 1e-2)

    def test_delta_alone_changes_nothing(self):
        """One document: no other one has anything to add, whatever is dropped."""
        arguments = ("--ratio", 0.5, "--stable-layers", 3)
        delta = self.fetch(*arguments, "--update", "delta", documents="b")[1]
        stored = self.fetch(*arguments, "--no-recompute", documents="b")[1]
        self.assert_same(stored, delta)
        overwrite = self.fetch(*arguments, documents="b")[1]
        self.assertGreater(np.abs(overwrite["v.3"] - delta["v.3"]).max(), 1e-3)

    def test_delta_is_dynamic_too(self):
        said = self.daemon.json("fetch", "--docs", "a,b,c", "--query-tokens", comma(QUERY), "--ratio", 0.6, "--update",
                                "delta", "--stable-layers", "1,3", "--json", "--out", self.daemon.folder / "x")
        self.assertAlmostEqual(said["recompute_ratio"], 2 * said["sequence_ratio"], places=6)

    def test_refused(self):
        for arguments in (("--score", "guess"), ("--neighbours", "right"), ("--update", "gamma")):
            done = self.daemon.ctl("fetch", "--docs", "a", "--query-tokens", "1", *arguments)
            self.assertEqual(done.returncode, 2)


class Discrete(Scores):
    """The same on a device with a memory of its own."""
    device = "cpu:discrete"


if __name__ == "__main__":
    unittest.main()
