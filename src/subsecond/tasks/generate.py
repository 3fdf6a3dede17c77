"""LLM: the whole road from a model's name to text.

Owns: the loaded model with its tokenizer, template and engine, and the lock that makes them usable
from several threads. Does not know: files (formats), kernels (runtime), how a step is formed
(engine).
"""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any

from subsecond.config import ModelOptions
from subsecond.engine.engine import Engine
from subsecond.engine.request import Request, SamplingParams, check_token_ids
from subsecond.errors import ModelError, RequestError, TextError
from subsecond.tasks.completion import Completion, Piece, TextState, Usage, timing_of
from subsecond.tasks.load import Loaded, load
from subsecond.text.template import ChatTemplate
from subsecond.text.tokenizer import Tokenizer

Prompt = str | Sequence[int]
Message = Mapping[str, Any]
Progress = Callable[[str, int, int, str], None]


class LLM:
    """A language model, ready to generate.

    model: an alias ("smollm2-135m"), a Hugging Face id, a folder, a GGUF file or a converted
    artifact; it is fetched and converted once. The other options are those of
    `subsecond.config.ModelOptions`. progress: called while the model is fetched and converted, with
    what is being done, how much is done, how much there is, and the unit.

    Methods are thread-safe. Raises ModelError, FetchError or InputError with the name of what is
    wrong, and the fix.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        weights: str | None = None,
        kv: str | None = None,
        threads: int | None = None,
        isa: str | None = None,
        max_tokens_per_step: int = 512,
        max_sequences: int = 16,
        context: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        options = ModelOptions(
            model=str(model),
            weights=weights,
            kv=kv,
            threads=threads,
            isa=isa,
            max_tokens_per_step=max_tokens_per_step,
            max_sequences=max_sequences,
            context=context,
        )
        self._loaded: Loaded | None = load(options, progress)
        # Not reentrant: a stream that the garbage collector closes in the middle of a step must
        # wait.
        self._lock = threading.Lock()
        self._abandoned: deque[Request] = deque()
        self._template: ChatTemplate | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self._parts.tokenizer

    @property
    def context(self) -> int:
        """Most tokens of a prompt and its answer together."""
        return self._parts.engine.context

    @property
    def vocab_size(self) -> int:
        """Number of logits a token."""
        return self._parts.vocab_size

    @property
    def executor(self) -> str:
        """What computes, as certificates name it: instruction set and KV cache format."""
        return self._parts.executor

    @property
    def has_chat_template(self) -> bool:
        """Whether `chat` can be used."""
        return self._parts.settings.chat_template is not None

    @property
    def default_params(self) -> SamplingParams:
        """The sampling that the model's authors suggest; most probable tokens where they suggest
        nothing.
        """
        suggested = dict(self._parts.settings.generation)
        if suggested.pop("do_sample", True) is False or not suggested:
            return SamplingParams(temperature=0.0)
        if "top_k" in suggested:
            suggested["top_k"] = int(suggested["top_k"])
        try:
            return SamplingParams(**suggested)  # type: ignore[arg-type]
        except RequestError as error:
            raise ModelError(f"the model suggests bad sampling ({error}); give params") from None

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Completion]:
        """Continues every prompt (text or token ids); all are computed together.

        params: one for all, or one a prompt; None is `default_params`. Raises RequestError for a
        prompt that is empty or doesn't fit the context (it is never cut), TextError for text that
        is not valid Unicode.
        """
        texts = _prompt_list(prompts)
        if params is None:
            params = self.default_params
        if not isinstance(params, (SamplingParams, list, tuple)):
            raise RequestError(
                "params must be SamplingParams, or a list with one a prompt, not "
                f"{type(params).__name__}",
                "params",
            )
        each = [params] * len(texts) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(texts):
            raise RequestError(
                f"{len(texts)} prompts need as many params, not {len(each)}", "params"
            )
        return self._run(
            [self.request(self.encode(text), own) for text, own in zip(texts, each, strict=True)]
        )

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[Piece]:
        """Continues one prompt; a piece a token. Closing the iterator ends the generation and frees
        its memory.
        """
        return self.stream_request(self.request(self.encode(prompt), params))

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> Completion:
        """Answers a conversation [{"role": "user", "content": "..."}, ...] through the model's chat
        template.
        """
        return self._run([self.request(self.encode_chat(messages, tools=tools), params)])[0]

    def stream_chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> Iterator[Piece]:
        """`chat`, a piece a token."""
        return self.stream_request(self.request(self.encode_chat(messages, tools=tools), params))

    def logits(self, token_ids: Sequence[int]) -> memoryview[float]:
        """Logits after every token: float32 [T, V], a buffer that `numpy.asarray` takes without a
        copy.
        """
        ids = check_token_ids(token_ids, self.vocab_size, "token_ids")
        if len(ids) > self.context:
            raise RequestError(
                f"{len(ids)} tokens don't fit the context of {self.context}", "token_ids"
            )
        memory = mmap.mmap(-1, 4 * len(ids) * self.vocab_size)
        with self._engine() as engine:
            engine.logits(ids, memoryview(memory).cast("f"))
        return memoryview(memory).cast("f", shape=[len(ids), self.vocab_size])

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt: text is tokenized (control tokens' spellings are ordinary text),
        ids are checked.
        """
        if not isinstance(prompt, str):
            return check_token_ids(prompt, self.vocab_size)
        if not prompt:
            raise RequestError(
                "the prompt is empty; give at least one character or token", "prompt"
            )
        return check_token_ids(self.tokenizer.encode(prompt), self.vocab_size)

    def encode_chat(
        self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """Token ids of a conversation, up to where the assistant answers."""
        if self._template is None:
            settings = self._parts.settings
            if settings.chat_template is None:
                raise TextError(
                    "the model has no chat template; use plain completion (generate, --raw)"
                )
            self._template = ChatTemplate(settings.chat_template, settings.special_tokens)
        return check_token_ids(
            self._template.encode(self.tokenizer, messages, tools=tools), self.vocab_size
        )

    def request(
        self, prompt: list[int], params: SamplingParams | None = None, *, keep: bool = False
    ) -> Request:
        """A request that `stream_request` runs; every value is checked. keep: its pages stay for a
        next turn.
        """
        if params is None:
            params = self.default_params
        if not isinstance(params, SamplingParams):
            raise RequestError(
                f"params must be SamplingParams, not {type(params).__name__}", "params"
            )
        for name, ids in (
            ("logit_bias", params.logit_bias),
            ("stop_token_ids", params.stop_token_ids),
        ):
            if ids:
                check_token_ids(list(ids), self.vocab_size, name)
        room = self.context - len(prompt)
        if room < 1:
            raise RequestError(
                f"the prompt has {len(prompt)} tokens; with at least one to generate it doesn't "
                "fit the context of "
                f"{self.context}; shorten it",
                "prompt",
            )
        params = replace(params, logit_bias=dict(params.logit_bias), stop=params.stops)
        stop_ids = [] if params.ignore_eos else list(self._parts.settings.stop_ids)
        max_tokens = room if params.max_tokens is None else params.max_tokens
        return Request(
            prompt,
            params,
            max_tokens=max_tokens,
            stop_ids=[*stop_ids, *params.stop_token_ids],
            keep=keep,
        )

    def stream_request(self, request: Request) -> Iterator[Piece]:
        """Runs a request; a piece a token. A request that can never run is refused here, before the
        first piece.
        """
        self._parts.engine.check(request)
        return self._stream(request)

    def _stream(self, request: Request) -> Iterator[Piece]:
        states = [TextState(self.tokenizer, sequence) for sequence in request.sequences]
        try:
            with self._engine() as engine:
                engine.submit(request)
            while any(state.finish_reason is None for state in states):
                with self._engine() as engine:
                    pieces = _advance(engine, states)
                    if not pieces and not request.finished:
                        engine.step()
                        pieces = _advance(engine, states)
                yield from pieces
            if request.error is not None:
                raise request.error
        finally:
            self._abandoned.append(request)
            self._drop_abandoned()

    def _run(self, requests: list[Request]) -> list[Completion]:
        submitted_s = time.monotonic()
        states = [
            [TextState(self.tokenizer, sequence) for sequence in request.sequences]
            for request in requests
        ]
        every = [state for own in states for state in own]
        with self._engine() as engine:
            for request in requests:
                engine.check(request)
            try:
                for request in requests:
                    engine.submit(request)
                while not all(request.finished for request in requests):
                    engine.step()
                    _advance(engine, every)
            finally:
                for request in requests:
                    engine.cancel(request)
        for request in requests:
            if request.error is not None:
                raise request.error
        return [
            completion_of(request, own, submitted_s)
            for request, own in zip(requests, states, strict=True)
        ]

    @contextmanager
    def _engine(self) -> Iterator[Engine]:
        """The engine, for this thread alone."""
        self._drop_abandoned()
        with self._lock:
            yield self._parts.engine

    def _drop_abandoned(self) -> None:
        """Ends the requests of closed streams, or leaves it to the next caller if the engine is
        busy.
        """
        while self._abandoned and self._lock.acquire(blocking=False):
            try:
                request = self._abandoned.popleft()
                if self._loaded is not None:
                    self._loaded.engine.cancel(request)
            except IndexError:  # another thread was quicker
                pass
            finally:
                self._lock.release()

    def close(self) -> None:
        """Frees the model's memory; the object can't be used afterwards."""
        with self._lock:
            self._loaded = None

    @property
    def _parts(self) -> Loaded:
        if self._loaded is None:
            raise RequestError("the LLM is closed")
        return self._loaded

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _advance(engine: Engine, states: Sequence[TextState]) -> list[Piece]:
    """New pieces of all texts; texts whose stop string appeared end in the engine as well."""
    pieces: list[Piece] = []
    for state in states:
        if state.finish_reason is None:
            pieces += state.advance()
            if state.stopped and state.sequence.finish_reason is None:
                engine.finish(state.sequence, "stop")
    return pieces


def completion_of(request: Request, states: Sequence[TextState], submitted_s: float) -> Completion:
    """The result of a finished request."""
    outputs = tuple(state.output() for state in states)
    usage = Usage(
        len(request.prompt), sum(len(o.token_ids) for o in outputs), request.cached_tokens
    )
    return Completion(outputs, usage, timing_of(request, submitted_s))


def _prompt_list(prompts: object) -> list[Prompt]:
    """One prompt or several, as a list."""
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, (list, tuple)):
        raise RequestError(
            f"prompts must be a text, token ids, or a list of them, not {type(prompts).__name__}",
            "prompts",
        )
    if not prompts:
        raise RequestError("prompts is empty; give at least one", "prompts")
    if all(isinstance(entry, int) for entry in prompts):
        return [prompts]
    return list(prompts)
