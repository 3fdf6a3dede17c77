"""What the front process has of a model: tokenizer, template, and what a request needs to become
token ids and back.

Owns: prompts to ids with their bounds, parameters filled in as `LLM` fills them, what `/v1/models`
says. Does not know: the engine, deadlines, HTTP. Tokenizing is slow: it is called in threads.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from subsecond.engine.messages import SamplingFields
from subsecond.engine.sampling import DEFAULT_MAX_TOKENS, Sampling, SamplingParams
from subsecond.engine.values import check_token_id, check_token_ids
from subsecond.errors import RequestError
from subsecond.formats import artifact, certificate, text_settings
from subsecond.formats.certificate import Certificate
from subsecond.serve.schema.models import Model
from subsecond.serve.schema.shared import Generation
from subsecond.text.template import ChatTemplate
from subsecond.text.tokenizer import Tokenizer
from subsecond.text.tool_calls import Syntax, syntax_of


class _Groups(msgspec.Struct):
    """Of program.json, what says how KV pages are counted."""

    groups: list[msgspec.Raw]


@dataclass(frozen=True)
class TextSide:
    """A model as texts see it. name: as it is served. cache_groups: among which KV pages are
    divided. longest_token: bytes of text that one token can stand for at most.
    """

    name: str
    path: Path
    tokenizer: Tokenizer
    settings: text_settings.TextSettings
    template: ChatTemplate | None
    cache_groups: int
    longest_token: int
    certificate: Certificate
    weights: str
    weights_bytes: int
    made: int

    @staticmethod
    def open(name: str, path: Path) -> TextSide:
        """Reads an artifact. Raises ModelError naming what is wrong."""
        opened = artifact.open_artifact(path, check=False)
        settings = text_settings.decode(opened.read(artifact.TEXT))
        template = None
        if settings.chat_template is not None:
            template = ChatTemplate(settings.chat_template, settings.special_tokens)
        tokenizer = Tokenizer(opened.read(artifact.TOKENIZER))
        record = certificate.decode(opened.read(artifact.CERTIFICATE))
        certificate.check_binding(
            record, {name: file.sha256 for name, file in opened.manifest.files.items()}
        )
        groups = msgspec.json.decode(opened.read(artifact.PROGRAM), type=_Groups).groups
        return TextSide(
            name=name,
            path=path,
            tokenizer=tokenizer,
            settings=settings,
            template=template,
            cache_groups=max(1, len(groups)),
            longest_token=tokenizer.longest_token_bytes,
            certificate=record,
            weights=opened.manifest.weights,
            weights_bytes=opened.manifest.files[artifact.WEIGHTS].size,
            made=int(opened.weights_path.stat().st_mtime),
        )

    def describe(self, context: int) -> Model:
        """Its entry of `/v1/models`."""
        return Model(
            id=self.name,
            created=self.made,
            certificate=self.certificate.kind,
            context=context,
            weights=self.weights,
        )

    def encode(self, prompt: str | list[int], context: int, vocab_size: int) -> list[int]:
        """Token ids of a prompt; RequestError for one that is empty or can't fit the context,
        TextError for a text that can't be tokenized.
        """
        if isinstance(prompt, str):
            if not prompt:
                raise RequestError(
                    "the prompt is empty; give at least one character or token", "prompt"
                )
            self.check_size(len(prompt), context, "prompt")
            prompt = self.tokenizer.encode(prompt)
        return self._fits(check_token_ids(prompt, vocab_size), context, "prompt")

    @functools.cached_property
    def tool_syntax(self) -> Syntax | None:
        """The form in which the model writes calls; None if it isn't known."""
        return syntax_of(self.settings.chat_template or "")

    def encode_chat(
        self,
        messages: Sequence[dict[str, Any]],
        context: int,
        vocab_size: int,
        tools: Sequence[dict[str, Any]] = (),
    ) -> list[int]:
        """Token ids of a conversation, up to where the assistant answers. tools: as OpenAI has
        them.
        """
        ids = self.chat_ids(messages, True, context, tools)
        return self._fits(check_token_ids(ids, vocab_size, "messages"), context, "messages")

    def chat_ids(
        self,
        messages: Sequence[dict[str, Any]],
        begin_answer: bool,
        context: int,
        tools: Sequence[dict[str, Any]] = (),
    ) -> list[int]:
        """Token ids of a conversation, however many. begin_answer: the beginning of the assistant's
        turn follows.
        """
        if self.template is None:
            raise RequestError("this model has no chat template; use /v1/completions", "messages")
        size = sum(len(part) for part in _texts([*messages, *tools]))
        self.check_size(size, context, "messages")
        return self.template.encode(
            self.tokenizer, messages, tools=tools or None, add_generation_prompt=begin_answer
        )

    def fields(
        self,
        params: SamplingParams,
        room: int,
        vocab_size: int,
        *,
        score_prompt: bool = False,
        embeds: bool = False,
    ) -> SamplingFields:
        """The parameters with nothing left open, for a prompt after which the context has room for
        so many tokens. RequestError for what doesn't fit the model.
        """
        for token_id in params.logit_bias:
            check_token_id(token_id, vocab_size, "logit_bias", "a token id of logit_bias")
        if params.stop_token_ids:
            check_token_ids(params.stop_token_ids, vocab_size, "stop_token_ids")
        most = params.max_tokens
        if most is None:
            most = min(room, max(DEFAULT_MAX_TOKENS, params.min_tokens))
        for name, value in (("max_tokens", most), ("min_tokens", params.min_tokens)):
            if value > room:
                raise RequestError(
                    f"{name} is {value}, but after the prompt the context holds only {room} more "
                    "tokens",
                    name,
                )
        stop_ids = [] if params.ignore_eos else list(self.settings.stop_ids)
        sampling = Sampling.of(params, self.settings.generation)
        return SamplingFields(
            max_tokens=most,
            stop_ids=list(dict.fromkeys([*stop_ids, *params.stop_token_ids])),
            min_tokens=params.min_tokens,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            seed=params.seed,
            logit_bias=dict(params.logit_bias),
            logprobs=params.logprobs,
            n=params.n,
            score_prompt=score_prompt,
            embeds=embeds,
        )

    def least_tokens(self, request: Generation) -> list[int]:
        """Of each prompt of a request, tokens that it has at least: none stands for more bytes than
        the longest, and a character has at least one.
        """
        least = []
        for prompt in prompts_of(request):
            if isinstance(prompt, list) and all(isinstance(own, int) for own in prompt):
                least.append(max(1, len(prompt)))  # token ids
            else:
                size = sum(map(len, _texts(prompt)))
                least.append(max(1, -(-size // self.longest_token)))
        return least

    def check_size(self, characters: int, context: int, param: str) -> None:
        """Before a text is tokenized: whether it could fit at all."""
        most = context * self.longest_token
        if characters > most:
            raise RequestError(
                f"{param} has {characters:,} characters; the context of {context:,} tokens can't "
                "hold so long a text",
                param,
            )

    def _fits(self, ids: list[int], context: int, param: str) -> list[int]:
        if len(ids) >= context:
            raise RequestError(
                f"the prompt has {len(ids)} tokens; with at least one to generate it doesn't fit "
                f"the context of {context}; shorten it",
                param,
            )
        return ids


def prompts_of(request: Generation) -> Sequence[Any]:
    """What a request asks, whatever its route: texts, token ids, or one list of messages."""
    for name in ("prompts", "inputs"):
        found: Sequence[Any] | None = getattr(request, name, None)
        if found:
            return found
    return [getattr(request, "messages", "")]


def _texts(value: Any) -> list[str]:
    """All texts in a message."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for part in value.values() for text in _texts(part)]
    if isinstance(value, list):
        return [text for part in value for text in _texts(part)]
    return []
