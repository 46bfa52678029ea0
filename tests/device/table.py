#!/usr/bin/env python3
"""table.py FOLDER RESULTS: joins the JSON lines of a run in FOLDER into RESULTS and prints the short table."""
import json
import pathlib
import sys

folder = pathlib.Path(sys.argv[1])


def lines(name):
    path = folder / name
    return [json.loads(l) for l in path.read_text().splitlines() if l.startswith("{")] if path.exists() else []


bench, torch = lines("bench.jsonl"), lines("torch.jsonl")
steps = {l.split()[0]: int(l.split()[1]) for l in (folder / "steps").read_text().splitlines()}
pathlib.Path(sys.argv[2]).write_text(json.dumps(dict(steps=steps, bench=bench, torch=torch), indent=1))
print(f"{'operation':18}{'rows':>7}{'keys':>7}{'us':>10}{'floor':>10}{'share':>7}{'GB/s':>7}{'TFLOP/s':>9}")
for r in bench:
    print(f"{r['op']:18}{r['n']:>7}{r['keys']:>7}{r['us']:>10.1f}{r['floor_us']:>10.1f}{r['share']:>7.2f}{r['gb_s']:>7.0f}{r['tflop_s']:>9.1f}")
for r in torch:
    print(f"{r['op']:18}{r['n']:>7}" + (f"{r['keys']:>7}{r['us']:>10.1f}{'':>24}{r['tflop_s']:>9.1f}" if "us" in r else "  " + r["error"][:90]))
print("steps (0: passed):", steps)
