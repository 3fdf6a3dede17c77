"""Bytes between the processes: whatever arrives is a message or a ProtocolError."""

from __future__ import annotations

import math
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from subsecond.engine import framing
from subsecond.engine.cost import StepShape
from subsecond.engine.framing import MAX_BODY_BYTES, FrameReader, frame
from subsecond.engine.messages import (
    Cancel,
    Drain,
    Draining,
    ErrorInfo,
    Event,
    Fatal,
    Load,
    Loaded,
    LoadFailed,
    LoadOptions,
    ModelInfo,
    Ping,
    Pong,
    Refused,
    SamplingFields,
    Stamps,
    StepDone,
    StepStats,
    Submit,
    TokenLogprob,
    Unload,
    Unloaded,
    Usage,
    engine_decoder,
    error_info,
    error_of,
    front_decoder,
)
from subsecond.errors import ModelError, ProtocolError, RequestError, RuntimeFailure

ids = st.integers(0, 2**63 - 1)
counts = st.integers(0, 2**31 - 1)
names = st.text(min_size=1, max_size=20)
tokens = st.lists(counts, max_size=20)
numbers = st.floats(allow_nan=False)

sampling = st.builds(
    SamplingFields,
    max_tokens=st.integers(1, 2**31 - 1),
    stop_ids=tokens,
    temperature=numbers,
    seed=st.none() | st.integers(0, 2**64 - 1),
    logit_bias=st.dictionaries(counts, numbers, max_size=3),
    logprobs=st.none() | st.integers(0, 20),
    n=st.integers(1, 1024),
)
front_messages = st.one_of(
    st.builds(Load, names, st.text(max_size=40), st.builds(LoadOptions)),
    st.builds(Unload, names),
    st.builds(
        Submit,
        id=ids,
        model=names,
        prompt=st.lists(counts, min_size=1, max_size=40),
        params=sampling,
        deadline_s=numbers | st.just(math.inf),
        promised_tokens=counts,
        on_deadline=st.sampled_from(["finish", "full"]),
        tenant=st.text(max_size=10),
    ),
    st.builds(Cancel, ids, st.none() | counts),
    st.builds(Ping, ids),
    st.just(Drain()),
)
events = st.builds(
    Event,
    id=ids,
    choice=counts,
    tokens=tokens,
    finish_reason=st.sampled_from([None, "stop", "length", "cancelled", "deadline"]),
    logprobs=st.none()
    | st.lists(st.builds(TokenLogprob, numbers, st.lists(st.tuples(counts, numbers), max_size=2))),
    error=st.none() | st.builds(ErrorInfo, names, names),
    timing=st.none() | st.builds(Stamps, numbers, numbers, numbers, numbers),
    usage=st.none() | st.builds(Usage, counts, counts, counts),
)
stats = st.builds(
    StepStats,
    shape=st.none() | st.builds(StepShape, counts, counts, counts, counts, counts),
    elapsed_s=numbers,
    steps=counts,
    running=counts,
    waiting=counts,
    pages_free=counts,
    pages_total=counts,
    pages_cached=counts,
)
engine_messages = st.one_of(
    st.builds(Loaded, names, st.builds(ModelInfo, *[counts] * 6, names)),
    st.builds(LoadFailed, names, names, names),
    st.builds(Unloaded, names),
    st.builds(StepDone, names, st.lists(events, max_size=5), stats),
    st.builds(Refused, ids, st.builds(ErrorInfo, names, names, st.none() | names)),
    st.builds(Pong, ids),
    st.just(Draining()),
    st.builds(Fatal, names),
)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(places)]


def read(decoder: msgspec.msgpack.Decoder, chunks: list[bytes]) -> list[object]:
    """All messages; what remains at the end is an error."""
    reader = FrameReader(decoder)
    found = [message for chunk in chunks for message in reader.feed(chunk)]
    reader.finish()
    return found


@given(st.lists(front_messages, max_size=4), st.lists(st.integers(0, 10_000), max_size=6))
def test_front_messages_arrive_however_the_stream_is_cut(sent: list, cuts: list[int]) -> None:
    data = b"".join(frame(message) for message in sent)
    assert read(front_decoder(), pieces(data, cuts)) == sent


@given(st.lists(engine_messages, max_size=4), st.lists(st.integers(0, 10_000), max_size=6))
def test_engine_messages_arrive_however_the_stream_is_cut(sent: list, cuts: list[int]) -> None:
    data = b"".join(frame(message) for message in sent)
    assert read(engine_decoder(), pieces(data, cuts)) == sent


@given(engine_messages, st.data())
def test_a_cut_stream_is_an_error(message: msgspec.Struct, data: st.DataObject) -> None:
    whole = bytes(frame(message))
    with pytest.raises(ProtocolError):
        read(engine_decoder(), [whole[: data.draw(st.integers(1, len(whole) - 1))]])


@given(st.binary(max_size=60), st.booleans())
def test_any_bytes_are_messages_or_an_error(body: bytes, framed: bool) -> None:
    data = len(body).to_bytes(4, "little") + body if framed else body
    for decoder in (front_decoder(), engine_decoder()):
        try:
            read(decoder, [data])
        except ProtocolError:
            continue


@given(front_messages, st.data())
def test_flipped_bytes_are_messages_or_an_error(
    message: msgspec.Struct, data: st.DataObject
) -> None:
    mutant = frame(message)
    for _ in range(data.draw(st.integers(1, 4))):
        mutant[data.draw(st.integers(0, len(mutant) - 1))] = data.draw(st.integers(0, 255))
    try:
        read(front_decoder(), [bytes(mutant)])
    except ProtocolError:
        return


def test_an_absurd_length_is_refused_before_its_bytes_are_waited_for() -> None:
    for length in (MAX_BODY_BYTES + 1, 2**32 - 1):
        with pytest.raises(ProtocolError, match=str(length)):
            list(FrameReader(front_decoder()).feed(length.to_bytes(4, "little")))


def test_a_message_that_is_too_long_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framing, "MAX_BODY_BYTES", 10)
    with pytest.raises(ProtocolError, match="Unload"):
        frame(Unload("a name of many characters"))


@pytest.mark.parametrize(
    "body",
    [
        ["unknown"],
        ["ping"],
        ["ping", -1],
        ["ping", "1"],
        ["ping", 1, 2],
        ["cancel", 1, -1],
        ["cancel", 1, None, "length"],
        ["unload", ""],
        {"type": "ping", "n": 1},
        [],
        None,
    ],
)
def test_wrong_tags_and_values_are_refused(body: object) -> None:
    data = msgspec.msgpack.encode(body)
    with pytest.raises(ProtocolError):
        read(front_decoder(), [len(data).to_bytes(4, "little") + data])


def test_deep_nesting_and_bad_text_are_refused() -> None:
    for body in (b"\x91" * 100_000, b"\x92\xa6unload\xa2\xff\xfe"):
        with pytest.raises(ProtocolError):
            read(front_decoder(), [len(body).to_bytes(4, "little") + body])


def test_each_side_refuses_the_other_sides_messages() -> None:
    with pytest.raises(ProtocolError):
        read(front_decoder(), [bytes(frame(Pong(1)))])
    with pytest.raises(ProtocolError):
        read(engine_decoder(), [bytes(frame(Ping(1)))])


def test_messages_before_a_bad_one_still_arrive() -> None:
    found = []
    with pytest.raises(ProtocolError):
        for message in FrameReader(front_decoder()).feed(bytes(frame(Ping(1))) + b"\xff" * 9):
            found.append(message)
    assert found == [Ping(1)]


def test_errors_cross_the_border_with_their_kind() -> None:
    there = error_of(error_info(RequestError("top_k is wrong", "top_k")))
    assert type(there) is RequestError
    assert (str(there), there.param) == ("top_k is wrong", "top_k")
    assert type(error_of(error_info(ModelError("damaged")))) is ModelError


def test_other_errors_leave_their_text_behind() -> None:
    info = error_info(ValueError("at 0x7f00 in /secret/path"))
    assert info.kind == "RuntimeFailure"
    assert "secret" not in info.message


@pytest.mark.parametrize("kind", ["annotations", "SystemExit", "SubsecondError.__init__", ""])
def test_an_unknown_kind_is_a_runtime_failure(kind: str) -> None:
    assert isinstance(error_of(ErrorInfo(kind, "text")), RuntimeFailure)
