"""`subsecond generate`: a prompt in, the answer as it comes, then one line of figures."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from subsecond.cli import console
from subsecond.cli.options import ANSWER_TOKENS, Generate, model_given, sampling_given
from subsecond.errors import InputError
from subsecond.formats.progress import TerminalProgress
from subsecond.tasks.completion import Piece
from subsecond.tasks.generate import LLM


def run(options: Generate) -> int:
    """Exit code 0; errors are exceptions."""
    if options.raw and options.system is not None:
        raise InputError(
            "--system needs the chat template that --raw turns off; leave one of them out"
        )
    prompt = console.read_stdin() if options.prompt == "-" else options.prompt
    with TerminalProgress() as progress:
        # One text at a time: buffers for a batch would only cost memory.
        llm = LLM(**model_given(options), max_sequences=1, progress=progress)
    with llm:
        params = replace(llm.default_params, **sampling_given(options))
        chat = llm.has_chat_template and not options.raw
        if options.system is not None and not chat:
            raise InputError("--system needs a chat template, and this model has none")
        ids = llm.encode(prompt)
        if chat:
            messages = [{"role": "user", "content": prompt}]
            if options.system is not None:
                messages.insert(0, {"role": "system", "content": options.system})
            ids = llm.encode_chat(messages)
        if params.max_tokens is None:
            params = replace(params, max_tokens=max(1, min(ANSWER_TOKENS, llm.context - len(ids))))
        show = (lambda text: None) if options.json else console.write
        try:
            result = stream(llm.stream_request(llm.request(ids, params)), show)
        except KeyboardInterrupt:
            show("\n")  # ends the line that was being written
            raise
    result["prompt_tokens"] = len(ids)
    if options.json:
        console.write_json(result)
    else:
        console.write("\n")
        console.note(figures(result))
    return 0


def stream(pieces: Iterator[Piece], show: Any) -> dict[str, Any]:
    """Shows the pieces; text, reason of the end, and the figures of `figures`."""
    texts: list[str] = []
    first_s = started_s = ended_s = 0.0
    reason = None
    for piece in pieces:
        ended_s = time.monotonic()
        if not texts:
            first_s, started_s = console.seconds_since_start(), ended_s
        texts.append(piece.text)
        reason = piece.finish_reason
        show(piece.text)
    decode_s = ended_s - started_s
    return {
        "text": "".join(texts),
        "finish_reason": reason,
        "completion_tokens": len(texts),
        "first_token_s": round(first_s, 3),
        "tokens_per_s": round((len(texts) - 1) / decode_s, 1) if decode_s > 0 else None,
        "peak_memory_mb": round(console.peak_memory_mb(), 1),
    }


def figures(result: dict[str, Any]) -> str:
    """One line: tokens, time from the process's start to the first token, tokens/s after it, peak
    memory.
    """
    speed = "-" if result["tokens_per_s"] is None else f"{result['tokens_per_s']:.0f} tokens/s"
    return (
        f"[{result['prompt_tokens']} + {result['completion_tokens']} tokens; first token "
        f"{result['first_token_s']:.2f} s after start; {speed}; peak memory "
        f"{result['peak_memory_mb']:.0f} MB]"
    )
