#!/usr/bin/env python3
"""Writes tests/data/tokenizer_cases.json: small tokenizers of every kind we support, texts, and the ids
and the decoded text that the Python package `tokenizers` gives for them.

    make_tokenizer_cases.py OUT
"""
import json
import random
import sys

from tokenizers import Tokenizer

SPECIAL, BOS = 1, 2
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")


def alphabet():
    """GPT-2's character for each byte."""
    spare = iter(range(256, 512))
    return [chr(b) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174 else chr(next(spare)) for b in range(256)]


def byte_level_model(ignore_merges, pairs):
    merges = ["Ġ t", "h e", "Ġt he", "i n", "in g", "Ġ s", "' s", "Ġ Ġ", "ĠĠ ĠĠ", "b c", "a b", "ab c", "a bc", "Ã ©",
              "Ċ Ċ", "1 2", "12 3", "a a", "aa aa", "c a", "b a"]
    words = ["Ġt", "he", "Ġthe", "in", "ing", "Ġs", "'s", "ĠĠ", "ĠĠĠĠ", "ab", "abc", "bc", "Ã©", "ĊĊ", "12", "123",
             "Ġdirect", "aa", "aaaa", "ca", "ba"]
    return {"type": "BPE", "unk_token": None, "ignore_merges": ignore_merges,
            "vocab": {token: i for i, token in enumerate(alphabet() + words)},
            "merges": [merge.split() for merge in merges] if pairs else merges}


def piece_model(byte_fallback, fuse_unk):
    tokens = ["<unk>", "<s>", "</s>"] + (["<0x%02X>" % b for b in range(256)] if byte_fallback else [])
    tokens += ["▁", "a", "b", "c", "h", "e", "l", "o", "é", "中", "<", "s", "▁▁", "▁▁▁▁",
               "▁h", "he", "ll", "hell", "▁hell", "llo",
               "▁hello", "ab", "▁a", "▁ab", "bb", "<s"]
    return {"type": "BPE", "dropout": None, "unk_token": "<unk>", "fuse_unk": fuse_unk, "byte_fallback": byte_fallback,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": ["h e", "l l", "▁ ▁", "▁▁ ▁▁", "he ll", "▁ hell", "ll o", "▁hell o", "a b",
                       "▁ a", "▁a b", "▁ ab", "b b",
                       "▁ h", "< s"]}


def tangled_model():
    """Many overlapping merges over two letters, so that long words keep changing their minds."""
    rng, tokens, merges = random.Random(9), ["a", "b"], []
    while len(merges) < 40:
        left, right = rng.choice(tokens), rng.choice(tokens)
        if len(left + right) <= 4 and "%s %s" % (left, right) not in merges:
            merges.append("%s %s" % (left, right))
            tokens += [left + right] if left + right not in tokens else []
    rng.shuffle(merges)
    return {"type": "BPE", "vocab": {token: i for i, token in enumerate(tokens)}, "merges": merges}


MODELS = {"tangled": tangled_model(), "bytes": byte_level_model(False, True), "whole": byte_level_model(True, False),
          "pieces": piece_model(True, True), "unfused": piece_model(False, False), "fused": piece_model(False, True)}


def added(number, content, special=False, **flags):
    return dict({"id": number, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
                 "normalized": False, "special": special}, **flags)


def sequence(*stages):
    return {"type": "Sequence", "pretokenizers": list(stages)}


def split(pattern, behavior="Isolated", invert=False):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}


def byte_level(use_regex, add_prefix_space=False):
    return {"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": True, "use_regex": use_regex}


def template(token, number):
    return {"type": "TemplateProcessing", "pair": [],
            "single": [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}}}


def tokenizer(model, pre_tokenizer=None, normalizer=None, post_processor=None, decoder=None, added_tokens=()):
    return {"version": "1.0", "added_tokens": list(added_tokens), "normalizer": normalizer, "decoder": decoder,
            "pre_tokenizer": pre_tokenizer, "post_processor": post_processor, "model": model}


ADDED = [added(277, "<bos>", True), added(278, "<end>", True), added(279, "<think>"), added(280, "<mask>", lstrip=True),
         added(281, "<cut>", rstrip=True), added(282, "word", single_word=True), added(283, "<end>!"),
         added(284, "Zeit", normalized=True), added(285, "<both>", True, lstrip=True, rstrip=True)]
CONTROL = [added(0, "<unk>", True), added(1, "<s>", True), added(2, "</s>", True)]
PREPEND = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
                                               {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}
FALLBACK = {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                                             {"type": "ByteFallback"}, {"type": "Fuse"},
                                             {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}


def metaspace(scheme, whole=False):
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": not whole}


def tokenizers():
    bytes_out = byte_level(True, True)
    made = {
        "llama3": tokenizer("whole", sequence(split(LLAMA3), byte_level(False)), None,
                            {"type": "Sequence", "processors": [bytes_out, template("<bos>", 277)]}, bytes_out, ADDED),
        "smollm": tokenizer("bytes", sequence({"type": "Digits", "individual_digits": True}, byte_level(True)), None,
                            None, bytes_out),
        "qwen": tokenizer("bytes", sequence(split(LLAMA3.replace("{1,3}", "")), byte_level(False)), {"type": "NFC"},
                          bytes_out, bytes_out),
        "prefix": tokenizer("bytes", sequence({"type": "Digits", "individual_digits": False}, byte_level(True, True)),
                            {"type": "Strip", "strip_left": False, "strip_right": True}, None, None),
        "llama2": tokenizer("pieces", None, PREPEND, template("<s>", 1), FALLBACK, CONTROL),
        "legacy": tokenizer("pieces", None, PREPEND, template("<s>", 1), FALLBACK,
                            [added(0, "<unk>", True), added(1, "<s>", True, normalized=True), CONTROL[2]]),
        "always": tokenizer("fused", metaspace("always"), None, None, metaspace("always"), CONTROL),
        "first": tokenizer("unfused", metaspace("first"), None, None, metaspace("first"), CONTROL),
        "never": tokenizer("fused", metaspace("never", True), None, None, metaspace("never", True), CONTROL),
    }
    made["tangled"] = tokenizer("tangled")
    for form in ("NFD", "NFKC", "NFKD"):
        made[form] = tokenizer("bytes", byte_level(False), {"type": form}, None, bytes_out)
    for behavior in ("Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
        for invert in (False, True):
            made["%s%s" % (behavior, " inverted" if invert else "")] = tokenizer(
                "whole", sequence(split(r"[a1]b?", behavior, invert), byte_level(False)), None, None, bytes_out)
    return made


BYTE_TEXTS = ["", "the thing's in a ring", " the  the    the", "abc abcabc ab bc",
              "a direct direct", "caf\u00e9 cafe\u0301",
              "x\n\n\n y \r\n", "12345 1", "'S 'Ll it'D we're '\u017f", "中文, 日本!", "aaaaaaa aaa", "tab\tend  ",
              "\u0300a\u0301\u0323 \u212b\uac00\u1100\u1161\u11a8 ", "😀👍", "x \u00a0\u2003y",
              "\u180e's\u1680's\u2003's \u0085 \ufeff",
              "\U00031360's a\U00031360 1\U00010d40", "A\u07fd\u0301 \u30ab\u3099 \uac00\u11a7\u11a8", "\u00bd \u2167 \ufb01 \u0344",
              "abcaabbcabaaabc" * 9, "abacabaacabbaabca" * 12 + "the"]
ADDED_TEXTS = ["<bos>the<end>", "a <think>the</think> <mask> b  <mask>", "<cut>  the <cut>\n\n<cut>a",
               "word words sword word, word_ (word)é wordé", "<end>!<end><end", "Zeit Zeitgeist <both>   <both> x",
               "   <both>   ", "<en<end><bos"]
PIECE_TEXTS = ["", "hello", " hello hello  hello", "abé中\u4e8c😀b", "a\nb\t", "    a     b", "<s>hello</s> hello<unk>",
               "ab bb abb", "▁hello", "ooo hell o", "é\u0301\u0302xyz",
               "hellhelloabbbab" * 9 + "lo"]


def tangled_texts():
    rng = random.Random(9)
    return ["".join(rng.choice("ab") for _ in range(length)) for length in (5, 30, 48, 49, 50, 90, 120, 200, 200, 400)]


def main():
    made, cases = tokenizers(), []
    for name, description in made.items():
        reference = Tokenizer.from_str(json.dumps(dict(description, model=MODELS[description["model"]])))
        if name == "tangled":
            texts = tangled_texts()
        elif description["model"] not in ("bytes", "whole"):
            texts = PIECE_TEXTS
        elif "split" in json.dumps(description).lower() and "a1" in json.dumps(description):
            texts = ["ab1ab ab", "xxabab1x", "a", "xx", "aab1bxa1", "x1", "xaa", "aaaa 12aa", "aa123"]
        else:
            texts = BYTE_TEXTS + (ADDED_TEXTS if description["added_tokens"] else [])
        for text in texts:
            for flags in (0, SPECIAL, SPECIAL | BOS) if "<" in text or text == "" else (0,):
                reference.encode_special_tokens = not flags & SPECIAL
                ids = reference.encode(text, add_special_tokens=bool(flags & BOS)).ids
                case = {"tokenizer": name, "text": text, "flags": flags, "ids": ids}
                if name != "legacy":  # there the reference decodes <s> as its normalised form, and never skips it
                    case["decoded"] = reference.decode(ids, skip_special_tokens=False)
                    case["skipped"] = reference.decode(ids, skip_special_tokens=True)
                cases.append(case)
    with open(sys.argv[1], "w") as out:
        out.write('{"models": {\n%s\n},\n"tokenizers": {\n%s\n},\n"cases": [\n%s\n]}\n' % (
            ",\n".join("%s: %s" % (json.dumps(name), json.dumps(model)) for name, model in MODELS.items()),
            ",\n".join("%s: %s" % (json.dumps(name), json.dumps(description)) for name, description in made.items()),
            ",\n".join(map(json.dumps, cases))))


if __name__ == "__main__":
    main()
