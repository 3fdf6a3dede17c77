"""llama.cpp through the C calls that llama-cpp-python binds, so that the Python around them costs
little.

The model is a GGUF file. The cold start goes through the package's class `Llama`, as its users do.
"""

from __future__ import annotations

import time
from typing import Any

from .contract import Generation, Job, take_options

Row = tuple[int, int, int, bool]  # token, position, sequence, wants logits


class Adapter:
    def version(self) -> str:
        import llama_cpp

        return f"llama-cpp-python {llama_cpp.__version__}"

    def load(self, job: Job) -> None:
        import llama_cpp

        take_options(job)
        self.api: Any = llama_cpp
        llama_cpp.llama_backend_init()
        self.silence = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self.silence, None)
        self.model = llama_cpp.llama_model_load_from_file(
            job.model.encode(), llama_cpp.llama_model_default_params()
        )
        if not self.model:
            raise ValueError(f"llama.cpp cannot load {job.model}")
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(
            llama_cpp.llama_model_get_vocab(self.model)
        )
        sequences = job.sequences if "batch" in job.measures else 1
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_seq_max = sequences
        parameters.n_ctx = -(-job.positions() // 256) * 256 * sequences
        parameters.n_batch = max(2048, sequences * job.prompt, job.positions())
        parameters.n_ubatch = 512
        parameters.n_threads = parameters.n_threads_batch = job.threads
        parameters.kv_unified = False
        self.context = llama_cpp.llama_init_from_model(self.model, parameters)
        if not self.context:
            raise ValueError(f"llama.cpp cannot make a context of {parameters.n_ctx} positions")
        self.batch = llama_cpp.llama_batch_init(parameters.n_batch, 0, 1)
        self.sampler = llama_cpp.llama_sampler_init_greedy()

    def decode(self, rows: list[Row]) -> None:
        batch = self.batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, logits) in enumerate(rows):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.logits[i] = 1, logits
            batch.seq_id[i][0] = sequence
        status = self.api.llama_decode(self.context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode of {len(rows)} tokens: status {status}")

    def sample(self, index: int) -> int:
        return int(self.api.llama_sampler_sample(self.sampler, self.context, index))

    def clear(self) -> None:
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)

    def generate(self, ids: list[int], count: int) -> Generation:
        self.clear()
        start = time.perf_counter()
        self.decode([(token, i, 0, i == len(ids) - 1) for i, token in enumerate(ids)])
        tokens = [self.sample(-1)]
        first_s = time.perf_counter() - start
        for i in range(count - 1):
            self.decode([(tokens[-1], len(ids) + i, 0, True)])
            tokens.append(self.sample(-1))
        return Generation(first_s, time.perf_counter() - start, tokens)

    def generate_batch(self, prompts: list[list[int]], count: int) -> list[list[int]]:
        self.clear()
        rows: list[Row] = []
        last = []
        for sequence, ids in enumerate(prompts):
            rows += [(token, i, sequence, i == len(ids) - 1) for i, token in enumerate(ids)]
            last.append(len(rows) - 1)
        self.decode(rows)
        outputs = [[self.sample(index)] for index in last]
        for i in range(count - 1):
            self.decode([(o[-1], len(prompts[s]) + i, s, True) for s, o in enumerate(outputs)])
            for sequence, output in enumerate(outputs):
                output.append(self.sample(sequence))
        return outputs

    def negative_log_likelihood(self, ids: list[int]) -> float:
        import numpy as np

        from .scoring import negative_log_likelihood

        self.clear()
        self.decode([(token, i, 0, True) for i, token in enumerate(ids)])
        pointer = self.api.llama_get_logits(self.context)
        logits = np.ctypeslib.as_array(pointer, shape=(len(ids), self.vocabulary))
        return negative_log_likelihood(logits, ids)

    def first_text(self, job: Job, text: str) -> str:
        import llama_cpp

        take_options(job)
        model: Any = llama_cpp.Llama(
            job.model, n_ctx=512, n_threads=job.threads, n_threads_batch=job.threads, verbose=False
        )
        return str(model.create_completion(text, max_tokens=1, temperature=0)["choices"][0]["text"])
