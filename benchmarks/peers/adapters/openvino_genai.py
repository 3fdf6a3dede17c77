"""OpenVINO GenAI. The model is a folder exported by optimum-cli, with its tokenizer models.

A batch goes through its continuous-batching scheduler; perplexity through the plain OpenVINO model,
which shows logits. The time to the first token is the library's own figure, because its call
returns only when all tokens are there.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from .contract import Generation, Job, take_options


class Adapter:
    def version(self) -> str:
        import openvino_genai

        return f"openvino-genai {openvino_genai.__version__}"

    def load(self, job: Job) -> None:
        import numpy as np
        import openvino
        import openvino_genai

        options = take_options(job, precision="", cache_gib=2)
        self.numpy: Any = np
        self.openvino: Any = openvino
        self.genai: Any = openvino_genai
        properties: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": job.threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        if options["precision"]:
            properties["INFERENCE_PRECISION_HINT"] = options["precision"]
        if "batch" in job.measures:
            scheduler = self.genai.SchedulerConfig()
            scheduler.cache_size = options["cache_gib"]
            scheduler.max_num_seqs = max(64, job.sequences)
            scheduler.max_num_batched_tokens = 2048
            scheduler.enable_prefix_caching = False
            self.scheduled = self.genai.LLMPipeline(
                job.model, "CPU", scheduler_config=scheduler, **properties
            )
        if set(job.measures) & {"decode", "prefill", "spin", "context"}:
            self.pipeline = self.genai.LLMPipeline(job.model, "CPU", **properties)
        if "perplexity" in job.measures:
            path = str(Path(job.model) / "openvino_model.xml")
            self.plain = openvino.Core().compile_model(path, "CPU", properties)

    def config(self, count: int) -> Any:
        config = self.genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = count
        config.ignore_eos, config.do_sample = True, False
        return config

    def inputs(self, prompts: list[list[int]]) -> Any:
        ids = self.numpy.array(prompts, dtype=self.numpy.int64)
        tensor = self.openvino.Tensor
        return self.genai.TokenizedInputs(tensor(ids), tensor(self.numpy.ones_like(ids)))

    def generate(self, ids: list[int], count: int) -> Generation:
        inputs = self.inputs([ids])
        start = time.perf_counter()
        result = self.pipeline.generate(inputs, self.config(count))
        last_s = time.perf_counter() - start
        return Generation(result.perf_metrics.get_ttft().mean / 1e3, last_s, list(result.tokens[0]))

    def generate_batch(self, prompts: list[list[int]], count: int) -> list[list[int]]:
        result = self.scheduled.generate(self.inputs(prompts), self.config(count))
        return [list(tokens) for tokens in result.tokens]

    def negative_log_likelihood(self, ids: list[int]) -> float:
        from .scoring import negative_log_likelihood

        np = self.numpy
        row = np.array([ids], dtype=np.int64)
        feed = {
            "input_ids": row,
            "attention_mask": np.ones_like(row),
            "position_ids": np.arange(len(ids))[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        names = {name for entry in self.plain.inputs for name in entry.names}
        request = self.plain.create_infer_request()
        result = request.infer({key: value for key, value in feed.items() if key in names})
        return negative_log_likelihood(result["logits"][0], ids)

    def first_text(self, job: Job, text: str) -> str:
        import openvino_genai

        take_options(job, precision="", cache_gib=2)
        pipeline: Any = openvino_genai.LLMPipeline(
            job.model, "CPU", INFERENCE_NUM_THREADS=job.threads
        )
        return str(pipeline.generate(text, max_new_tokens=1, apply_chat_template=False))
