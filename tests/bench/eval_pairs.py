#!/usr/bin/env python3
"""Differences of two variants over the same questions, from what `samkvctl eval --out` wrote.

    eval_pairs.py RESULTS.jsonl VARIANT OTHER..      e.g. "samkv 0.15" full "cacheblend+random 0.15"

Each line: mean of VARIANT - OTHER and 95 % of 2,000 bootstrap resamples of the questions, for F1 (ROUGE-L), the
log-likelihood of the right answer and KL. Pairs say more than two intervals beside each other: questions differ much
more than methods do.
"""
import json
import sys

import numpy as np


def read(path):
    lines = [json.loads(line) for line in open(path, encoding="utf-8")]
    return [{v["variant"]: v for v in line["variants"]} for line in lines if "variants" in line]


def difference(questions, a, b, measure, rng):
    x = np.array([q[a][measure] - q[b][measure] for q in questions if q[a].get(measure) is not None and
                  q[b].get(measure) is not None])
    means = [x[rng.integers(0, len(x), len(x))].mean() for _ in range(2000)]
    return "%.4f [%.4f, %.4f]" % (x.mean(), *np.percentile(means, [2.5, 97.5]))


def main():
    if len(sys.argv) < 4:
        print(__doc__, file=sys.stderr)
        return 2
    questions, mine = read(sys.argv[1]), sys.argv[2]
    for other in sys.argv[3:]:
        rng = np.random.default_rng(1)
        print("%s - %s, %d questions:" % (mine, other, len(questions)),
              *("%s %s" % (m, difference(questions, mine, other, m, rng)) for m in ("score", "log_likelihood", "kl")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
