"""A fetched cache in vLLM, through its own classes: the factory makes the connector, the scheduler takes its rows for
computed, the worker's side fills vLLM's paged memory; what does not fit is computed by vLLM.

Needs vLLM (0.33 was tested) and no GPU: the engine itself is not run. Skipped without it.
"""
import os
import pathlib
import tempfile
import unittest

import engines

engines.need("torch", "vllm")

import torch            # noqa: E402

import cases            # noqa: E402
import models           # noqa: E402
import samkv            # noqa: E402
from harness import Daemon, enter   # noqa: E402
from samkv.prefix import prompt_of  # noqa: E402
from samkv.vllm import SamkvConnector, SamkvMetadata    # noqa: E402
from vllm import SamplingParams     # noqa: E402
from vllm.config import (AttentionConfig, CacheConfig, DeviceConfig, KVTransferConfig, ModelConfig,    # noqa: E402
                         SchedulerConfig, VllmConfig)
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory     # noqa: E402
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole        # noqa: E402
from vllm.utils.hashing import sha256    # noqa: E402
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash     # noqa: E402
from vllm.v1.core.sched.scheduler import Scheduler   # noqa: E402
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec    # noqa: E402
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput     # noqa: E402
from vllm.v1.request import Request     # noqa: E402
from vllm.v1.structured_output import StructuredOutputManager    # noqa: E402

BLOCK_TOKENS, BLOCKS = 16, 200
QUERY = [5, 6, 7, 8]


class Vllm(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        torch.set_num_threads(1)
        cls.folder = tempfile.TemporaryDirectory(prefix="samkv-models-")
        cls.addClassCleanup(cls.folder.cleanup)
        cls.path = models.make_model(cls.folder.name + "/llama", "llama")
        cls.daemon = enter(cls, Daemon({"llama": cls.path}))
        cls.client = samkv.Client(cls.daemon.socket)
        cls.addClassCleanup(cls.client.close)
        rng = cases.seeded(6)
        for name in ("a", "b", "c"):
            cls.client.ingest(name, cases.tokens(rng, rng.randint(60, 120)), preamble=[7, 9], block_tokens=8,
                              init_tokens=8, local_tokens=8)
        init_none_hash(sha256)

    def setUp(self):
        self.cache = self.client.fetch(["a", "b", "c"], QUERY, ratio=0.4, positions="compact")
        self.addCleanup(self.cache.close)
        self.config = self.make_config()
        group = KVCacheGroupSpec(["model.layers.%d.self_attn.attn" % layer for layer in range(self.cache.layers)],
                                 FullAttentionSpec(block_size=BLOCK_TOKENS, num_kv_heads=self.cache.kv_heads,
                                                   head_size=self.cache.head_dim, dtype=torch.float32))
        self.kv_config = KVCacheConfig(num_blocks=BLOCKS, kv_cache_tensors=[], kv_cache_groups=[group])

    def make_config(self):
        cache = CacheConfig(block_size=BLOCK_TOKENS, gpu_memory_utilization=0.9, cache_dtype="auto",
                            enable_prefix_caching=True)
        cache.kv_cache_layout = "LBNHC"
        cache.num_gpu_blocks = BLOCKS
        transfer = KVTransferConfig(kv_connector="SamkvConnector", kv_connector_module_path="samkv.vllm",
                                    kv_role="kv_consumer", kv_load_failure_policy="recompute")
        return VllmConfig(
            scheduler_config=SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=512, max_model_len=512,
                                             enable_chunked_prefill=True, is_encoder_decoder=False),
            model_config=ModelConfig(model=str(self.path), dtype="float32", seed=1, skip_tokenizer_init=True,
                                     max_model_len=512),
            cache_config=cache, kv_transfer_config=transfer, device_config=DeviceConfig("cpu"),
            attention_config=AttentionConfig())

    def scheduler(self):
        out = Scheduler(vllm_config=self.config, kv_cache_config=self.kv_config, log_stats=True,
                        structured_output_manager=StructuredOutputManager(self.config), block_size=BLOCK_TOKENS)
        self.assertIsInstance(out.connector, SamkvConnector)
        return out

    def worker(self, heads=None, dtype=torch.float32, width=None, layers=None):
        """The worker's side, over memory as vLLM's attention backends for GPUs have it: (B, H, N, 2 D)."""
        connector = KVConnectorFactory.create_connector(self.config, KVConnectorRole.WORKER, self.kv_config)
        shape = (BLOCKS, heads or self.cache.kv_heads, BLOCK_TOKENS, width or 2 * self.cache.head_dim)
        # Strides of another order than the logical one, as a real layout has.
        memory = {"model.layers.%d.self_attn.attn" % layer:
                  torch.full((shape[0], shape[2], shape[1], shape[3]), -7, dtype=dtype).transpose(1, 2)
                  for layer in range(layers or self.cache.layers)}
        connector.register_kv_caches(memory)
        return connector, memory

    def request(self, name, asked, **change):
        params = SamplingParams(max_tokens=4, extra_args=asked.extra_args)
        params.update_from_generation_config({}, 0)
        prompt = change.get("prompt", asked.prompt["prompt_token_ids"])
        return Request(request_id=name, prompt_token_ids=prompt, sampling_params=params, pooling_params=None,
                       mm_features=None, cache_salt=asked.prompt["cache_salt"],
                       block_hasher=get_request_block_hasher(BLOCK_TOKENS, sha256))

    def step(self, scheduler, worker):
        """One step of the engine, the model left out. Returns the scheduler's output and the blocks that failed."""
        output = scheduler.schedule()
        self.assertIsInstance(output.kv_connector_metadata, SamkvMetadata)
        worker.bind_connector_metadata(output.kv_connector_metadata)
        worker.start_load_kv(None)
        worker.wait_for_save()
        worker.clear_connector_metadata()
        return output, worker.get_block_ids_with_load_errors()

    def assert_loaded(self, memory, blocks, rows, heads=slice(None)):
        k, v = self.cache.torch().k, self.cache.torch().v
        for layer in range(self.cache.layers):
            paged = memory["model.layers.%d.self_attn.attn" % layer][blocks]    # (blocks, H, N, 2 D)
            found = paged.transpose(1, 2).flatten(0, 1)[:rows]
            wanted = torch.cat([k[layer, :rows, heads], v[layer, :rows, heads]], dim=-1)
            self.assertTrue(torch.equal(found, wanted.to(found.dtype)))

    def test_rows_are_a_prefix_that_is_not_computed(self):
        scheduler, (worker, memory) = self.scheduler(), self.worker()
        asked = prompt_of(self.cache, QUERY)
        request = self.request("one", asked)
        scheduler.add_request(request)
        output, failed = self.step(scheduler, worker)
        whole = self.cache.rows // BLOCK_TOKENS * BLOCK_TOKENS
        self.assertGreater(whole, 2 * BLOCK_TOKENS)
        self.assertEqual(failed, set())
        (new,) = output.scheduled_new_reqs
        self.assertEqual(new.num_computed_tokens, whole)
        # What is left for vLLM: the last, partial block and the query.
        self.assertEqual(output.num_scheduled_tokens["one"], self.cache.rows - whole + len(QUERY))
        blocks = new.block_ids[0][:whole // BLOCK_TOKENS]
        self.assert_loaded(memory, blocks, whole)
        written = sum(int((tensor != -7).any(-1).any(1).sum()) for tensor in memory.values())
        self.assertEqual(written, whole * self.cache.layers, "nothing else is touched")
        # The same request to another scheduler's connector, whose memory is empty, gets the same again.
        self.assertEqual(scheduler.connector.get_num_new_matched_tokens(request, 0), (whole, False))
        self.assertEqual(scheduler.connector.get_num_new_matched_tokens(request, BLOCK_TOKENS),
                         (whole - BLOCK_TOKENS, False))

    def test_blocks_are_nobody_elses_prefix(self):
        scheduler, (worker, memory) = self.scheduler(), self.worker()
        asked = prompt_of(self.cache, QUERY)
        scheduler.add_request(self.request("one", asked))
        self.step(scheduler, worker)
        # The same tokens without samkv's cache: nothing is taken from it.
        plain = prompt_of(self.cache, QUERY)
        plain.kv_transfer_params.clear()
        scheduler.add_request(self.request("plain", plain))
        output, _ = self.step(scheduler, worker)
        (new,) = output.scheduled_new_reqs
        self.assertEqual(new.num_computed_tokens, 0)
        # The same request again: vLLM has its blocks, and only they are used.
        scheduler.add_request(self.request("again", asked))
        output, _ = self.step(scheduler, worker)
        (new,) = output.scheduled_new_reqs
        self.assertEqual(new.num_computed_tokens, self.cache.rows // BLOCK_TOKENS * BLOCK_TOKENS)

    def test_what_does_not_fit_is_computed(self):
        asked = prompt_of(self.cache, QUERY)
        tokens = asked.prompt["prompt_token_ids"]
        gaps = self.client.fetch(["a", "b", "c"], QUERY, ratio=0.4)
        self.addCleanup(gaps.close)
        with tempfile.TemporaryDirectory() as folder:
            saved = pathlib.Path(folder, "gaps.safetensors")
            gaps.save(saved)
            wrong = [({"path": "/nowhere/at/all"}, tokens), ({"path": "relative"}, tokens), ({"path": 7}, tokens),
                     ({}, tokens), ("text", tokens), ({"path": "/dev/zero"}, tokens), ({"path": folder}, tokens),
                     ({"path": str(self.path) + "/model.safetensors"}, tokens), ({"path": str(saved)}, tokens),
                     (asked.kv_transfer_params["samkv"], [9] + tokens[1:]),
                     (asked.kv_transfer_params["samkv"], tokens[:self.cache.rows - 1])]
            for number, (params, prompt) in enumerate(wrong):
                with self.subTest(params=params, number=number):
                    scheduler = self.scheduler()
                    bad = prompt_of(self.cache, QUERY)
                    bad.kv_transfer_params["samkv"] = params
                    scheduler.add_request(self.request("r", bad, prompt=prompt))
                    output = scheduler.schedule()
                    (new,) = output.scheduled_new_reqs
                    self.assertEqual(new.num_computed_tokens, 0)
                    self.assertEqual(output.kv_connector_metadata.loads, [])

    def test_a_load_that_fails_is_computed_again(self):
        """The cache was closed between the scheduler's look and the worker's: its number leads elsewhere or nowhere."""
        scheduler, (worker, memory) = self.scheduler(), self.worker()
        cache = self.client.fetch(["a", "b"], QUERY, ratio=0.4, positions="compact")
        request = self.request("late", prompt_of(cache, QUERY))
        scheduler.add_request(request)
        output = scheduler.schedule()
        (new,) = output.scheduled_new_reqs
        number = cache.fileno()
        cache.close()
        os.dup2(os.open("/dev/null", os.O_RDONLY), number)
        self.addCleanup(os.close, number)
        worker.bind_connector_metadata(output.kv_connector_metadata)
        worker.start_load_kv(None)
        failed = worker.get_block_ids_with_load_errors()
        self.assertEqual(failed, set(new.block_ids[0][:new.num_computed_tokens // BLOCK_TOKENS]))
        self.assertEqual(worker.get_block_ids_with_load_errors(), set(), "told once")
        self.assertTrue(all(bool((tensor == -7).all()) for tensor in memory.values()))
        result = ModelRunnerOutput(req_ids=["late"], req_id_to_index={"late": 0}, sampled_token_ids=[[3]],
                                   logprobs=None, prompt_logprobs_dict={}, pooler_output=None,
                                   kv_connector_output=KVConnectorOutput(invalid_block_ids=failed))
        scheduler.update_from_output(output, result)
        again = scheduler.schedule()
        self.assertEqual(again.num_scheduled_tokens["late"], len(request.prompt_token_ids))

    def test_memory_of_another_shape_is_not_written_to(self):
        request = prompt_of(self.cache, QUERY)
        for change in ({"heads": self.cache.kv_heads + 1}, {"width": self.cache.head_dim},
                       {"layers": self.cache.layers + 1}, {"dtype": torch.uint8}):
            with self.subTest(change=change):
                if "dtype" in change:
                    scheduler = self.scheduler()
                    connector = KVConnectorFactory.create_connector(self.config, KVConnectorRole.WORKER, self.kv_config)
                    memory = {"model.layers.0.self_attn.attn": torch.zeros(
                        (BLOCKS, self.cache.kv_heads, BLOCK_TOKENS, 2 * self.cache.head_dim), dtype=torch.uint8)}
                    connector.register_kv_caches(memory)
                    empty = 0
                else:
                    scheduler, (connector, memory), empty = self.scheduler(), self.worker(**change), -7
                scheduler.add_request(self.request("r", request))
                _, failed = self.step(scheduler, connector)
                self.assertEqual(len(failed), self.cache.rows // BLOCK_TOKENS)
                self.assertTrue(all(bool((tensor == empty).all()) for tensor in memory.values()))

    def test_types_and_ranks(self):
        """Two ranks of tensor parallelism have half of the heads each; bf16 is what the daemon's f32 rounds to."""
        self.assertEqual(self.cache.kv_heads % 2, 0)
        half = self.cache.kv_heads // 2
        for rank in range(2):
            scheduler, (worker, memory) = self.scheduler(), self.worker(heads=half, dtype=torch.bfloat16)
            worker._parallel = type("Parallel", (), {"tensor_parallel_size": 2})()
            import samkv.vllm
            samkv.vllm._rank, real = (lambda: rank), samkv.vllm._rank   # pylint: disable=cell-var-from-loop
            try:
                scheduler.add_request(self.request("r", prompt_of(self.cache, QUERY)))
                output, failed = self.step(scheduler, worker)
            finally:
                samkv.vllm._rank = real
            self.assertEqual(failed, set())
            whole = self.cache.rows // BLOCK_TOKENS * BLOCK_TOKENS
            blocks = output.scheduled_new_reqs[0].block_ids[0][:whole // BLOCK_TOKENS]
            self.assert_loaded(memory, blocks, whole, slice(rank * half, (rank + 1) * half))

    def test_saved_files_too(self):
        with tempfile.TemporaryDirectory() as folder:
            path = folder + "/cache.safetensors"
            self.cache.save(path)
            scheduler, (worker, memory) = self.scheduler(), self.worker()
            scheduler.add_request(self.request("r", prompt_of(self.cache, QUERY, saved=path)))
            output, failed = self.step(scheduler, worker)
            self.assertEqual(failed, set())
            whole = self.cache.rows // BLOCK_TOKENS * BLOCK_TOKENS
            self.assert_loaded(memory, output.scheduled_new_reqs[0].block_ids[0][:whole // BLOCK_TOKENS], whole)


if __name__ == "__main__":
    unittest.main(verbosity=2)
