"""usage: compare_oracle.py REFERENCE.py [--cases N] [--seed N] [--family NAME] [--device cuda --dtype bf16]

Many random fetches against the reference itself (see make_golden.py), for who has it. Not part of ctest: it takes
minutes and needs a file from outside. A decision that differs counts as a failure unless the reference's own decision
changes under rounding (float32 instead of float64, or weights moved by 1e-6). In a half type, K and V may differ by
MAX_ERROR of it, and weights are moved by as much as one rounding of an activation, in several ways. Logits and top-P of
some cases (a few tokens in all) depend on the weights more than K and V do: they may differ by MAX_ERROR or by as much
as the reference's own move when each of its weights is rounded once, whichever is more.
"""
import argparse
import json
import pathlib
import sys
import tempfile


import cases
import make_golden
import models
from harness import Daemon


# Relative error of a K or V tensor behind four layers, and one rounding of a number.
MAX_ERROR = {"f32": cases.MAX_RELATIVE_ERROR, "bf16": 0.05, "f16": 0.008}
ROUNDING = {"f32": 1e-6, "bf16": 2.0**-8, "f16": 2.0**-11}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference")
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--family", choices=sorted(models.FAMILIES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=sorted(MAX_ERROR), default="f32")
    o = parser.parse_args()
    rng, worst, failed, near_ties, logits = cases.seeded(o.seed), 0.0, 0, 0, (0.0, 0.0, None)
    with tempfile.TemporaryDirectory() as folder:
        reference = make_golden.Reference(make_golden.load_reference(o.reference), folder, ROUNDING[o.dtype],
                                          tries=1 if o.dtype == "f32" else 6)
        paths = {family: pathlib.Path(folder) / family for family in models.FAMILIES}
        half = o.dtype != "f32"
        with Daemon(paths, device=o.device, dtype=o.dtype) as daemon:
            for number in range(o.cases):
                case = cases.random_case(rng, o.family)
                result, stable, moves = reference.fetch_and_moves(case)
                info, tensors = cases.run_case(daemon, case, "c%d" % number)
                bad, error = cases.differences(info, tensors, result["info"], cases.expected_tensors(result),
                                               MAX_ERROR[o.dtype],
                                               cases.TOP_P_TOLERANCE + (2 * moves["top_p"] if half else 0),
                                               max(MAX_ERROR[o.dtype], moves["logits"]) if half else None)
                if "logits" in tensors and result["logits"] is not None:
                    error_of_logits = cases.relative_error(tensors["logits"], result["logits"])
                    logits = max(logits, (error_of_logits, moves["logits"], number))
                if bad and not stable:
                    near_ties += 1
                elif bad:
                    failed += 1
                    print("case %d differs: %s" % (number, "; ".join(bad)[:500]))
                    print("   ", json.dumps({k: v for k, v in case.items() if k not in ("docs", "query", "preamble")}),
                          "documents", [len(d) for d in case["docs"]])
                else:
                    worst = max(worst, error)
    print("%d cases: %d differ, %d near ties decided otherwise, largest relative error %.3g"
          % (o.cases, failed, near_ties, worst))
    if logits[2] is not None:
        print("logits: largest relative error %.3g, where rounding each weight once moves the reference by %.3g (case %d)"
              % logits)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
