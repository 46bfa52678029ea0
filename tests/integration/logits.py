"""Logits of tiny models by tests/logits_tool, and the prompts for which tests/data/logits.npz keeps transformers' own."""
import os
import subprocess

import numpy as np

import cases
from harness import BIN

TOOL = BIN.parent / "tests" / "logits_tool"
LENGTHS = (1, 17, 64, 250)


def prompts(seed=5):
    rng = cases.seeded(seed)
    return [np.array(cases.tokens(rng, n), np.int32) for n in LENGTHS]


def ours(path, texts, *options, isa=None):
    """(texts, vocabulary) logits behind each text's last token. isa: a lesser instruction set than this CPU's best."""
    environment = dict(os.environ, SAMKV_CPU_ISA=isa) if isa else None
    run = subprocess.run([TOOL, *options, str(path)] + [str(len(text)) for text in texts], stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, input=b"".join(text.tobytes() for text in texts), env=environment)
    if run.returncode:
        raise RuntimeError(run.stderr.decode())
    if isa and ("cpu (%s," % isa).encode() not in run.stderr:
        return None     # the CPU lacks it
    return np.frombuffer(run.stdout, np.float32).reshape(len(texts), -1)


def distance(a, b):
    """The largest difference, in units of the largest logit of each text."""
    worst = (np.abs(a - b).max(1) / np.abs(b).max(1)).max()
    return float(worst) if np.isfinite(a).all() else float("inf")
