"""LLM: the whole road from a model's name to text.

Owns: the loaded model with its tokenizer and template, and how a request is made of what a caller
gives. Does not know: files (formats), kernels (runtime), how a step is formed (engine), threads
(shared).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from subsecond.config import ModelOptions
from subsecond.engine.request import Request
from subsecond.engine.sampling import DEFAULT_MAX_TOKENS, Sampling, SamplingParams
from subsecond.engine.values import check_token_id, check_token_ids, plain_integer
from subsecond.errors import RequestError, TextError
from subsecond.tasks.completion import Completion, Piece
from subsecond.tasks.load import Loaded, load, model_name
from subsecond.tasks.prompts import Prompt, one_params, one_prompt, params_list, prompt_list
from subsecond.tasks.shared import SharedEngine
from subsecond.text.template import ChatTemplate
from subsecond.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from subsecond.engine.constraint_state import Grammars
    from subsecond.formats.artifact import Artifact
    from subsecond.formats.progress import Progress
    from subsecond.program.program import Program
    from subsecond.tasks.logits import Logits

Message = Mapping[str, Any]


class LLM:
    """A language model, ready to generate.

    >>> from subsecond import LLM, SamplingParams
    >>> with LLM("smollm2-135m") as llm:
    ...     answer = llm.chat([{"role": "user", "content": "Name three colours."}])
    ...     print(answer.text, answer.finish_reason)
    ...     for piece in llm.stream("The sky is", SamplingParams(temperature=0.8, max_tokens=40)):
    ...         print(piece.text, end="", flush=True)

    model                an alias ("smollm2-135m"), a Hugging Face id ("Qwen/Qwen2.5-0.5B-Instruct",
                         optionally @revision), a Hugging Face folder, a GGUF file or a converted
                         artifact; it is fetched and converted once
    weights              format of the matrices, "int4", "int8", "bf16" or "f32"; None: int4, or
                         what an artifact was converted to
    kv                   format of the KV cache, "bf16", "int8" or "f32"; None: what conversion
                         chose: f32 with f32 weights, int8 with int4 or int8 weights if it
                         changes the model's answers no more than bf16 does, else bf16
    threads              None: as many as the process has processors
    isa                  instruction set, "avx512" (VNNI and BF16), "avx512_vnni", "avx2", "neon" or
                         "generic"; None: the best that the processor has
    max_tokens_per_step  tokens of prompts that are computed at once
    max_sequences        texts that are computed together, and most `n` of a request
    context              most tokens of a prompt and its answer together; None: the model's own
    prefix_cache         tokens of texts that have ended which memory is kept for, so that texts
                         that begin alike compute only the rest; None: one context; 0: they stay
                         known only as long as others don't need their memory
    speculation          tokens that a text is likely to repeat, from its prompt or from itself, are
                         checked several at a time, where that is measured to pay; the answers are
                         the same to the bit
    progress             None: bars on standard error while the model is fetched and converted, if
                         it is a terminal; False: nothing; or a function that is called with what is
                         being done, how much is done, how much there is, the unit

    A prompt is a text, or token ids: a list of integers, or any one-dimensional array or buffer of
    them (NumPy, PyTorch). A text is continued as it is (`generate`, `stream`); `chat` and
    `stream_chat` put a conversation into the model's chat template first. Control tokens' spellings
    in texts of callers are ordinary text, unless `encode` is told that a text is ready-formatted.

    Parameters are SamplingParams; None is `SamplingParams()`: the model's own sampling where its
    authors suggest one, else greedy, and at most 1,024 tokens.

    Methods are thread-safe. A forked child process can't use its parent's LLM. `close`, or leaving
    the `with` block, frees the memory.

    Raises InputError for an option out of its range, ModelError for a model that is missing,
    damaged or not supported, FetchError if it can't be fetched. All errors derive from
    SubsecondError and name what is wrong and the fix.
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
        prefix_cache: int | None = None,
        speculation: bool = True,
        progress: Progress | Literal[False] | None = None,
    ) -> None:
        options = ModelOptions(
            model=model_name(model),
            weights=weights,
            kv=kv,
            threads=plain_integer(threads),
            isa=isa,
            max_tokens_per_step=plain_integer(max_tokens_per_step),
            max_sequences=plain_integer(max_sequences),
            context=plain_integer(context),
            prefix_cache=plain_integer(prefix_cache),
            speculation=speculation,
        )
        self._shared = SharedEngine(load(options, progress))
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
        """Number of logits a token; token ids are below it."""
        return self._parts.vocab_size

    @property
    def executor(self) -> str:
        """What computes, as certificates name it: instruction set and KV cache format."""
        return self._parts.executor

    @property
    def artifact(self) -> Artifact:
        """What was opened: the folder, and the manifest with the format of every tensor."""
        return self._parts.artifact

    @property
    def program(self) -> Program:
        """What is computed: the ops that the model was described as."""
        return self._parts.program

    @property
    def has_chat_template(self) -> bool:
        """Whether `chat` can be used."""
        return self._parts.settings.chat_template is not None

    @property
    def default_params(self) -> SamplingParams:
        """What `SamplingParams()` means for this model: the sampling that its authors suggest, most
        probable tokens where they suggest nothing. ModelError if they suggest bad values.
        """
        return SamplingParams(**msgspec.structs.asdict(self._sampling(SamplingParams())))

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Completion]:
        """Continues every prompt; all are computed together. One Completion a prompt, in order.

        prompts: one prompt (a text or token ids), or a list of them. params: one for all, or one a
        prompt. An answer that max_tokens ended has the finish_reason "length".

        Raises RequestError for a prompt that is empty or doesn't fit the context (it is never cut)
        and for a parameter that doesn't fit the model, TextError for text that is not valid Unicode
        or longer than 1 MiB, RuntimeFailure if the model computes NaN. Nothing is computed unless
        all prompts are good.
        """
        texts = prompt_list(prompts)
        each = params_list(params, len(texts))
        return self._shared.run(
            [self.request(self.encode(text), own) for text, own in zip(texts, each, strict=True)]
        )

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[Piece]:
        """Continues one prompt; a piece a token, as soon as it is there.

        The pieces' texts sum up to `generate`'s text; a piece never ends inside a character.
        Closing the iterator ends the generation and frees its memory. Raises what `generate`
        raises, before the first piece.
        """
        return self.stream_request(self.request(self.encode(prompt), params))

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool = False,
        template_variables: Mapping[str, Any] | None = None,
    ) -> Completion:
        """Answers a conversation through the model's chat template. All of it is computed at every
        call; `Chat` computes only what a turn adds.

        messages, tools, documents, continue_final_message, template_variables: see `encode_chat`.
        Raises what `generate` and `encode_chat` raise.
        """
        request = self._chat_request(
            messages, params, tools, documents, continue_final_message, template_variables
        )
        return self._shared.run([request])[0]

    def stream_chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool = False,
        template_variables: Mapping[str, Any] | None = None,
    ) -> Iterator[Piece]:
        """`chat`, a piece a token (as `stream`)."""
        return self.stream_request(
            self._chat_request(
                messages, params, tools, documents, continue_final_message, template_variables
            )
        )

    def _chat_request(  # noqa: PLR0917 (both callers give all, in this order)
        self,
        messages: Sequence[Message],
        params: SamplingParams | None,
        tools: Sequence[Mapping[str, Any]] | None,
        documents: Sequence[Mapping[str, Any]] | None,
        continue_final_message: bool,
        template_variables: Mapping[str, Any] | None,
    ) -> Request:
        ids = self.encode_chat(
            messages,
            tools=tools,
            documents=documents,
            continue_final_message=continue_final_message,
            template_variables=template_variables,
        )
        return self.request(ids, params)

    def logits(self, token_ids: Sequence[int]) -> Logits:
        """Logits after every token: float32 [T, V]. T is the number of `token_ids`, V is
        `vocab_size`. `logits[t]` is a row, `numpy.asarray(logits)` an array without a copy.

        Waits for generations that hold the KV cache. Raises RequestError for ids that are none or
        don't fit the context, RuntimeFailure naming the first position whose logits are NaN or
        infinite.
        """
        from subsecond.tasks import logits

        ids = check_token_ids(token_ids, self.vocab_size, "token_ids")
        if len(ids) > self.context:
            raise RequestError(
                f"{len(ids)} tokens don't fit the context of {self.context}", "token_ids"
            )
        scores = logits.empty(len(ids), self.vocab_size)
        self._shared.logits(ids, logits.flat(scores))
        return scores

    def encode(self, prompt: Prompt, *, control_tokens: bool = False) -> list[int]:
        """Token ids of a prompt, which every call takes in its place: text is tokenized, ids are
        checked.

        control_tokens: the text is ready-formatted, as "<|im_start|>user\\n..." is: spellings of
        control tokens in it are control tokens, and its own beginning-of-text token isn't doubled.
        Never for texts that others wrote a part of: they could end their turn and forge another.

        RequestError for an empty prompt or ids outside the vocabulary, TextError for text that is
        not valid Unicode or longer than 1 MiB.
        """
        prompt = one_prompt(prompt)
        if not isinstance(prompt, str):
            return check_token_ids(prompt, self.vocab_size)
        if not prompt:
            raise RequestError(
                "the prompt is empty; give at least one character or token", "prompt"
            )
        ids = self.tokenizer.encode(prompt, control_tokens=control_tokens)
        return check_token_ids(ids, self.vocab_size)

    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Token ids of a conversation, up to where the assistant answers.

        messages: [{"role": "user", "content": "..."}, ...]; roles are system, user, assistant, and
        what the template knows beside them (tool, ...). content is a text, or OpenAI's list of
        parts [{"type": "text", "text": "..."}]. tools: function descriptions (JSON Schema), for
        templates that take them. documents: for templates that take them.
        add_generation_prompt: whether the beginning of an answer follows the last message.
        continue_final_message: the answer goes on with the last message, which is the assistant's.
        template_variables: further variables of the template, such as {"enable_thinking": False}.

        Raises TextError for messages that are malformed or that the template refuses, tools or
        variables that it doesn't take, and a model without a template.
        """
        if self._template is None:
            settings = self._parts.settings
            if settings.chat_template is None:
                raise TextError(
                    "the model has no chat template; use plain completion (generate, --raw)"
                )
            self._template = ChatTemplate(settings.chat_template, settings.special_tokens)
        ids = self._template.encode(
            self.tokenizer,
            messages,
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt and not continue_final_message,
            continue_final_message=continue_final_message,
            variables=template_variables,
        )
        return check_token_ids(ids, self.vocab_size)

    def request(self, prompt: list[int], params: SamplingParams | None = None) -> Request:
        """A request that `stream_request` runs; every value is checked."""
        params = one_params(params)
        for token_id in params.logit_bias:
            check_token_id(token_id, self.vocab_size, "logit_bias", "a token id of logit_bias")
        if params.stop_token_ids:
            check_token_ids(params.stop_token_ids, self.vocab_size, "stop_token_ids")
        room = self.context - len(prompt)
        if room < 1:
            raise RequestError(
                f"the prompt has {len(prompt)} tokens; with at least one to generate it doesn't "
                f"fit the context of {self.context}; shorten it",
                "prompt",
            )
        max_tokens = params.max_tokens
        if max_tokens is None:
            if params.min_tokens > room:
                raise RequestError(
                    f"min_tokens is {params.min_tokens}, but after the prompt's {len(prompt)} "
                    f"tokens the context of {self.context} holds only {room}",
                    "min_tokens",
                )
            max_tokens = min(room, max(DEFAULT_MAX_TOKENS, params.min_tokens))
        stop_ids = [] if params.ignore_eos else list(self._parts.settings.stop_ids)
        constraint = params.constraint
        return Request(
            prompt,
            params,
            max_tokens=max_tokens,
            stop_ids=[*stop_ids, *params.stop_token_ids],
            sampling=self._sampling(params),
            constraint=None if constraint is None else self._grammars.compile(constraint),
        )

    def stream_request(self, request: Request) -> Iterator[Piece]:
        """Runs a request; a piece a token. A request that can never run is refused here, before the
        first piece.
        """
        self._parts.engine.check(request)
        return self._shared.stream(request)

    def cancel(self, request: Request) -> None:
        """Ends a request early, before its next step: its stream gives the tokens that are done and
        ends with "cancelled". May be called from other threads and from signal handlers.
        """
        self._shared.cancel(request)

    def close(self) -> None:
        """Frees the model's memory when the running call has ended; the object can't be used
        afterwards.
        """
        self._shared.close()

    def _sampling(self, params: SamplingParams) -> Sampling:
        return Sampling.of(params, self._parts.settings.generation)

    @functools.cached_property
    def _grammars(self) -> Grammars:
        """Made when the first constraint comes: it takes tenths of a second."""
        from subsecond.engine.constraint_state import Grammars
        from subsecond.tasks.vocabulary import vocabulary_of

        return Grammars(vocabulary_of(self.tokenizer, self._parts.settings, self.vocab_size))

    @property
    def _parts(self) -> Loaded:
        return self._shared.parts

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
