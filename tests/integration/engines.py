"""What tests of the Python package and of engines share: finding the package, skipping, and tiny models as GGUF files."""
import importlib
import math
import os
import subprocess
import sys

import numpy as np

from harness import BIN, ROOT, under_sanitizer
from models import load_safetensors

SKIPPED = 77    # ctest's SKIP_RETURN_CODE

os.environ.setdefault("SAMKV_LIBRARY", str(BIN.parent / "lib" / "libsamkv.so.1"))
sys.path.insert(0, str(ROOT / "client" / "python" / "src"))


def skip(why):
    print("skipped: " + why)
    sys.exit(SKIPPED)


def need(*packages):
    """Ends the program as skipped, with a reason, when one of these packages is not installed."""
    if under_sanitizer():
        skip("engines do not load a library with a sanitizer; libsamkv's own tests have it")
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            skip("%s has no %s (%s); name a Python with it: cmake -DSAMKV_ENGINES_PYTHON=PATH" %
                 (sys.executable, package, error))


def load_sanitizer():
    """A library with AddressSanitizer is loaded only where its runtime came first: begins this program again, so."""
    if not under_sanitizer():
        return
    with open("/proc/self/maps", encoding="ascii", errors="replace") as maps:
        loaded = "libasan" in maps.read()
    if loaded:      # the daemon and samkvctl have their own, and find leaks, which Python would drown in its own
        os.environ.pop("LD_PRELOAD")
        os.environ["ASAN_OPTIONS"] = os.environ.pop("SAMKV_ASAN_OPTIONS")
        return
    if b"__asan_init" not in (BIN / "samkvd").read_bytes():
        skip("Python does not load a library with ThreadSanitizer")
    runtime = subprocess.run(["cc", "-print-file-name=libasan.so"], stdout=subprocess.PIPE, check=True, text=True)
    options = os.environ.get("ASAN_OPTIONS", "")
    changed = {"LD_PRELOAD": runtime.stdout.strip(), "SAMKV_ASAN_OPTIONS": options,
               "ASAN_OPTIONS": options + ":detect_leaks=0"}
    os.execve(sys.executable, [sys.executable] + sys.argv, dict(os.environ, **changed))


def to_gguf_order(weights, head_dim):
    """Rows of a Q or K projection as a llama GGUF has them: what RoPE rotates together are neighbours."""
    shape = weights.shape
    halves = weights.reshape((shape[0] // head_dim, 2, head_dim // 2) + shape[1:])
    return halves.swapaxes(1, 2).reshape(shape)


NAMES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
         "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
         "self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up",
         "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}


def gguf_name(name):
    for theirs, ours in (("model.embed_tokens", "token_embd"), ("lm_head", "output"), ("model.norm", "output_norm")):
        if name.startswith(theirs + "."):
            return name.replace(theirs, ours)
    _, _, layer, rest = name.split(".", 3)
    part, suffix = rest.rsplit(".", 1)
    return "blk.%s.%s.%s" % (layer, NAMES[part], suffix)


def llama3_factors(scaling, head_dim, theta):
    """What llama3's scaling divides each frequency by, as a GGUF file has it."""
    frequency = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    low, high, factor = (scaling[key] for key in ("low_freq_factor", "high_freq_factor", "factor"))
    turns = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def write_gguf(config, folder, path, tokens=None):
    """A model of models.py (its config.json as a dict, its folder) as a GGUF file. tokens: the texts of its tokens, a
    byte-level tokenizer's; None: the file has no tokenizer."""
    import gguf
    architecture = {"mistral": "llama"}.get(config["model_type"], config["model_type"])
    w = gguf.GGUFWriter(path, architecture)
    w.add_block_count(config["num_hidden_layers"])
    w.add_context_length(config["max_position_embeddings"])
    w.add_embedding_length(config["hidden_size"])
    w.add_feed_forward_length(config["intermediate_size"])
    w.add_head_count(config["num_attention_heads"])
    w.add_head_count_kv(config["num_key_value_heads"])
    w.add_key_length(config["head_dim"])
    w.add_value_length(config["head_dim"])
    w.add_rope_dimension_count(config["head_dim"])
    w.add_rope_freq_base(config["rope_theta"])
    w.add_layer_norm_rms_eps(config["rms_norm_eps"])
    w.add_vocab_size(config["vocab_size"])
    if config.get("sliding_window"):
        w.add_sliding_window(config["sliding_window"])
    scaling = config.get("rope_scaling") or {"rope_type": "none"}
    if scaling["rope_type"] in ("linear", "yarn"):
        w.add_rope_scaling_type(gguf.RopeScalingType(scaling["rope_type"]))
        w.add_rope_scaling_factor(scaling["factor"])
    if scaling["rope_type"] == "yarn":
        w.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
        for key, add in (("beta_fast", w.add_rope_scaling_yarn_beta_fast),
                         ("beta_slow", w.add_rope_scaling_yarn_beta_slow)):
            if key in scaling:
                add(scaling[key])
        if "attention_factor" in scaling:   # the file's is on top of what the factor implies
            w.add_rope_scaling_attn_factors(scaling["attention_factor"] / (0.1 * math.log(scaling["factor"]) + 1))
    if scaling["rope_type"] == "llama3":
        w.add_tensor("rope_freqs.weight", llama3_factors(scaling, config["head_dim"], config["rope_theta"]))
    w.add_tokenizer_model("gpt2" if tokens else "no_vocab")
    if tokens:
        w.add_tokenizer_pre("default")
        w.add_token_list(tokens)
        w.add_token_types([gguf.TokenType.NORMAL] * len(tokens))
        w.add_token_merges(["a b"])     # llama.cpp wants one
        w.add_eos_token_id(config["eos_token_id"])
    for name, values in load_safetensors(folder / "model.safetensors").items():
        if architecture in ("llama", "smollm3") and (".q_proj." in name or ".k_proj." in name):
            values = to_gguf_order(values, config["head_dim"])
        w.add_tensor(gguf_name(name), values)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
