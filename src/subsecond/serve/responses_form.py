"""How answers of `/v1/responses` are written, whole and as events.

Owns: the order of a stream's events, and the response's states. Does not know: the engine,
deadlines, sending.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from subsecond.serve import logprobs
from subsecond.serve.calls import Call, CallsOfText
from subsecond.serve.choice_text import Piece
from subsecond.serve.errors import ServeError
from subsecond.serve.form import Summary
from subsecond.serve.schema import responses_events as events
from subsecond.serve.schema import wire
from subsecond.serve.schema.chat import DeltaToolCall, TokenLogprob
from subsecond.serve.schema.responses import Respond, Status
from subsecond.text.tokenizer import Tokenizer
from subsecond.text.tool_calls import Syntax

_INCOMPLETE = {"length": "max_output_tokens", "deadline": "deadline"}


class ResponsesForm:
    """Messages and calls. id: of the response; created: Unix seconds. syntax: of the calls that are
    to be read out of the text.
    """

    def __init__(
        self,
        request: Respond,
        tokenizer: Tokenizer,
        id: str,
        created: int,
        syntax: Syntax | None = None,
    ) -> None:
        self._request = request
        self._tokenizer = tokenizer
        self._id = id
        self._response = events.response(request, f"resp_{id}", created, "in_progress")
        self._numbered = events.Numbered()
        self._with_logprobs = request.params.logprobs is not None
        self._calls = None if syntax is None else CallsOfText(syntax, id[:20])
        self._begun = False
        self._items: list[_Message | _Call] = []

    def piece(self, piece: Piece) -> bytes:
        """Of Form."""
        entries = logprobs.of_chat(self._tokenizer, piece) if self._with_logprobs else []
        text, calls = piece.text, list[DeltaToolCall]()
        if self._calls is not None:
            text, calls = self._calls.push(text)
        return self._shown(self._begin() + self._grow(text, calls, entries))

    def finished(self, index: int, reason: str, summary: Summary | None) -> bytes:
        """Of Form."""
        data = self._begin() + self._rest()
        if summary is None:  # there is one text, and its end is the answer's
            return self._shown(data)
        status: Status = "incomplete" if reason in _INCOMPLETE else "completed"
        data += self._close(status)
        response = self._ended(reason, summary)
        name = f"response.{status}"
        return data + self._numbered.event(events.ResponseEvent, name, response=response)

    def last(self, summary: Summary) -> bytes:
        """Of Form."""
        return b""

    def failed(self, error: ServeError) -> bytes:
        """Of Form."""
        failed = msgspec.structs.replace(
            self._response,
            status="failed",
            error=events.ResponseError(str(error.code), str(error)),
            output=self._output("incomplete"),
        )
        own = self._numbered.event
        return own(events.ResponseEvent, "response.failed", response=failed) + own(
            events.ErrorEvent, code=error.code, message=str(error), param=error.param
        )

    def whole(self, reasons: Sequence[str], summary: Summary) -> bytes:
        """Of Form."""
        self._rest()
        return wire.encode(self._ended(reasons[0], summary))

    def _shown(self, data: bytes) -> bytes:
        return data if self._request.stream else b""

    def _begin(self) -> bytes:
        """The events before the first item."""
        if self._begun:
            return b""
        self._begun = True
        own, response = self._numbered.event, self._response
        data = own(events.ResponseEvent, "response.created", response=response)
        return data + own(events.ResponseEvent, "response.in_progress", response=response)

    def _grow(
        self, text: str, calls: Sequence[DeltaToolCall], entries: list[TokenLogprob]
    ) -> bytes:
        """The events for what is added to the output: text, then calls."""
        data = b""
        if text or entries:
            data += self._said(text, entries)
        for delta in calls:
            if delta.id is not None:
                data += self._close("completed") if self._items else b""
                data += self._add(_Call(self._last_call()))
            elif delta.function is not None:
                data += self._numbered.event(
                    events.ArgumentsDelta, delta=delta.function["arguments"], **self._place
                )
        return data

    def _said(self, text: str, entries: list[TokenLogprob]) -> bytes:
        data, item = b"", self._items[-1] if self._items else None
        if not isinstance(item, _Message):
            if not text:  # log probabilities of a call's tokens have no place here
                return b""
            data = self._close("completed") if item is not None else b""
            item = _Message(f"msg_{self._id}" + (f"_{len(self._items)}" if self._items else ""))
            data += self._add(item)
        item.texts.append(text)
        item.logprobs += entries
        return data + self._numbered.event(
            events.TextDelta, delta=text, logprobs=entries, content_index=0, **self._place
        )

    def _add(self, item: _Message | _Call) -> bytes:
        """An item begins."""
        self._items.append(item)
        own, index = self._numbered.event, len(self._items) - 1
        empty = item.empty()
        data = own(events.ItemEvent, "response.output_item.added", item=empty, output_index=index)
        if isinstance(item, _Message):
            part = events.OutputText(text="")
            data += own(
                events.PartEvent,
                "response.content_part.added",
                part=part,
                content_index=0,
                **self._place,
            )
        return data

    def _close(self, status: Status) -> bytes:
        """The last item ends. An answer has at least a message, though it may be empty."""
        data = b""
        if not self._items:
            data = self._add(_Message(f"msg_{self._id}"))
        item, own = self._items[-1], self._numbered.event
        if isinstance(item, _Message):
            part = item.part()
            data += own(
                events.TextDone,
                text=part.text,
                logprobs=part.logprobs,
                content_index=0,
                **self._place,
            )
            data += own(
                events.PartEvent,
                "response.content_part.done",
                part=part,
                content_index=0,
                **self._place,
            )
        else:
            call = item.call
            data += own(
                events.ArgumentsDone, name=call.name, arguments=call.arguments, **self._place
            )
        return data + own(
            events.ItemEvent,
            "response.output_item.done",
            item=item.made(status),
            output_index=len(self._items) - 1,
        )

    def _rest(self) -> bytes:
        """What was held of the text, once it has ended."""
        if self._calls is None:
            return b""
        return self._grow(*self._calls.finish(), [])

    def _last_call(self) -> Call:
        """The call that begins now: those of one piece come in their order."""
        begun = sum(isinstance(item, _Call) for item in self._items)
        return self._calls.calls[begun]  # type: ignore[union-attr]

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self._items[-1].id, "output_index": len(self._items) - 1}

    def _output(self, status: Status) -> list[events.Item]:
        """The items; `status` is the last one's."""
        items = self._items or [_Message(f"msg_{self._id}")]
        last = len(items) - 1
        return [
            item.made(status if index == last else "completed") for index, item in enumerate(items)
        ]

    def _ended(self, reason: str, summary: Summary) -> events.Response:
        why = _INCOMPLETE.get(reason)
        return msgspec.structs.replace(
            self._response,
            status="completed" if why is None else "incomplete",
            completed_at=int(time.time()) if why is None else None,
            incomplete_details=None if why is None else events.IncompleteDetails(why),
            output=self._output("completed" if why is None else "incomplete"),
            usage=events.Usage.of(
                summary.prompt_tokens, summary.completion_tokens, summary.cached_tokens
            ),
            subsecond=summary.promise,
        )


@dataclass
class _Message:
    """Text in the making."""

    id: str
    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)

    def part(self) -> events.OutputText:
        return events.OutputText(text="".join(self.texts), logprobs=self.logprobs)

    def empty(self) -> events.Item:
        return events.OutputMessage(id=self.id, status="in_progress", content=[])

    def made(self, status: Status) -> events.Item:
        return events.OutputMessage(id=self.id, status=status, content=[self.part()])


@dataclass
class _Call:
    """A call in the making."""

    call: Call

    @property
    def id(self) -> str:
        return f"fc_{self.call.id.removeprefix('call_')}"

    def empty(self) -> events.Item:
        return self._item("", "in_progress")

    def made(self, status: Status) -> events.Item:
        return self._item(self.call.arguments, status)

    def _item(self, arguments: str, status: Status) -> events.Item:
        call = self.call
        return events.OutputCall(
            id=self.id, call_id=call.id, name=call.name, arguments=arguments, status=status
        )
