"""`subsecond generate`: a prompt in, the answer as it comes, then one line of figures."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from subsecond.cli import console
from subsecond.cli.options import Generate, model_given, sampling_given
from subsecond.engine.request import SamplingParams
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
    params = SamplingParams(**sampling_given(options))  # refuses bad values before any work
    prompt = console.read_stdin() if options.prompt == "-" else options.prompt
    with TerminalProgress() as progress:
        # One text at a time: buffers for a batch would only cost memory.
        llm = LLM(**model_given(options), max_sequences=1, progress=progress)
    if options.weights is not None:
        _say_what_was_kept(options)
    with llm:
        chat = llm.has_chat_template and not options.raw
        if options.system is not None and not chat:
            raise InputError("--system needs a chat template, and this model has none")
        ids = llm.encode(prompt)
        if chat:
            messages = [{"role": "user", "content": prompt}]
            if options.system is not None:
                messages.insert(0, {"role": "system", "content": options.system})
            ids = llm.encode_chat(messages)
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


def _say_what_was_kept(options: Generate) -> None:
    """`--weights` is a choice for matrices that lie on no grid yet; a line says where they do."""
    from subsecond.cli.stored import kept_line
    from subsecond.formats import artifact
    from subsecond.formats.locate import locate
    from subsecond.program.program import Program

    opened = artifact.open_artifact(locate(options.model, options.weights), check=False)  # type: ignore[arg-type]
    line = kept_line(opened, Program.from_json(opened.read(artifact.PROGRAM)))
    if line is not None:
        console.note(f"subsecond: {line}")


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
