#!/usr/bin/env python3
"""Logits of tiny random models of every family beside Hugging Face transformers (float32, CPU), and beside llama.cpp for
their GGUF files.

    SAMKV_BIN=build/release/bin compare_logits.py [--seeds 3] [--no-llama] [--store]

Needs torch and transformers, and gguf and llama-cpp-python unless --no-llama. --store writes what test_logits.py checks
without these packages. Exit code 1 when a distance is above 1e-4 (of the largest logit; llama.cpp's own matrix products
round differently: 1e-3).
"""
import argparse
import json
import pathlib
import sys
import tempfile

import numpy as np

import logits
import models
from harness import ROOT


def of_transformers(path, texts):
    import torch
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return np.stack([model(torch.tensor(text[None].astype(np.int64))).logits[0, -1].numpy() for text in texts])


def of_llama_cpp(path, texts):
    from llama_context import F32, Context
    out = []
    for text in texts:
        with Context(str(path), F32, F32, False) as context:
            out.append(context.decode(text, 0))
    return np.stack(out)


def split_gguf(path, parts=3):
    """The same tensors over several files, as gguf-split writes them; the first one's path."""
    import gguf
    reader = gguf.GGUFReader(path)
    stem = str(path)[:-len(".gguf")]
    for part in range(parts):
        mine = reader.tensors[part::parts]
        w = gguf.GGUFWriter("%s-%05d-of-%05d.gguf" % (stem, part + 1, parts), "llama")
        if part == 0:
            for field in reader.fields.values():
                if not field.name.startswith("GGUF.") and field.name != "general.architecture":
                    kind, value = field.types[0], field.contents()
                    w.add_key_value(field.name, value, kind, *field.types[1:])
            w.kv_data[0]["general.architecture"] = gguf.GGUFValue(
                reader.fields["general.architecture"].contents(), gguf.GGUFValueType.STRING)
        w.add_uint16("split.no", part)
        w.add_uint16("split.count", parts)
        w.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in mine:
            w.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.write_tensors_to_file()
        w.close()
    return "%s-%05d-of-%05d.gguf" % (stem, 1, parts)


def compare(folder, family, seed, llama):
    """One line: distances, and transformers' logits."""
    texts, rows = logits.prompts(), []
    path = models.make_model(folder / family, family, seed=seed)
    wanted = of_transformers(path, texts)
    rows.append(("directory", logits.distance(logits.ours(path, texts), wanted), 1e-4))
    if llama:
        import engines
        file = folder / (family + ".gguf")
        tokens = ["a", "b", "ab"] + ["t%d" % i for i in range(3, models.VOCABULARY)]
        engines.write_gguf(json.loads((path / "config.json").read_text()), path, file, tokens)
        rows.append(("gguf", logits.distance(logits.ours(file, texts), wanted), 1e-4))
        rows.append(("split gguf", logits.distance(logits.ours(split_gguf(file), texts), wanted), 1e-4))
        if family != "yarn3":   # llama.cpp reads YaRN's betas for a few architectures only, and takes 32 and 1
            rows.append(("llama.cpp", logits.distance(logits.ours(file, texts), of_llama_cpp(file, texts)), 1e-3))
    print("%-10s seed %d  %s" % (family, seed, "  ".join("%s %.1e" % row[:2] for row in rows)), flush=True)
    return all(row[1] <= row[2] for row in rows), wanted


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--no-llama", action="store_true")
    parser.add_argument("--store", action="store_true")
    parser.add_argument("--family")
    args = parser.parse_args()
    families = [args.family] if args.family else sorted({**models.FAMILIES, **models.MORE_FAMILIES})
    good, kept = True, {}
    with tempfile.TemporaryDirectory(prefix="samkv-logits-") as folder:
        for family in families:
            for seed in range(1, args.seeds + 1):
                fine, wanted = compare(pathlib.Path(folder), family, seed, not args.no_llama)
                good &= fine
                if seed == 1:
                    kept[family] = wanted.astype(np.float32)
    if args.store and good:
        np.savez_compressed(ROOT / "tests" / "data" / "logits.npz", **kept)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
