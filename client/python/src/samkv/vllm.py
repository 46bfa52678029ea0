"""Caches for vLLM, as a KV connector: no patch, the reduced prompt is a prefix that vLLM need not compute.

    llm = vllm.LLM(model=..., kv_transfer_config=KVTransferConfig(
        kv_connector="SamkvConnector", kv_connector_module_path="samkv.vllm", kv_role="kv_consumer",
        kv_load_failure_policy="recompute"))
    cache = client.fetch(ids, question, positions="compact")
    asked = prompt_of(cache, query_tokens)
    answer = llm.generate(asked.prompt, SamplingParams(max_tokens=64, extra_args=asked.extra_args))

What vLLM's interface allows is a *prefix*: K and V of the first n tokens of the prompt, at positions 0 … n - 1. So the
prompt is what the fetch kept (the preamble, the kept tokens of the documents) with the query behind, and positions are
compact; a cache with gaps cannot be said to vLLM. Rows beyond the last whole block of vLLM (16 tokens as a rule) are
computed by vLLM, as the query is.

The cache is handed over as a path: its sealed memory, /proc/PID/fd/N of the process that fetched it. Nothing is
copied on the way to the worker that maps it; the workers must be on the same machine and of the same user, and the
`Cache` must stay open until the answer is there. `saved` names a file that `cache.save` wrote instead.

What is checked: the file's tokens are the prompt's first, its positions are compact, and it is the same file when the
worker maps it; its layers, heads and type are those of vLLM's cache. What does not fit before the request is scheduled
is computed by vLLM, with a warning; what fails afterwards is reported as blocks that failed to load. Each prompt has a
`cache_salt` of its own, so that vLLM never takes these blocks, which other documents stand behind, for another
prompt's prefix.

Not possible: hybrid models with several groups of layers, quantised KV caches, vLLM's CPU backend (which packs K by
instruction set). Saving to samkvd is not done here: documents are ingested. Tested with the interface and the scheduler
of vLLM 0.33.0.
"""
import dataclasses
import logging
import os
import re
import typing

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import (KVConnectorBase_V1, KVConnectorMetadata,
                                                               KVConnectorRole)

from .prefix import CacheFile, Identity, prompt_of     # prompt_of: for those who ask through this module

__all__ = ["SamkvConnector", "SamkvMetadata", "prompt_of"]

_log = logging.getLogger("vllm.samkv")
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


# ---------------------------------------------------------------------- scheduler → worker

@dataclasses.dataclass
class Load:
    """Rows [begin, end) of a file go to these blocks, which begin at row 0."""
    path: str
    identity: Identity
    begin: int
    end: int
    block_ids: typing.List[int]


@dataclasses.dataclass
class SamkvMetadata(KVConnectorMetadata):
    loads: typing.List[Load] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class _Found:
    """What a request's file came to: the rows that can be loaded, 0 when none can."""
    rows: int
    path: str = ""
    identity: typing.Optional[Identity] = None


def _find(request, block_tokens) -> _Found:
    """Looks at a request's file; the reason is logged once when it is of no use."""
    params = (request.kv_transfer_params or {}).get("samkv")
    if params is None:
        return _Found(0)
    prompt = request.prompt_token_ids
    try:
        path = params.get("path") if isinstance(params, dict) else None
        if not isinstance(path, str) or not os.path.isabs(path):
            raise ValueError("kv_transfer_params.samkv.path is no absolute path")
        if prompt is None:
            raise ValueError("the prompt is not given as tokens")
        file = CacheFile(path)
        if not file.serves(prompt):
            raise ValueError("the prompt does not begin with the cache's tokens at compact positions")
    except (OSError, ValueError) as error:
        _log.warning("request %s is computed without samkv's cache: %s", request.request_id, error)
        return _Found(0)
    # One token at least is computed, since its logits are what is asked for.
    return _Found(min(file.rows, len(prompt) - 1) // block_tokens * block_tokens, path, file.identity)


class SamkvConnector(KVConnectorBase_V1):
    """See the module's description. One object in the scheduler's process, one in each worker's."""

    def __init__(self, vllm_config, role: KVConnectorRole, kv_cache_config):
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        groups = getattr(kv_cache_config, "kv_cache_groups", None)
        if groups is not None and len(groups) != 1:
            raise ValueError("SamkvConnector loads one group of layers; this model has %d (sliding windows, states)" %
                             len(groups))
        self._block_tokens: int = vllm_config.cache_config.block_size
        self._parallel = vllm_config.parallel_config
        self._found: typing.Dict[str, _Found] = {}
        self._loads: typing.List[Load] = []
        self._kv_caches: typing.Dict[str, torch.Tensor] = {}
        self._failed: typing.Set[int] = set()

    @property
    def requires_kv_delivery(self) -> bool:
        return False

    # ------------------------------------------------------------------ in the scheduler

    def get_num_new_matched_tokens(self, request, num_computed_tokens: int):
        found = self._found.get(request.request_id)
        if found is None:
            found = self._found[request.request_id] = _find(request, self._block_tokens)
        return max(found.rows - num_computed_tokens, 0), False

    def update_state_after_alloc(self, request, blocks, num_external_tokens: int) -> None:
        found = self._found.get(request.request_id)
        if not num_external_tokens or found is None or found.identity is None:
            return
        (block_ids,) = blocks.get_block_ids()
        self._loads.append(Load(found.path, found.identity, found.rows - num_external_tokens, found.rows,
                                list(block_ids[:found.rows // self._block_tokens])))

    def build_connector_meta(self, scheduler_output) -> SamkvMetadata:
        loads, self._loads = self._loads, []
        return SamkvMetadata(loads)

    def request_finished(self, request, block_ids):
        self._found.pop(request.request_id, None)
        return False, None

    # ------------------------------------------------------------------ in a worker

    def register_kv_caches(self, kv_caches) -> None:
        self._kv_caches = dict(kv_caches)

    def start_load_kv(self, forward_context, **kwargs) -> None:
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, SamkvMetadata)
        for load in metadata.loads:
            try:
                self._load(load, self._kv_caches or _caches_of(forward_context))
            except (OSError, ValueError) as error:
                _log.error("%d tokens were not loaded from samkv's cache: %s", load.end - load.begin, error)
                self._failed.update(load.block_ids[load.begin // self._block_tokens:])

    def _load(self, load: Load, kv_caches) -> None:
        file = CacheFile(load.path, load.identity)
        places = [(_layer_of(name), tensor) for name, tensor in kv_caches.items()]
        for layer, tensor in places:    # all are looked at before the first is written to
            self._check(file, layer, tensor)
        slots = torch.arange(load.begin, load.end)
        blocks = torch.tensor(load.block_ids)[slots // self._block_tokens]
        offsets = slots % self._block_tokens
        for layer, tensor in places:
            tensor[blocks.to(tensor.device), :, offsets.to(tensor.device)] = self._rows(file, layer, tensor, load)

    def _check(self, file: CacheFile, layer: int, tensor: torch.Tensor) -> None:
        """vLLM's view of a layer is (blocks, kv_heads of this rank, block_tokens, 2 head_dim): K, then V."""
        ranks = self._parallel.tensor_parallel_size
        heads = max(file.kv_heads // ranks, 1)
        if layer >= file.layers:
            raise ValueError("vLLM's model has a layer %d, the cache %d layers: load the same model in both" %
                             (layer, file.layers))
        if not tensor.dtype.is_floating_point or tensor.element_size() < 2:
            raise ValueError("vLLM's KV cache is %s: samkv's caches are for f16, bf16 and f32" % tensor.dtype)
        if tensor.dim() != 4 or tuple(tensor.shape[1:]) != (heads, self._block_tokens, 2 * file.head_dim):
            raise ValueError("vLLM's KV cache is %s a layer, and (blocks, %d, %d, %d) is what can be filled: another "
                             "model, or an attention backend that packs it" %
                             (tuple(tensor.shape), heads, self._block_tokens, 2 * file.head_dim))

    def _rows(self, file: CacheFile, layer: int, tensor: torch.Tensor, load: Load) -> torch.Tensor:
        """(tokens, kv_heads of this rank, 2 head_dim), where and as the layer's cache is."""
        ranks, heads = self._parallel.tensor_parallel_size, tensor.shape[1]
        first = _rank() * file.kv_heads // ranks     # with fewer heads than ranks, several ranks have the same one
        parts = []
        for array in (file.k(layer), file.v(layer)):
            # A copy, since the memory is read-only and shared.
            rows = torch.from_numpy(array[load.begin:load.end, first:first + heads].copy())
            if file.dtype == "bf16":
                rows = rows.view(torch.int16).view(torch.bfloat16)
            parts.append(rows.to(device=tensor.device, dtype=tensor.dtype))
        return torch.cat(parts, dim=-1)

    def get_block_ids_with_load_errors(self) -> typing.Set[int]:
        failed, self._failed = self._failed, set()
        return failed

    def wait_for_layer_load(self, layer_name: str) -> None:
        return    # all layers are there when start_load_kv returns

    def save_kv_layer(self, layer_name, kv_layer, attn_metadata, **kwargs) -> None:
        return

    def wait_for_save(self) -> None:
        return


def _layer_of(name: str) -> int:
    match = _LAYER.search(name)
    if match is None:
        raise ValueError("no number of a layer in vLLM's name %r" % name)
    return int(match.group(1))


def _caches_of(forward_context) -> typing.Dict[str, torch.Tensor]:
    """Where the worker did not register them: those of the layers that have one."""
    return {name: layer.kv_cache for name, layer in forward_context.no_compile_layers.items()
            if isinstance(getattr(layer, "kv_cache", None), torch.Tensor)}


def _rank() -> int:
    from vllm.distributed.parallel_state import get_tensor_model_parallel_rank, model_parallel_is_initialized
    return get_tensor_model_parallel_rank() if model_parallel_is_initialized() else 0
