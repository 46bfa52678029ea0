#!/usr/bin/env python3
"""Compares our token ids with those of the Python package `tokenizers` over files and over nasty random text.

    compare_tokenizers.py --tool build/release/tests/tokenize_tool [--random 10000] [--seed 1] [--codepoints]
        TOKENIZER... [-- TEXT...]

TOKENIZER is a tokenizer.json, or a .gguf whose metadata is turned into one (needs the package `gguf`); TEXT are text or
.jsonl files (every string in every line is a text). The last lines are a table of counts: texts whose ids differ, whose
decoded text differs, and whose decoded text is not what went in where the scheme promises that (after the normaliser,
and for ids that were encoded without added tokens). Exit code 1 when any does.
"""
import argparse
import json
import os
import random
import struct
import subprocess
import sys

os.environ.setdefault("RAYON_NUM_THREADS", "1")

from tokenizers import Tokenizer   # noqa: E402

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
SPECIAL, BOS = 1, 2


def split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def gguf_as_json(path):
    """The tokenizer.json that a byte-level GGUF file's metadata amounts to."""
    from gguf import GGUFReader
    fields = GGUFReader(path).fields
    value = lambda key: fields["tokenizer.ggml." + key].contents()
    pre = value("pre")
    stages = {"smollm": [{"type": "Digits", "individual_digits": True}, split(GPT2)],
              "llama-bpe": [split(LLAMA3 % r"\p{N}{1,3}")],
              "qwen2": [split(LLAMA3 % r"\p{N}")],
              "gpt-2": [split(GPT2)]}[pre]
    stages.append({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False})
    tokens, types = value("tokens"), value("token_type")
    added = [{"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": types[i] in (2, 3)} for i, token in enumerate(tokens) if types[i] in (2, 3, 4)]
    return json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": stages}, "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                  "ignore_merges": pre == "llama-bpe", "vocab": {token: i for i, token in enumerate(tokens)},
                  "merges": value("merges")}})


def ours(tool, path, flags, texts):
    """[(status, ids, decoded bytes)] of each text (bytes)."""
    packed = b"".join(struct.pack("=I", len(text)) + text for text in texts)
    out = subprocess.run([tool, path, str(flags)], input=packed, stdout=subprocess.PIPE, check=True).stdout
    at, answers = 0, []
    for _ in texts:
        status, count = struct.unpack_from("=II", out, at)
        ids = list(struct.unpack_from("=%di" % count, out, at + 8))
        at += 8 + 4 * count
        length, = struct.unpack_from("=I", out, at)
        answers.append((status, ids, out[at + 4:at + 4 + length]))
        at += 4 + length
    return answers


def strings(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)


def read_texts(path):
    with open(path, "rb") as file:
        data = file.read()
    if path.endswith(".jsonl"):
        return [text.encode() for line in data.splitlines() if line.strip() for text in strings(json.loads(line))]
    return [data]


POOLS = [
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789", " ",
    " \t\n\r\x0b\x0c\x85\xa0\u2003\u3000\u180e\ufeff",
    "\n", "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", "áéíóúñçàèßøåÿİıſK", "的一是不了人我在有他这为之大来以个中上们", "日本語テキストカナひらがなゞヾ",
    "กขคงจฉชซ็่้๊๋ะาิีึื", "हिन्दीक्षत्रज्ञ़ािीुूेैोौ्", "العربيةًٌٍَُِّْٰ", "한국어텍스트각갂힣ᄀ까ᅢᆨᆩ", "😀👍🏽👨‍👩‍👧‍👦🇫🇷❤️‍🔥",
    "\u0300\u0301\u0327\u0323\u0345\u0338\u20d0\u0334\u05b0\u3099\u309a", "①②Ⅷ½٣४五𝟘𝐀🄰ⓐ",
    "\u200b\u200c\u200d\u2060\u00ad\ufffd\ufffe\U000e0001\U0010ffff\x00\x01\x7f",
    "\uac00\uac01\u1100\u1161\u11a7\u11a8\u11c2\u11c3", "ﬁﬂﬆŉǰΐᾼΩÅｶﾞ㍿ﷺ", "'",
]
WORDS = ["'s", "'S", "'ſ", "'re", "'LL", "don't", "I'VE", " ", "  ", "\n\n", "\r\n", "\u2581", "<0x0A>", "Ġ", "▁▁",
         "http://", "1234567", "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<|endoftext|>",
         "<|begin_of_text|>", "<|eot_id|>", "<think>", "</think>", "<tool_call>", "<|", "|>", "<|fim_prefix|>", "<|fim_",
         "repo_name", "<repo_name>", "\t\t", "    ", "if (x) {\n\treturn;\n}\n"]


def random_text(rng, tokens):
    parts = []
    for _ in range(rng.randint(0, 24)):
        kind = rng.random()
        if kind < 0.5:
            pool = rng.choice(POOLS)
            parts.append("".join(rng.choice(pool) for _ in range(rng.choice([1, 1, 2, 3, 5, 8, 60]))))
        elif kind < 0.7:
            parts.append(rng.choice(WORDS))
        elif kind < 0.8:
            parts.append(rng.choice(tokens))
        elif kind < 0.9:
            parts.append(chr(rng.choice([rng.randrange(0x20, 0x3000), rng.randrange(0xE000, 0x110000)])))
        else:
            parts.append(rng.choice("a \n'1-é中") * rng.randint(1, 40))
    return "".join(parts).encode()


def random_bytes(rng):
    data = bytearray(random_text(rng, ["x"]))
    for _ in range(rng.randint(1, 6)):
        at = rng.randint(0, len(data))
        data[at:at] = bytes(rng.randrange(0x80, 0x100) for _ in range(rng.randint(1, 3)))
    return bytes(data)


def all_codepoints():
    """Every character alone, behind letters, spaces, apostrophes and digits."""
    for start in range(0, 0x110000, 16):
        chars = [chr(c) for c in range(start, start + 16) if not 0xD800 <= c < 0xE000]
        if chars:
            yield "".join("a%s'%s %s1%s\n%sA%s%s\u0301. " % (c, c, c, c, c, c, c) for c in chars).encode()


def promised(reference):
    """The form of a text in which what went in and what comes back are equal, for ids encoded without special tokens:
    normalised (added tokens are cut out before), or for Llama 2 with a space for each U+2581."""
    normalizer = reference.normalizer
    if normalizer is None:
        return lambda text: text
    if "▁" in normalizer.normalize_str("a b"):
        return lambda text: text.replace("▁", " ")
    return normalizer.normalize_str


def missing_bytes(reference):
    """Bytes that a byte-level vocabulary has no token for (SmolLM2's lacks some that begin rare characters): texts with
    one lose it."""
    if reference.normalizer is not None and "▁" in reference.normalizer.normalize_str("a b"):
        return set()
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    letters = {**{byte: chr(byte) for byte in plain}, **{byte: chr(256 + i) for i, byte in enumerate(others)}}
    return {byte for byte, letter in letters.items() if reference.token_to_id(letter) is None}


def differences(answers, texts, reference, flags, want):
    """(ids differ, decoded differs, not what went in, tokens) over a batch of texts."""
    differ = wrong = lost = tokens = 0
    promise, missing = promised(reference), missing_bytes(reference)
    for text, (status, ids, decoded), encoding in zip(texts, answers, want):
        clean, decoded = text.decode("utf-8", "replace"), decoded.decode("utf-8", "replace")
        tokens += len(encoding.ids)
        if status or ids != encoding.ids:
            differ += 1
            first = next((i for i, (a, b) in enumerate(zip(ids, encoding.ids)) if a != b),
                         min(len(ids), len(encoding.ids)))
            print("  differs (status %d) at token %d: %r\n    ours %s\n    want %s" % (
                status, first, clean[:300], ids[first:first + 8], encoding.ids[first:first + 8]))
        elif decoded != reference.decode(encoding.ids, skip_special_tokens=False):
            wrong += 1
            print("  decodes differently: %r" % clean[:200])
        elif flags == 0 and promise(decoded) != promise(clean) and not missing.intersection(clean.encode()):
            lost += 1
            print("  is not what went in: %r" % clean[:200])
    return differ, wrong, lost, tokens


def compare(tool, path, reference, flags, texts, name):
    """One line of the table."""
    reference.encode_special_tokens = not flags & SPECIAL
    counts, step = [0, 0, 0, 0], 10000
    for first in range(0, len(texts), step):
        part = texts[first:first + step]
        want = reference.encode_batch([text.decode("utf-8", "replace") for text in part],
                                      add_special_tokens=bool(flags & BOS))
        found = differences(ours(tool, path, flags, part), part, reference, flags, want)
        counts = [a + b for a, b in zip(counts, found)]
        if sum(counts[:3]) > 20:
            break
    row = (name, {0: "plain", SPECIAL: "special", SPECIAL | BOS: "special, BOS"}[flags], len(texts),
           sum(map(len, texts)), counts[3], *counts[:3])
    print("  " + "  ".join(map(str, row)), flush=True)
    return row


def print_table(rows):
    head = ("texts", "tokenizer", "encoded", "count", "bytes", "tokens", "ids differ", "decode differs", "not restored")
    rows = [head] + [(row[1], row[0]) + row[2:] for row in rows]
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(head))]
    for row in rows:
        print("  ".join(str(value).ljust(width) if i < 3 else str(value).rjust(width)
                        for i, (value, width) in enumerate(zip(row, widths))))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tool", required=True)
    parser.add_argument("--random", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--codepoints", action="store_true", help="also every Unicode character in several places")
    parser.add_argument("tokenizer", nargs="+")
    own, texts = sys.argv[1:], []
    if "--" in own:
        own, texts = own[:own.index("--")], own[own.index("--") + 1:]
    args = parser.parse_args(own)
    rows = []
    for path in args.tokenizer:
        folder = os.path.basename(os.path.dirname(path))
        label = os.path.basename(path) if path.endswith(".gguf") else folder

        def add(flags, some, name):
            rows.append((label,) + compare(args.tool, path, reference, flags, some, name))

        print(path)
        reference = (Tokenizer.from_str(gguf_as_json(path)) if path.endswith(".gguf") else Tokenizer.from_file(path))
        for text in texts:
            for flags in (0, SPECIAL | BOS):
                add(flags, read_texts(text), text.split("/")[-1])
        rng = random.Random(args.seed)
        vocabulary = sorted(reference.get_vocab())
        random_texts = [random_text(rng, vocabulary) for _ in range(args.random)]
        for flags in (0, SPECIAL | BOS):
            add(flags, random_texts, "random text")
        add(SPECIAL, [random_bytes(rng) for _ in range(args.random)], "random bytes")
        if args.codepoints:
            add(0, list(all_codepoints()), "every character")
    print_table(rows)
    return 1 if any(sum(row[-3:]) for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
