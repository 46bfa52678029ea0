"""usage: make_golden.py REFERENCE.py   writes tests/data/golden anew.

REFERENCE.py is the algorithm as plain NumPy (its Model class and its fetch function); it is not part of this project.
For every family of models this runs cases through it in float64 and keeps what a fetch has to return: the decisions
exactly, K, V and logits rounded to 16 bits of mantissa (8e-6, far below the tolerance of 1e-4). A case whose decision
hangs on rounding is replaced by another one.
"""
import argparse
import importlib.util
import json
import pathlib
import tempfile

import numpy as np

import cases
import models
from harness import DATA

PER_FAMILY = 5
MAX_ROWS = 70

# Corners that random cases may miss, each run on one family.
CORNERS = [
    ("llama", {"docs": [1, 1, 1], "preamble": 0, "query": 1, "block_size": 16}, {}),
    ("llama", {"docs": [5, 70, 9], "preamble": 3, "block_size": 8}, {"ratio": 1.0, "selection": "fixed",
                                                                      "stable_layers": [3], "with_query": True}),
    ("tied", {"docs": [40], "preamble": 6, "block_size": 64}, {"recompute": False, "with_query": True}),
    ("qwen2", {"docs": [90, 33, 64], "block_size": 8, "local_tokens": 16},
     {"ratio": 0.4, "stable_layers": [2, 3], "update": "cosine", "selection": "dynamic"}),
    ("qwen3", {"docs": [30] * 12, "block_size": 3, "init_tokens": 3, "local_tokens": 3},
     {"ratio": 0.3, "init_tokens": 1, "local_tokens": 1, "selection": "dynamic", "positions": "compact"}),
    ("mha", {"docs": [64, 65, 63], "block_size": 1, "local_tokens": 4},
     {"ratio": 0.25, "init_tokens": 0, "local_tokens": 4, "selection": "dynamic", "stable_layers": [0, 1, 2, 3]}),
    ("scaled", {"docs": [200, 150], "block_size": 8, "preamble": 9},
     {"ratio": 0.2, "init_tokens": 8, "local_tokens": 8, "selection": "fixed", "positions": "original"}),
]


def load_reference(path):
    spec = importlib.util.spec_from_file_location("reference", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def corner(rng, family, sizes, params):
    case = cases.random_case(rng, family, small=True)
    for name in ("preamble", "query"):
        if name in sizes:
            case[name] = cases.tokens(rng, sizes[name])
    case["docs"] = [cases.tokens(rng, n) for n in sizes["docs"]]
    case.update({name: sizes[name] for name in ("block_size", "init_tokens", "local_tokens") if name in sizes})
    case["params"].update(params)
    return case


class Reference:
    """The reference over the families' models, in float64, float32, and with weights moved by a rounding's worth.

    rounding: relative, of the numbers that the implementation computes with. Half types round every activation too, so
    their decisions are tried with several such weights.
    """

    def __init__(self, module, folder, rounding=1e-6, tries=1):
        self.module, self.models = module, {}
        for family in models.FAMILIES:
            path = models.make_model(pathlib.Path(folder) / family, family)
            self.models[family] = [module.Model(path, np.float64), module.Model(path, np.float32)]
            for number in range(tries):
                nudged, sign = module.Model(path, np.float64), np.random.default_rng(number)
                for name, values in nudged.w.items():
                    nudged.w[name] = values * (1 + rounding * sign.choice([-1, 1], values.shape))
                self.models[family].append(nudged)
        self.top_p_tolerance = 100 * rounding

    def fetch(self, case):
        """(result in float64, whether the decision stays the same under rounding)"""
        return self.fetch_and_moves(case)[:2]

    def fetch_and_moves(self, case):
        """And what one rounding of every weight makes of it at most: {"logits": relative error, "top_p": difference}."""
        results = [self.module.fetch(m, case["preamble"], case["docs"], case["query"], cases.reference_params(case))
                   for m in self.models[case["family"]]]
        moves = {"top_p": max(np.abs(np.subtract(r["info"]["top_p"], results[0]["info"]["top_p"])).max(initial=0)
                              for r in results[2:]), "logits": 0.0}
        if results[0]["logits"] is not None:
            moves["logits"] = max(cases.relative_error(r["logits"], results[0]["logits"]) for r in results[2:])
        decisions = [(r["info"]["keep"], r["info"]["recompute_ratio"]) for r in results]
        tight = all(np.allclose(r["info"]["top_p"], results[0]["info"]["top_p"], atol=self.top_p_tolerance)
                    for r in results)
        return results[0], tight and all(d == decisions[0] for d in decisions), moves


def shorten(values):
    """float32 with the low 8 bits of the mantissa rounded away: what compresses, and nothing a test could miss."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + np.uint32(0x80)) & np.uint32(0xFFFFFF00)).view(np.float32)


def collect(reference):
    rng, out = cases.seeded(20), {family: [] for family in models.FAMILIES}

    def take(make, max_rows):
        while True:
            case = make()
            if sum(map(len, case["docs"])) > 4 * max_rows:
                continue
            result, stable = reference.fetch(case)
            if stable and len(result["pos"]) <= max_rows:
                out[case["family"]].append((case, result))
                return

    for family, sizes, params in CORNERS:
        take(lambda: corner(rng, family, sizes, params), max_rows=400)
    for family, taken in out.items():
        while len(taken) < PER_FAMILY + sum(family == c[0] for c in CORNERS):
            take(lambda: cases.random_case(rng, family, small=True), max_rows=MAX_ROWS)
    return out


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("reference")
    module = load_reference(arguments.parse_args().reference)
    golden = DATA / "golden"
    golden.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        collected = collect(Reference(module, folder))
    for family, taken in collected.items():
        described, arrays = [], {}
        for number, (case, result) in enumerate(taken):
            described.append({"case": case, "info": result["info"]})
            for name, values in cases.expected_tensors(result).items():
                values = values.astype(np.int16) if values.dtype == np.int32 else shorten(values)
                arrays["%d.%s" % (number, name)] = values
        (golden / (family + ".json")).write_text("[\n" + ",\n".join(map(json.dumps, described)) + "\n]\n")
        np.savez_compressed(golden / (family + ".npz"), **arrays)
        rows = sum(len(r["pos"]) for _, r in taken)
        size = (golden / (family + ".npz")).stat().st_size
        print("%-8s %2d cases %4d rows %7d bytes" % (family, len(taken), rows, size))


if __name__ == "__main__":
    main()
