"""`subsecond generate`: a prompt in, the answer as it comes, then one line of figures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from subsecond.cli import console
from subsecond.cli.options import Generate, model_given, sampling_given
from subsecond.cli.stored import kept_line, say_where
from subsecond.engine.constraint import Constraint
from subsecond.engine.sampling import SamplingParams
from subsecond.errors import InputError
from subsecond.formats.progress import TerminalProgress
from subsecond.tasks.completion import Piece
from subsecond.tasks.generate import LLM

TOKENS_A_STEP = 512  # of a prompt, computed at once; each of n texts takes one


def run(options: Generate) -> int:
    """Exit code 0; errors are exceptions."""
    if (options.raw or options.control_tokens) and options.system is not None:
        flag = "--raw" if options.raw else "--control-tokens"
        raise InputError(
            f"--system needs the chat template that {flag} turns off; leave one of them out"
        )
    if options.logprobs is not None and not options.json:
        raise InputError("--logprobs are shown with --json only; add it, or leave --logprobs out")
    params = SamplingParams(  # refuses bad values before any work
        **sampling_given(options), constraint=_constraint(options)
    )
    prompt = _prompt(options)
    with TerminalProgress() as progress:
        # Buffers for more texts than there will be would only cost memory.
        step = max(TOKENS_A_STEP, params.n)
        llm = LLM(
            **model_given(options),
            max_sequences=params.n,
            max_tokens_per_step=step,
            speculation=not options.no_speculation,
            progress=progress,
        )
    if progress.converted:
        say_where(llm.artifact)
    # --weights is a choice for matrices that lie on no grid yet; a line says where they do.
    if options.weights is not None and (kept := kept_line(llm.artifact, llm.program)):
        console.note(f"subsecond: {kept}")
    with llm:
        request = llm.request(_ids(llm, prompt, options), params)
        answers = Answers(params.n, (lambda text: None) if options.json else console.write)
        try:
            answers.take(llm.stream_request(request))
        except KeyboardInterrupt:
            if not options.json:
                console.write("\n")  # ends the line that was being written
            raise
        result = answers.result(len(request.prompt), logprobs=params.logprobs is not None)
        cut = _cut(answers, params.max_tokens, len(request.prompt), llm.context)
    if options.json:
        console.write_json(result)
    else:
        console.write("\n")
        console.note(figures(result, cut))
    return 0


def _constraint(options: Generate) -> Constraint | None:
    if options.json_schema is None:
        return None
    constraint = Constraint.json_schema(console.read_file(options.json_schema))
    constraint.check()
    return constraint


def _prompt(options: Generate) -> str:
    if options.prompt_file is not None:
        return console.read_file(options.prompt_file)
    return console.read_stdin() if options.prompt == "-" else str(options.prompt)


def _ids(llm: LLM, prompt: str, options: Generate) -> list[int]:
    """The prompt's token ids, in the chat template where there is one."""
    if options.control_tokens:
        return llm.encode(prompt, control_tokens=True)
    chat = llm.has_chat_template and not options.raw
    if options.system is not None and not chat:
        raise InputError("--system needs a chat template, and this model has none")
    ids = llm.encode(prompt)
    spelled = next((own for own in llm.tokenizer.control_tokens if own in prompt), None)
    if spelled is not None:
        console.warn(
            f"the prompt holds {spelled}, which is read as ordinary text; --control-tokens reads "
            "it as the control token"
        )
    if not chat:
        return ids
    messages = [{"role": "user", "content": prompt}]
    if options.system is not None:
        messages.insert(0, {"role": "system", "content": options.system})
    return llm.encode_chat(messages)


def _cut(answers: Answers, max_tokens: int | None, prompt_tokens: int, context: int) -> str:
    """What ended an answer before its own end, in words; "" if nothing did."""
    lengths = [len(own) for own in answers.pieces if own and own[-1].finish_reason == "length"]
    if not lengths:
        return ""
    if max_tokens is not None:
        return "stopped at --max-tokens"
    if prompt_tokens + max(lengths) >= context:
        return "context full"
    return f"stopped at --max-tokens (default {max(lengths)})"


class Answers:
    """The pieces of every text, shown in the order of the texts as they come: later texts wait."""

    def __init__(self, count: int, show: Callable[[str], None]) -> None:
        self.pieces: list[list[Piece]] = [[] for _ in range(count)]
        self._show = show
        self._shown = 0  # the text that is being shown
        self._waiting = [""] * count
        self._ended = [False] * count
        self._first_s = self._started_s = self._ended_s = 0.0

    def take(self, pieces: Iterator[Piece]) -> None:
        """Takes all pieces."""
        self._head()
        for piece in pieces:
            self._ended_s = time.monotonic()
            if not self._first_s:
                self._first_s, self._started_s = console.seconds_since_start(), self._ended_s
            self.pieces[piece.index].append(piece)
            self._waiting[piece.index] += piece.text
            self._ended[piece.index] = piece.finish_reason is not None
            self._advance()

    def _head(self) -> None:
        if len(self.pieces) > 1:
            self._show(f"--- {self._shown + 1} of {len(self.pieces)}\n")

    def _advance(self) -> None:
        """Shows what the text in turn has, and moves on behind its end."""
        while True:
            now = self._shown
            self._show(self._waiting[now])
            self._waiting[now] = ""
            if not self._ended[now] or now + 1 == len(self.pieces):
                return
            self._show("\n")
            self._shown += 1
            self._head()

    def result(self, prompt_tokens: int, *, logprobs: bool) -> dict[str, Any]:
        """What --json prints: the first text, all texts, and the figures of `figures`."""
        outputs = [_output(own, logprobs=logprobs) for own in self.pieces]
        tokens = sum(map(len, self.pieces))
        decode_s = self._ended_s - self._started_s
        # The first step gives each text a token; the time of the others is known.
        later = tokens - len(self.pieces)
        return {
            **outputs[0],
            **({"outputs": outputs} if len(outputs) > 1 else {}),
            "prompt_tokens": prompt_tokens,
            "completion_tokens": tokens,
            "first_token_s": round(self._first_s, 3),
            "tokens_per_s": round(later / decode_s, 1) if decode_s > 0 and later > 0 else None,
            "peak_memory_mb": round(console.peak_memory_mb(), 1),
        }


def _output(pieces: list[Piece], *, logprobs: bool) -> dict[str, Any]:
    """One text for --json."""
    output: dict[str, Any] = {
        "text": "".join(piece.text for piece in pieces),
        "finish_reason": pieces[-1].finish_reason if pieces else None,
        "token_ids": [piece.token_id for piece in pieces],
    }
    if logprobs:
        output["logprobs"] = [
            {"token_id": own.token_id, "logprob": own.logprob, "top": [list(t) for t in own.top]}
            for own in (piece.logprob for piece in pieces)
            if own is not None
        ]
    return output


def figures(result: dict[str, Any], cut: str) -> str:
    """One line: tokens, time from the process's start to the first token, tokens/s after it, peak
    memory, and what cut the answer.
    """
    speed = "-" if result["tokens_per_s"] is None else f"{result['tokens_per_s']:.0f} tokens/s"
    return (
        f"[{result['prompt_tokens']} + {result['completion_tokens']} tokens; first token "
        f"{result['first_token_s']:.2f} s after start; {speed}; peak memory "
        f"{result['peak_memory_mb']:.0f} MB{f'; {cut}' if cut else ''}]"
    )
