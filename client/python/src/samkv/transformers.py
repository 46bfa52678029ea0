"""Caches for Hugging Face transformers: a DynamicCache, and the positions that go with it.

    query = tokenizer(question, return_tensors="pt", add_special_tokens=False).input_ids     # (1, query_tokens)
    output = model.generate(**generation_inputs(model, cache, query), max_new_tokens=64)
    answer = output[0, cache.rows + query.shape[1]:]

A sparse cache has gaps: its rows are at `cache.position`, the query begins at `cache.next_position`, and both differ from
the number of rows, from which transformers would derive them. So positions are passed explicitly; attention needs none,
since every row is in front of the query. The model must be the one that the daemon loaded, in Hugging Face's layout.

Versions: 5.10 and later continue explicit positions in `generate` (5.10.0 and 5.24.0 were tested). Earlier ones do not,
and would go on at wrong positions without a word: `generation_inputs` refuses there, unless the cache is compact.
"""
import inspect
import typing

import torch
import transformers

from .cache import Cache

def to_dynamic_cache(cache: Cache, device: typing.Union[str, torch.device, None] = None,
                     dtype: typing.Optional[torch.dtype] = None) -> "transformers.DynamicCache":
    """The cache as a DynamicCache: each layer's K and V (1, kv_heads, rows, head_dim).

    device, dtype: where and as what the model wants them; None: as they are. Then they are views of the cache's memory:
    nothing is copied until the model appends its first token.
    """
    tensors, out = cache.torch(), transformers.DynamicCache()
    for layer in range(cache.layers):
        k, v = (t[layer].transpose(0, 1).unsqueeze(0) for t in (tensors.k, tensors.v))
        if device is not None or dtype is not None:
            k, v = k.to(device=device, dtype=dtype), v.to(device=device, dtype=dtype)
        out.update(k[:, :, :0], v[:, :, :0], layer)     # makes the layer; its contents are then the views themselves
        out.layers[layer].keys, out.layers[layer].values = k, v
    return out


def query_positions(cache: Cache, count: int, device: typing.Union[str, torch.device, None] = None) -> torch.Tensor:
    """Positions (1, count) int64 of `count` tokens that follow the cache."""
    return torch.arange(cache.next_position, cache.next_position + count, device=device).unsqueeze(0)


def cache_argument(model) -> str:
    """What this model's forward and generate call their cache: "cache", or "past_key_values" in older versions."""
    names = inspect.signature(model.forward).parameters
    return "cache" if "cache" in names else "past_key_values"


def continues_positions(model) -> bool:
    """Whether generate counts on from the position_ids that it is given. It began to in the course of version 5."""
    return "position_ids" in inspect.getsource(type(model)._update_model_kwargs_for_generation)


def check_model(model, cache: Cache) -> None:
    """Raises ValueError when the cache cannot be this model's."""
    c = model.config.get_text_config(decoder=True)
    heads = getattr(c, "num_key_value_heads", None) or c.num_attention_heads
    dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    if (c.num_hidden_layers, heads, dim) != (cache.layers, cache.kv_heads, cache.head_dim):
        raise ValueError("the cache has %d layers of (%d, %d), the model %d of (%d, %d): load the same model in both" %
                         (cache.layers, cache.kv_heads, cache.head_dim, c.num_hidden_layers, heads, dim))


def _query_tensor(query, device):
    ids = torch.as_tensor(query, dtype=torch.int64, device=device)
    ids = ids.unsqueeze(0) if ids.dim() == 1 else ids
    if ids.dim() != 2 or ids.shape[0] != 1 or not ids.shape[1]:
        raise ValueError("the query's token ids must have the shape (query_tokens) or (1, query_tokens), one or more")
    return ids


def forward_inputs(model, cache: Cache, query) -> typing.Dict[str, typing.Any]:
    """Arguments of `model(…)` for the query's tokens over the cache.

    query: token ids (query_tokens) or (1, query_tokens), at least one. The logits (1, query_tokens, vocabulary) of the
    result are those of the query's tokens.
    """
    check_model(model, cache)
    ids = _query_tensor(query, model.device)
    return {"input_ids": ids, "position_ids": query_positions(cache, ids.shape[1], ids.device), "use_cache": True,
            "attention_mask": torch.ones((1, cache.rows + ids.shape[1]), dtype=torch.int64, device=ids.device),
            cache_argument(model): to_dynamic_cache(cache, model.device, model.dtype)}


def generation_inputs(model, cache: Cache, query, sequences: int = 1) -> typing.Dict[str, typing.Any]:
    """Arguments of `model.generate(…)` for one prompt.

    query: as in `forward_inputs`, at least one token. `input_ids` is the cache's tokens and the query's, as generate
    expects of a prompt whose front is cached: what it returns begins with these `cache.rows + query_tokens` tokens.
    sequences: num_beams, or num_return_sequences when sampling: generate repeats the prompt by itself, not its cache.
    Made anew for each call: generate appends to the DynamicCache.
    """
    inputs = forward_inputs(model, cache, query)
    compact = cache.next_position == cache.rows     # then positions are what transformers derives from lengths
    if not compact and not continues_positions(model):
        raise RuntimeError("transformers %s does not continue positions with gaps in generate: update it to 5.10 or "
                           "later, or fetch with positions='compact'" % transformers.__version__)
    device, tensors = inputs["input_ids"].device, cache.torch()
    front, positions = (t.to(device=device, dtype=torch.int64).unsqueeze(0) for t in (tensors.tokens, tensors.position))
    inputs["input_ids"] = torch.cat([front, inputs["input_ids"]], dim=1)
    inputs["position_ids"] = torch.cat([positions, inputs["position_ids"]], dim=1)
    if compact:
        del inputs["position_ids"]
    if sequences > 1:
        inputs[cache_argument(model)].batch_repeat_interleave(sequences)
    return inputs
