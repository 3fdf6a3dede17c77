"""How answers of `/v1/responses` are written, whole and as events.

Owns: the order of a stream's events, and the response's states. Does not know: the engine,
deadlines, sending.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec

from subsecond.serve import logprobs
from subsecond.serve.choice_text import Piece
from subsecond.serve.errors import ServeError
from subsecond.serve.generation import Summary
from subsecond.serve.schema import responses_events as events
from subsecond.serve.schema import wire
from subsecond.serve.schema.chat import TokenLogprob
from subsecond.serve.schema.responses import Respond
from subsecond.text.tokenizer import Tokenizer

_INCOMPLETE = {"length": "max_output_tokens", "deadline": "deadline"}


class ResponsesForm:
    """One message of text. id: of the response; created: Unix seconds."""

    def __init__(self, request: Respond, tokenizer: Tokenizer, id: str, created: int) -> None:
        self._request = request
        self._tokenizer = tokenizer
        self._item_id = f"msg_{id}"
        self._response = events.response(request, f"resp_{id}", created, "in_progress")
        self._numbered = events.Numbered()
        self._with_logprobs = request.params.logprobs is not None
        self._begun = False
        self._texts: list[str] = []
        self._logprobs: list[TokenLogprob] = []

    def piece(self, piece: Piece) -> bytes:
        """Of Form."""
        entries = logprobs.of_chat(self._tokenizer, piece) if self._with_logprobs else []
        self._texts.append(piece.text)
        self._logprobs += entries
        if not self._request.stream:
            return b""
        begin = self._begin()
        if not piece.text and not entries:
            return begin
        return begin + self._numbered.event(
            events.TextDelta, delta=piece.text, logprobs=entries, content_index=0, **self._place
        )

    def finished(self, index: int, reason: str, summary: Summary | None) -> bytes:
        """Of Form."""
        begin = self._begin()
        if summary is None:  # there is one text, and its end is the answer's
            return begin
        status = "incomplete" if reason in _INCOMPLETE else "completed"
        part, item = self._part(), self._item(status)
        own = self._numbered.event
        done = own(
            events.TextDone,
            text=part.text,
            logprobs=part.logprobs,
            content_index=0,
            **self._place,
        )
        done += own(
            events.PartEvent,
            "response.content_part.done",
            part=part,
            content_index=0,
            **self._place,
        )
        done += own(events.ItemEvent, "response.output_item.done", item=item, output_index=0)
        response = self._ended(reason, summary)
        return begin + done + own(events.ResponseEvent, f"response.{status}", response=response)

    def last(self, summary: Summary) -> bytes:
        """Of Form."""
        return b""

    def failed(self, error: ServeError) -> bytes:
        """Of Form."""
        failed = msgspec.structs.replace(
            self._response,
            status="failed",
            error=events.ResponseError(str(error.code), str(error)),
            output=[self._item("incomplete")],
        )
        own = self._numbered.event
        return own(events.ResponseEvent, "response.failed", response=failed) + own(
            events.ErrorEvent, code=error.code, message=str(error), param=error.param
        )

    def whole(self, reasons: Sequence[str], summary: Summary) -> bytes:
        """Of Form."""
        return wire.encode(self._ended(reasons[0], summary))

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item_id, "output_index": 0}

    def _begin(self) -> bytes:
        """The events before the first text."""
        if self._begun:
            return b""
        self._begun = True
        own, response = self._numbered.event, self._response
        item = msgspec.structs.replace(self._item("in_progress"), content=[])
        return (
            own(events.ResponseEvent, "response.created", response=response)
            + own(events.ResponseEvent, "response.in_progress", response=response)
            + own(events.ItemEvent, "response.output_item.added", item=item, output_index=0)
            + own(
                events.PartEvent,
                "response.content_part.added",
                part=events.OutputText(text=""),
                content_index=0,
                **self._place,
            )
        )

    def _part(self) -> events.OutputText:
        return events.OutputText(text="".join(self._texts), logprobs=self._logprobs)

    def _item(self, status: Any) -> events.OutputMessage:
        return events.OutputMessage(id=self._item_id, status=status, content=[self._part()])

    def _ended(self, reason: str, summary: Summary) -> events.Response:
        why = _INCOMPLETE.get(reason)
        return msgspec.structs.replace(
            self._response,
            status="completed" if why is None else "incomplete",
            completed_at=int(time.time()) if why is None else None,
            incomplete_details=None if why is None else events.IncompleteDetails(why),
            output=[self._item("completed" if why is None else "incomplete")],
            usage=events.Usage.of(
                summary.prompt_tokens, summary.completion_tokens, summary.cached_tokens
            ),
            subsecond=summary.promise,
        )
