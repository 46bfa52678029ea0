"""What tests of engines share: skipping without their packages, and tiny models as GGUF files."""
import os
import sys

from harness import BIN, ROOT
from models import VOCABULARY, load_safetensors

SKIPPED = 77    # ctest's SKIP_RETURN_CODE

os.environ.setdefault("SAMKV_LIBRARY", str(BIN.parent / "lib" / "libsamkv.so.1"))
sys.path.insert(0, str(ROOT / "client" / "python" / "src"))


def need(*packages):
    """Ends the program as skipped, with a reason, when one of these packages is not installed."""
    import importlib
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            print("skipped: %s has no %s (%s); name a Python with it: cmake -DSAMKV_ENGINES_PYTHON=PATH" %
                  (sys.executable, package, error))
            sys.exit(SKIPPED)


def to_gguf_order(weights, head_dim):
    """Rows of a Q or K projection as a llama GGUF has them: what RoPE rotates together are neighbours."""
    shape = weights.shape
    halves = weights.reshape((shape[0] // head_dim, 2, head_dim // 2) + shape[1:])
    return halves.swapaxes(1, 2).reshape(shape)


NAMES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
         "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
         "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}


def gguf_name(name):
    for theirs, ours in (("model.embed_tokens", "token_embd"), ("lm_head", "output"), ("model.norm", "output_norm")):
        if name.startswith(theirs + "."):
            return name.replace(theirs, ours)
    _, _, layer, rest = name.split(".", 3)
    part, suffix = rest.rsplit(".", 1)
    return "blk.%s.%s.%s" % (layer, NAMES[part], suffix)


def write_gguf(config, folder, path):
    """A model of models.py (its config.json as a dict, its folder) as a GGUF file without a tokenizer."""
    import gguf
    architecture = config["model_type"]
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
    w.add_vocab_size(VOCABULARY)
    w.add_tokenizer_model("no_vocab")
    for name, values in load_safetensors(folder / "model.safetensors").items():
        if architecture == "llama" and (".q_proj." in name or ".k_proj." in name):
            values = to_gguf_order(values, config["head_dim"])
        w.add_tensor(gguf_name(name), values)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
