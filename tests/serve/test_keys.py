"""API keys: what is kept of them, who is let in, and what happens when the file changes."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from subsecond.errors import InputError
from subsecond.serve import keys
from subsecond.serve.errors import Forbidden, Unauthorized, Unavailable
from subsecond.serve.keys import KeyFile, KeyRing
from subsecond.serve.limits import KeyLimits


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "private" / "keys.json"


def test_a_key_is_known_and_only_its_hash_is_kept(path: Path) -> None:
    secret, key = KeyFile(path, lambda: 1234.5).create(
        "laptop", ["use", "metrics"], KeyLimits(requests_per_minute=60), priority=2
    )
    assert key.created == 1234
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o077 == 0
    text = path.read_text()
    assert secret not in text and secret.split("-", 3)[3] not in text
    assert len(secret.split("-", 3)[3]) == 43  # 256 bits in base64
    assert KeyRing(path).find(secret) == key
    assert [own.name for own in path.parent.iterdir() if own.name.endswith(".json")] == [path.name]


def test_two_keys_never_agree(path: Path) -> None:
    file = KeyFile(path)
    first, _ = file.create("a", ["use"])
    second, _ = file.create("b", ["use"])
    ring = KeyRing(path)
    assert (ring.find(first).name, ring.find(second).name) == ("a", "b")
    mixed = first[: len(keys.PREFIX) + 13] + second[len(keys.PREFIX) + 13 :]
    for wrong in (mixed, first[:-1], first + "A", first.upper(), "", first[:-1] + "é", "\udc00"):
        with pytest.raises(Unauthorized):
            ring.find(wrong)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.text())
def test_nothing_else_is_let_in(tmp_path: Path, presented: str) -> None:
    path = tmp_path / "keys.json"
    if not path.exists():
        KeyFile(path).create("a", ["use"])
    with pytest.raises(Unauthorized):
        KeyRing(path).find(presented)


def test_revoking_takes_effect_at_once(path: Path) -> None:
    file = KeyFile(path)
    secrets = {name: file.create(name, ["use"])[0] for name in ("a", "b")}
    ring = KeyRing(path)
    assert ring.find(secrets["a"]).name == "a"
    assert file.revoke("a").revoked is not None
    with pytest.raises(Unauthorized):
        ring.find(secrets["a"])
    assert ring.find(secrets["b"]).name == "b"
    new, _ = file.create("a", ["admin"])  # the name is free again
    assert ring.find(new).rights == ["admin"]
    assert [own.name for own in file.read()] == ["a", "b", "a"]


def test_every_change_is_seen_however_fast(path: Path) -> None:
    file = KeyFile(path)
    known, _ = file.create("stays", ["use"])
    ring = KeyRing(path)
    for index in range(30):
        secret, key = file.create(f"k{index}", ["use"])
        assert ring.find(secret) == key
        file.revoke(key.id)
        with pytest.raises(Unauthorized):
            ring.find(secret)
    assert ring.find(known).name == "stays"


def test_many_writers_lose_nothing(path: Path) -> None:
    secrets: list[str] = []
    file = KeyFile(path)
    first, _ = file.create("first", ["use"])
    ring = KeyRing(path)
    errors: list[BaseException] = []
    done = threading.Event()

    def write(worker: int) -> None:
        for index in range(8):
            secrets.append(KeyFile(path).create(f"{worker}-{index}", ["use"])[0])

    def look() -> None:
        while not done.is_set():
            try:
                ring.find(first)
            except Exception as error:
                errors.append(error)

    reader = threading.Thread(target=look)
    writers = [threading.Thread(target=write, args=(worker,)) for worker in range(4)]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert errors == []
    assert len(file.read()) == 33
    assert len({ring.find(secret).id for secret in secrets}) == 32
    assert not list(path.parent.glob(".*.tmp-*"))


@pytest.mark.parametrize(
    "damage",
    [
        b"", b"{", b"null", b"[]", b'{"version":2,"keys":[]}', b'{"version":1}', b"\xff" * 100,
        b'{"version":1,"keys":[{}]}', b"[" * 100_000, b'{"version":1,"keys":[],"x":1}',
    ],
)  # fmt: skip
def test_a_damaged_file_lets_nobody_in(path: Path, damage: bytes) -> None:
    secret, _ = KeyFile(path).create("a", ["use"])
    whole = path.read_bytes()
    ring = KeyRing(path)
    path.write_bytes(damage)
    with pytest.raises(Unavailable) as caught:
        ring.find(secret)
    assert str(path) not in str(caught.value) and ring.problem is not None
    with pytest.raises(InputError, match="damaged"):
        KeyRing(path)
    with pytest.raises(InputError, match="damaged"):
        KeyFile(path).create("b", ["use"])
    assert path.read_bytes() == damage
    path.write_bytes(whole)
    assert ring.find(secret).name == "a"
    assert ring.problem is None


def test_every_cut_of_the_file_lets_nobody_in(path: Path) -> None:
    secret, _ = KeyFile(path).create("a", ["use"])
    whole = path.read_bytes().rstrip()
    ring = KeyRing(path)
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut])
        with pytest.raises(Unavailable):
            ring.find(secret)


def test_a_file_that_vanishes_lets_nobody_in(path: Path) -> None:
    secret, _ = KeyFile(path).create("a", ["use"])
    ring = KeyRing(path)
    aside = path.rename(path.with_name("aside"))
    for _ in range(2):
        with pytest.raises(Unavailable):
            ring.find(secret)
    aside.rename(path)
    assert ring.find(secret).name == "a"
    with pytest.raises(InputError, match="no keys"):
        KeyRing(path.with_name("nothing"))
    assert KeyFile(path.with_name("nothing")).read() == []


def test_a_file_that_others_may_read_is_refused(path: Path) -> None:
    secret, _ = KeyFile(path).create("a", ["use"])
    ring = KeyRing(path)
    path.chmod(0o644)
    with pytest.raises(Unavailable):
        ring.find(secret)
    with pytest.raises(InputError, match="chmod 600"):
        KeyRing(path)
    path.chmod(0o600)
    assert ring.find(secret).name == "a"


def test_what_is_no_file_is_refused_at_once(path: Path) -> None:
    path.parent.mkdir()
    os.mkfifo(path, 0o600)
    with pytest.raises(InputError, match="not a file"):
        KeyRing(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError):
        KeyRing(path)


def test_an_id_twice_is_refused(path: Path) -> None:
    KeyFile(path).create("a", ["use"])
    content = json.loads(path.read_text())
    content["keys"] *= 2
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="twice"):
        KeyRing(path)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"name": ""}, "name"),
        ({"name": "a" * 65}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "a\u202eb"}, "name"),
        ({"rights": []}, "rights"),
        ({"rights": ["root"]}, "rights"),
        ({"limits": KeyLimits(requests_per_minute=0)}, "requests_per_minute"),
        ({"limits": KeyLimits(tokens_per_minute=2**31)}, "tokens_per_minute"),
        ({"limits": KeyLimits(concurrency=-1)}, "concurrency"),
        ({"priority": 10}, "priority"),
        ({"priority": -10}, "priority"),
    ],
)
def test_bad_values_are_refused(path: Path, arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        KeyFile(path).create(**{"name": "a", "rights": ["use"], **arguments})
    assert not path.exists()


def test_names_and_revocations(path: Path) -> None:
    file = KeyFile(path)
    _, key = file.create("a", ["use", "use"])
    assert key.rights == ["use"]
    with pytest.raises(InputError, match="already"):
        file.create("a", ["use"])
    for unknown in ("b", "", key.sha256):
        with pytest.raises(InputError, match="no key"):
            file.revoke(unknown)
    assert file.revoke(key.id).id == key.id
    with pytest.raises(InputError, match="no key"):
        file.revoke(key.id)


def test_rights_and_priority(path: Path) -> None:
    _, key = KeyFile(path).create("a", ["use"], priority=3)
    key.require("use")
    for right in ("admin", "metrics"):
        with pytest.raises(Forbidden):
            key.require(right)
    assert [key.rank(asked) for asked in (None, 3, 0, -9)] == [3, 3, 0, -9]
    with pytest.raises(Forbidden) as caught:
        key.rank(4)
    assert caught.value.param == "priority"


@pytest.mark.parametrize("header", [b"Bearer abc", b"bearer  abc", b"BEARER abc "])
def test_bearer(header: bytes) -> None:
    assert keys.bearer(header) == "abc"


@pytest.mark.parametrize(
    "header",
    [None, b"", b"abc", b"Bearer", b"Bearer ", b"Basic abc", b"Bearer a b", b"Bearer a\xff",
     b"\x00", b"Bearer " + b"a" * 257, b"Bearer\tabc", b"Bearer abc\n", b"xBearer abc"],
)  # fmt: skip
def test_other_headers_are_refused(header: bytes | None) -> None:
    with pytest.raises(Unauthorized) as caught:
        keys.bearer(header)
    assert "www-authenticate" in caught.value.headers


def test_hashes_are_compared_in_constant_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known or not, exactly one comparison is made, of two whole hashes."""
    secret, _ = KeyFile(path).create("a", ["use"])
    ring = KeyRing(path)
    compared: list[tuple[str, str]] = []

    def compare(a: str, b: str) -> bool:
        compared.append((a, b))
        return a == b

    monkeypatch.setattr(keys.hmac, "compare_digest", compare)
    ring.find(secret)
    for wrong in (secret[:-1] + "-", f"{keys.PREFIX}{'0' * 12}-{'A' * 43}", "x"):
        with pytest.raises(Unauthorized):
            ring.find(wrong)
    assert len(compared) == 4
    assert all(len(a) == len(b) == 64 for a, b in compared)


def test_default_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert keys.default_path() == tmp_path / "subsecond" / "keys.json"
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert keys.default_path() == tmp_path / ".config" / "subsecond" / "keys.json"
