"""Tiny transformer models of every supported family, made from a seed: the same bytes on every machine.

Weights come from integer hashing and sums of four exact fractions, so they need no random library whose stream could
change, and no fixture files. The layout on disk is Hugging Face's: config.json and model.safetensors.
"""
import json
import pathlib
import struct

import numpy as np

VOCABULARY = 256
LLAMA3_SCALING = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                  "original_max_position_embeddings": 64}

# Every family at the smallest size that still has several heads a KV head, and several layers.
FAMILIES = {
    "llama": {},
    "tied": {"tied": True},
    "scaled": {"rope_scaling": LLAMA3_SCALING},
    "mha": {"kv_heads": 4},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True, "head_dim": 32},
}

# What the oracle does not know; transformers does (compare_logits.py).
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
MORE_FAMILIES = {
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "yarn": {"rope_scaling": YARN},
    "yarn2": {"rope_scaling": dict(YARN, attention_factor=1.3), "qk_norm": True, "head_dim": 32},
    "yarn3": {"rope_scaling": dict(YARN, beta_fast=16.0, beta_slow=2.0), "qkv_bias": True},
    "mistral": {"type": "Mistral", "more": {"sliding_window": 256}},
    "smollm3": {"type": "SmolLM3", "tied": True, "more": {"pad_token_id": 0}},
    "phi3": {"type": "Phi3", "kv_heads": 4, "more": {"sliding_window": 256, "pad_token_id": 0}},
    "phi3gqa": {"type": "Phi3", "more": {"pad_token_id": 0}},
}


def _fractions(seed, count):
    """Roughly normal numbers of variance 1/3, exact in float32 up to one rounding: splitmix64 over a counter."""
    with np.errstate(over="ignore"):
        z = np.arange(count * 4, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    unit = (z >> np.uint64(48)).astype(np.float64) / 32768.0 - 1.0   # 16 bits, in [-1, 1)
    return unit.reshape(count, 4).sum(1) / 2.0


class _Weights:
    """Hands out tensors; each takes its own piece of the stream, by its number."""

    def __init__(self, seed):
        self.seed, self.number, self.tensors = seed, 0, {}

    def add(self, name, *shape, scale, offset=0.0):
        self.number += 1
        count = int(np.prod(shape))
        values = offset + scale * _fractions((self.seed << 32) + (self.number << 56), count)
        self.tensors[name] = values.astype(np.float32).reshape(shape)


def to_bf16(values):
    """float32 → bfloat16 bits, round to nearest even (finite values only)."""
    u = values.astype(np.float32).view(np.uint32)
    return ((u + np.uint32(0x7FFF) + ((u >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def from_bf16(bits):
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def save_safetensors(path, tensors, dtype="F32"):
    """dtype of the file: F32, F16 or BF16. Returns the tensors as a reader of the file sees them."""
    header, pieces, at, seen = {}, [], 0, {}
    for name, values in tensors.items():
        if dtype == "BF16":
            raw = to_bf16(values)
            seen[name] = from_bf16(raw)
        else:
            raw = values.astype({"F32": np.float32, "F16": np.float16}[dtype])
            seen[name] = raw.astype(np.float32)
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [at, at + raw.nbytes]}
        pieces.append(raw.tobytes())
        at += raw.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    pathlib.Path(path).write_bytes(struct.pack("<Q", len(text)) + text + b"".join(pieces))
    return seen


def load_safetensors(path):
    """name → array; BF16 and F16 become float32."""
    raw = pathlib.Path(path).read_bytes()
    size, = struct.unpack_from("<Q", raw)
    header, out = json.loads(raw[8:8 + size]), {}
    header.pop("__metadata__", None)
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        piece = raw[8 + size + begin:8 + size + end]
        kind = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I32": np.int32, "I64": np.int64}
        values = np.frombuffer(piece, kind[entry["dtype"]])
        values = from_bf16(values) if entry["dtype"] == "BF16" else values
        out[name] = (values.astype(np.float32) if entry["dtype"] == "F16" else values).reshape(entry["shape"])
    return out


def _fuse(tensors, layers):
    """Phi-3: Q, K and V in one matrix, gate and up in another."""
    for layer in range(layers):
        p = "model.layers.%d." % layer
        for into, parts in (("self_attn.qkv_proj", ["self_attn.%s_proj" % x for x in "qkv"]),
                            ("mlp.gate_up_proj", ["mlp.gate_proj", "mlp.up_proj"])):
            tensors[p + into + ".weight"] = np.concatenate([tensors.pop(p + part + ".weight") for part in parts])


def make_model(folder, family, seed=1, layers=4, hidden=64, heads=4, ffn=128, dtype="F32", shards=1):
    """Writes a model of one of FAMILIES. layers, hidden … are its sizes; shards > 1 splits the weights."""
    f = dict({"kv_heads": 2, "head_dim": hidden // heads, "tied": False, "qkv_bias": False, "qk_norm": False,
              "rope_scaling": None, "type": None, "more": {}}, **dict(FAMILIES, **MORE_FAMILIES)[family])
    w, d = _Weights(seed), f["head_dim"]
    spread = 1.7 * 1.5 / hidden**0.5    # variance 2.2 / hidden: activations stay lively through the layers
    w.add("model.embed_tokens.weight", VOCABULARY, hidden, scale=1.7)
    if not f["tied"]:
        w.add("lm_head.weight", VOCABULARY, hidden, scale=spread)
    w.add("model.norm.weight", hidden, scale=0.17, offset=1.0)
    for layer in range(layers):
        p = "model.layers.%d." % layer
        for name, rows in (("q", heads * d), ("k", f["kv_heads"] * d), ("v", f["kv_heads"] * d)):
            w.add(p + "self_attn.%s_proj.weight" % name, rows, hidden, scale=spread)
            if f["qkv_bias"]:
                w.add(p + "self_attn.%s_proj.bias" % name, rows, scale=0.35)
            if f["qk_norm"] and name != "v":
                w.add(p + "self_attn.%s_norm.weight" % name, d, scale=0.17, offset=1.0)
        w.add(p + "self_attn.o_proj.weight", hidden, heads * d, scale=2.5 / (heads * d)**0.5)
        w.add(p + "mlp.gate_proj.weight", ffn, hidden, scale=spread)
        w.add(p + "mlp.up_proj.weight", ffn, hidden, scale=spread)
        w.add(p + "mlp.down_proj.weight", hidden, ffn, scale=2.5 / ffn**0.5)
        w.add(p + "input_layernorm.weight", hidden, scale=0.17, offset=1.0)
        w.add(p + "post_attention_layernorm.weight", hidden, scale=0.17, offset=1.0)
    architecture = f["type"] or ("Qwen3" if f["qk_norm"] else "Qwen2" if f["qkv_bias"] else "Llama")
    if architecture == "Phi3":
        _fuse(w.tensors, layers)
    config = {"architectures": [architecture + "ForCausalLM"], "model_type": architecture.lower(),
              "num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": ffn,
              "num_attention_heads": heads, "num_key_value_heads": f["kv_heads"], "head_dim": d,
              "vocab_size": VOCABULARY, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
              "max_position_embeddings": 4096, "hidden_act": "silu", "tie_word_embeddings": f["tied"],
              "torch_dtype": {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[dtype],
              "bos_token_id": 1, "eos_token_id": 2, **f["more"]}
    if f["rope_scaling"]:
        config["rope_scaling"] = f["rope_scaling"]
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    if shards == 1:
        save_safetensors(folder / "model.safetensors", w.tensors, dtype)
        return folder
    names, where = list(w.tensors), {}
    for i in range(shards):
        file = "model-%05d-of-%05d.safetensors" % (i + 1, shards)
        mine = {name: w.tensors[name] for name in names[i::shards]}
        save_safetensors(folder / file, mine, dtype)
        where.update({name: file for name in mine})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def ascii_tokenizer(folder):
    """A tokenizer.json for such a model in which every token is some ASCII text, so that whatever the model says can be
    read back: ids 32 to 126 are their characters, the others three letters each. Byte-level, without merges."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    (pathlib.Path(folder) / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": level, "post_processor": None, "decoder": level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {token: i for i, token in enumerate(ascii_tokens())}, "merges": []}}))


def ascii_tokens():
    """That tokenizer's tokens by id, as a byte-level one writes them."""
    return ["Ġ" if i == 32 else chr(i) if 32 < i < 127 else "~%02x" % i for i in range(VOCABULARY)]


def ascii_text(tokens):
    """What that tokenizer decodes these ids to."""
    return "".join(chr(i) if 32 <= i < 127 else "~%02x" % i for i in tokens)
