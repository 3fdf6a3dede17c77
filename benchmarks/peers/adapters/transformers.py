"""Hugging Face transformers on PyTorch's CPU backend: formats float32 and bfloat16, its own model
code, our greedy loop.
"""

from __future__ import annotations

import time
from typing import Any

from .contract import Generation, Job, take_options


class Adapter:
    def version(self) -> str:
        import torch
        import transformers

        return f"transformers {transformers.__version__}, torch {torch.__version__}"

    def load(self, job: Job) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        take_options(job)
        dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
        if job.format not in dtypes:
            raise ValueError(f"transformers: format {job.format} is not one of {sorted(dtypes)}")
        torch.set_num_threads(job.threads)
        self.torch: Any = torch
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            job.model, dtype=dtypes[job.format], attn_implementation="sdpa"
        ).eval()

    def run(self, prompts: list[list[int]], count: int) -> tuple[float, float, list[list[int]]]:
        from transformers import DynamicCache

        torch = self.torch
        ids = torch.tensor(prompts)
        positions = torch.arange(ids.shape[1])
        outputs = []
        first_s = 0.0
        start = time.perf_counter()
        with torch.inference_mode():
            cache = DynamicCache(config=self.model.config)
            for i in range(count):
                logits = self.model(
                    input_ids=ids,
                    position_ids=positions[None].expand(len(prompts), -1),
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                ).logits
                ids = logits[:, -1].argmax(-1, keepdim=True)
                outputs.append(ids)
                positions = positions[-1:] + 1
                if i == 0:
                    first_s = time.perf_counter() - start
        return first_s, time.perf_counter() - start, torch.cat(outputs, 1).tolist()

    def generate(self, ids: list[int], count: int) -> Generation:
        first_s, last_s, rows = self.run([ids], count)
        return Generation(first_s, last_s, rows[0])

    def generate_batch(self, prompts: list[list[int]], count: int) -> list[list[int]]:
        return self.run(prompts, count)[2]

    def negative_log_likelihood(self, ids: list[int]) -> float:
        torch = self.torch
        row = torch.tensor([ids])
        with torch.inference_mode():
            logits = self.model(input_ids=row).logits[0, :-1].double()
            loss = torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="sum")
        return float(loss)

    def first_text(self, job: Job, text: str) -> str:
        from transformers import AutoTokenizer

        self.load(job)
        tokenizer = AutoTokenizer.from_pretrained(job.model)
        ids = tokenizer(text, add_special_tokens=False).input_ids
        return str(tokenizer.decode(self.run([ids], 1)[2][0]))
