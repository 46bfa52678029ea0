"""Fetches to compare with the reference: random ones over everything that a request may say, and how one is run.

A case is plain data: {"family", "preamble", "docs", "query" (token ids), "block_size", "init_tokens", "local_tokens"
(the collection's) and "params" (the fetch's own, in the reference's words)}.
"""
import random

import numpy as np

from harness import comma, documents_jsonl
from models import FAMILIES, VOCABULARY, load_safetensors

LAYERS = 4                 # of the models that cases run on
MAX_RELATIVE_ERROR = 1e-4  # ‖a − b‖ / ‖b‖ of every K and V tensor
TOP_P_TOLERANCE = 1e-3     # top-P is a quotient of differences of scores


def tokens(rng, count):
    return [rng.randrange(3, VOCABULARY) for _ in range(count)]


def random_case(rng, family=None, small=False):
    """small: sizes that keep stored results small. Everything else may be anything a request can say."""
    block_size = rng.choice([1, 3, 8, 16, 64] if not small else [1, 3, 8, 8, 16])
    count = rng.choice([1, 2, 3, 3, 4, 5, 7, 12] if not small else [1, 2, 3, 4])
    longest = (60 if small else 400) // (1 + count // 5)
    lengths = [rng.choice([1, 2, rng.randint(3, 20), rng.randint(10, longest), rng.randint(10, longest)])
               for _ in range(count)]
    collection_local = rng.choice([1, 5, 8, 16])
    stable = rng.choice([[LAYERS - 1], [LAYERS - 2, LAYERS - 1], [0], [1, 2], [0, LAYERS - 1]])
    params = {
        "init_tokens": rng.choice([0, 1, 4, 7, 8, 16]),
        "local_tokens": rng.choice([1, 4, 7, 8, 16, collection_local]),
        "stable_layers": stable,
        "ratio": rng.choice([0.15, 0.3, 0.5, 0.7, 1.0]),
        "selection": rng.choice(["dynamic", "fixed"]),
        "update": rng.choice(["overwrite", "cosine", 0.0, 0.3, 1.0]),
        "recompute": rng.random() < 0.85,
        "positions": rng.choice(["original", "compact"]),
        "with_query": rng.random() < 0.4,
    }
    if params["init_tokens"] and rng.random() < 0.1:
        params["local_tokens"] = 0    # anchors at the front only
    return {"family": family or rng.choice(sorted(FAMILIES)),
            "preamble": tokens(rng, rng.choice([0, 1, 5, 17])),
            "docs": [tokens(rng, n) for n in lengths], "query": tokens(rng, rng.choice([1, 2, 7, 19])),
            "block_size": block_size, "init_tokens": rng.choice([0, 1, 8, 16]), "local_tokens": collection_local,
            "params": params}


def reference_params(case):
    """What the reference's fetch wants to know besides the tokens."""
    return dict(case["params"], block_size=case["block_size"], collection_local_tokens=case["local_tokens"])


def fetch_arguments(case, collection, ids):
    p = case["params"]
    out = ["fetch", "--collection", collection, "--docs", ",".join(ids), "--query-tokens", comma(case["query"]),
           "--ratio", p["ratio"], "--selection", p["selection"], "--stable-layers", comma(p["stable_layers"]),
           "--init-tokens", p["init_tokens"], "--local-tokens", p["local_tokens"], "--update", p["update"],
           "--positions", p["positions"]]
    out += [] if p["recompute"] else ["--no-recompute"]
    out += ["--with-query"] if p["with_query"] else []
    return out


def run_case(daemon, case, collection, twice=True):
    """Ingests and fetches through the command line. Returns (what --json said, the tensors).

    Where there is device memory, the reply that stays there must have the same bytes.
    """
    ids = ["d%d" % i for i in range(len(case["docs"]))]
    arguments = ["ingest", "-", "--model", case["family"], "--collection", collection,
                 "--block-size", case["block_size"], "--init-tokens", case["init_tokens"],
                 "--local-tokens", case["local_tokens"]]
    if case["preamble"]:
        arguments += ["--preamble-tokens", comma(case["preamble"])]
    said = daemon.json(*arguments, text=documents_jsonl(dict(zip(ids, case["docs"]))))
    assert said["failed"] == 0, said
    out = daemon.folder / "out.safetensors"
    info = daemon.json(*fetch_arguments(case, collection, ids), "--out", out)
    first = out.read_bytes()
    for placement in (["host"] if daemon.device == "cpu" else ["host", "device"]) if twice else []:
        daemon.json(*fetch_arguments(case, collection, ids), "--out", out, "--placement", placement)
        assert out.read_bytes() == first, "the same request gave other bytes in %s memory" % placement
    return info, load_safetensors(out)


def relative_error(a, b):
    """‖a − b‖ / ‖b‖; NaN and infinities count as infinitely wrong."""
    if a.shape != b.shape or not np.isfinite(a).all():
        return np.inf
    scale = np.linalg.norm(b.astype(np.float64))
    error = np.linalg.norm(a.astype(np.float64) - b.astype(np.float64))
    return float(error / scale) if scale > 0 else float(error)


def differences(info, tensors, expected_info, expected, max_error=MAX_RELATIVE_ERROR, top_p_tolerance=TOP_P_TOLERANCE,
                max_logits_error=None):
    """Every way in which a fetch differs from what was expected, as lines; the largest relative error seen of K and V,
    and of the logits too where they have no bound of their own."""
    bad, worst = [], 0.0
    for mine, theirs in (("keep", "keep"), ("kept_tokens", "kept"), ("total_tokens", "total"),
                         ("stable_layers", "stable_layers")):
        if info[mine] != expected_info[theirs]:
            bad.append("%s: %s, expected %s" % (mine, info[mine], expected_info[theirs]))
    for name in ("sequence_ratio", "recompute_ratio"):
        if not abs(info[name] - expected_info[name]) <= 1e-6:
            bad.append("%s: %s, expected %s" % (name, info[name], expected_info[name]))
    if not np.allclose(info["top_p"], expected_info["top_p"], rtol=0, atol=top_p_tolerance):
        bad.append("top_p: %s, expected %s" % (info["top_p"], expected_info["top_p"]))
    if bad:
        return bad, np.inf
    for name in ("tokens", "doc", "index", "position"):
        if not np.array_equal(tensors[name], expected[name]):
            bad.append("%s differs" % name)
    for name in sorted(set(expected) - {"tokens", "doc", "index", "position"}):
        if name not in tensors:
            bad.append("%s is missing" % name)
            continue
        error = relative_error(tensors[name], expected[name])
        apart = name == "logits" and max_logits_error is not None
        worst = worst if apart else max(worst, error)
        if not error <= (max_logits_error if apart else max_error):
            bad.append("%s: relative error %.3g" % (name, error))
    if "logits" in tensors and "logits" not in expected:
        bad.append("logits without --with-query")
    return bad, worst


def expected_tensors(reference):
    """The reference's result under the names of the file that `samkvctl fetch --out` writes."""
    out = {"tokens": reference["ids"], "doc": reference["doc"], "index": reference["idx"], "position": reference["pos"]}
    out = {name: np.asarray(values).astype(np.int32) for name, values in out.items()}
    for layer, (k, v) in enumerate(zip(reference["K"], reference["V"])):
        out["k.%d" % layer], out["v.%d" % layer] = k, v
    if reference["logits"] is not None:
        out["logits"] = reference["logits"]
    return out


def seeded(seed):
    return random.Random(seed)
