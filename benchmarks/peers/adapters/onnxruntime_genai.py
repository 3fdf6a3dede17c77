"""ONNX Runtime GenAI. The model is a folder made by its model builder. A batch is static: all
prompts of one length.
"""

from __future__ import annotations

import json
import time
from typing import Any

from .contract import Generation, Job, take_options


class Adapter:
    def version(self) -> str:
        import importlib.metadata

        return f"onnxruntime-genai {importlib.metadata.version('onnxruntime-genai')}"

    def load(self, job: Job) -> None:
        import numpy as np
        import onnxruntime_genai

        take_options(job)
        self.numpy: Any = np
        self.genai: Any = onnxruntime_genai
        config = self.genai.Config(job.model)
        session = {"intra_op_num_threads": job.threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self.model = self.genai.Model(config)

    def run(self, prompts: list[list[int]], count: int) -> tuple[float, float, list[list[int]]]:
        np = self.numpy
        length = len(prompts[0])
        parameters = self.genai.GeneratorParams(self.model)
        parameters.set_search_options(
            max_length=length + count,
            min_length=length + count,
            do_sample=False,
            batch_size=len(prompts),
        )
        generator = self.genai.Generator(self.model, parameters)
        ids = np.array(prompts if len(prompts) > 1 else prompts[0], dtype=np.int32)
        start = time.perf_counter()
        generator.append_tokens(ids)
        generator.generate_next_token()
        generator.get_next_tokens()
        first_s = time.perf_counter() - start
        for _ in range(count - 1):
            generator.generate_next_token()
        last_s = time.perf_counter() - start
        rows = [generator.get_sequence(i)[length:] for i in range(len(prompts))]
        return first_s, last_s, [[int(token) for token in row] for row in rows]

    def generate(self, ids: list[int], count: int) -> Generation:
        first_s, last_s, rows = self.run([ids], count)
        return Generation(first_s, last_s, rows[0])

    def generate_batch(self, prompts: list[list[int]], count: int) -> list[list[int]]:
        return self.run(prompts, count)[2]

    def negative_log_likelihood(self, ids: list[int]) -> float:
        from .scoring import negative_log_likelihood

        parameters = self.genai.GeneratorParams(self.model)
        parameters.set_search_options(max_length=len(ids) + 1, do_sample=False)
        generator = self.genai.Generator(self.model, parameters)
        generator.append_tokens(self.numpy.array(ids, dtype=self.numpy.int32))
        logits = self.numpy.asarray(generator.get_output("logits"))
        logits = logits.reshape(-1, logits.shape[-1])
        if logits.shape[0] != len(ids):
            raise RuntimeError(f"logits of {logits.shape[0]} positions instead of {len(ids)}")
        return negative_log_likelihood(logits, ids)

    def first_text(self, job: Job, text: str) -> str:
        self.load(job)
        tokenizer = self.genai.Tokenizer(self.model)
        rows = self.run([[int(token) for token in tokenizer.encode(text)]], 1)[2]
        return str(tokenizer.decode(rows[0]))
