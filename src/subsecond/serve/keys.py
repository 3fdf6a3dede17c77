"""API keys: made, listed, revoked, and recognized.

Owns: the file that holds them, and the comparison. A key is 256 random bits behind a public id; the
file has its SHA-256, which is enough for secrets that can't be guessed. The file is mode 0600, is
replaced atomically under a lock, and is read again as soon as it has changed, so that a revoked key
is out at once. A file that is missing or damaged lets nobody in. Does not know: HTTP beyond the
Authorization header, what rights are for.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import hmac
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from subsecond.errors import InputError
from subsecond.serve.errors import Forbidden, Unauthorized, Unavailable
from subsecond.serve.limits import MAX_PRIORITY, KeyLimits

Right = Literal["use", "admin", "metrics"]
RIGHTS: tuple[Right, ...] = ("use", "admin", "metrics")
MAX_KEYS = 10_000
MAX_FILE_BYTES = 16 << 20
MAX_LIMIT = 2**31 - 1
PREFIX = "sk-subsecond-"

_PRESENTED = re.compile(rf"{PREFIX}([0-9a-f]{{12}})-[A-Za-z0-9_-]{{43}}")
_BEARER = re.compile(rb"[Bb][Ee][Aa][Rr][Ee][Rr] +([!-~]{1,256}) *")
_BASIC = re.compile(rb"[Bb][Aa][Ss][Ii][Cc] +([A-Za-z0-9+/]{1,512}={0,2}) *")
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,64}")
_NO_KEY_HASH = hashlib.sha256(b"no key").hexdigest()


class Key(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key as the file has it. id: public; names the key in logs, metrics and the ledger, and is
    the tenant of caches. name: the operator's. created, revoked: Unix seconds. priority: the
    default and the most of its requests, -9 to 9.
    """

    id: Annotated[str, Meta(pattern=r"\A[0-9a-f]{12}\Z")]
    name: Annotated[str, Meta(min_length=1, max_length=64)]
    sha256: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    created: int
    rights: list[Right]
    limits: KeyLimits = KeyLimits()
    priority: Annotated[int, Meta(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] = 0
    revoked: int | None = None

    def require(self, right: Right) -> None:
        """Forbidden unless the key has the right."""
        if right not in self.rights:
            raise Forbidden(f"this key does not have the right {right!r}")

    def rank(self, asked: int | None) -> int:
        """The priority of a request that asks for one; Forbidden if it is above the key's."""
        if asked is not None and asked > self.priority:
            error = Forbidden(f"priority is {asked}; this key may ask for at most {self.priority}")
            error.param = "priority"
            raise error
        return self.priority if asked is None else asked


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: Literal[1]
    keys: Annotated[list[Key], Meta(max_length=MAX_KEYS)]


def default_path() -> Path:
    """Where keys are kept where nobody says: not in the cache, which may be deleted at any time."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    try:
        folder = Path(base) if Path(base).is_absolute() else Path.home() / ".config"
    except RuntimeError:
        raise InputError("there is no home directory; give the file of the keys") from None
    return folder / "subsecond" / "keys.json"


def bearer(authorization: bytes | None) -> str:
    """The key of an Authorization header; Unauthorized if there is none. Browsers send it as the
    password of the Basic scheme (RFC 7617).
    """
    if authorization is None:
        raise Unauthorized("no API key was sent; send 'Authorization: Bearer KEY'")
    if basic := _BASIC.fullmatch(authorization):
        return _password(basic[1])
    match = _BEARER.fullmatch(authorization)
    if match is None:
        raise Unauthorized("the Authorization header must be 'Bearer KEY'")
    return match[1].decode("ascii")


def _password(encoded: bytes) -> str:
    """The password of Basic credentials, as far as it can be a key."""
    try:
        _, _, password = base64.b64decode(encoded, validate=True).decode("ascii").partition(":")
    except ValueError:
        raise Unauthorized("the Authorization header is not valid Basic credentials") from None
    if not 1 <= len(password) <= 256 or not password.isprintable():
        raise Unauthorized("give the API key as the password, with any user name")
    return password


class KeyFile:
    """The file, for whoever changes it."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock

    def read(self) -> list[Key]:
        """All keys, revoked ones too; none if there is no file. InputError if it can't be used."""
        try:
            data, _ = _read(self.path)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise InputError(f"can't read the keys in {self.path}: {error.strerror}") from None
        return _decoded(data, self.path)

    def create(
        self, name: str, rights: list[Right], limits: KeyLimits | None = None, priority: int = 0
    ) -> tuple[str, Key]:
        """A new key: its secret, which isn't kept, and its entry. InputError for a bad value."""
        limits = limits or KeyLimits()
        _check(name, rights, limits, priority)
        key_id = secrets.token_hex(6)
        secret = f"{PREFIX}{key_id}-{secrets.token_urlsafe(32)}"
        key = Key(
            id=key_id,
            name=name,
            sha256=_hash(secret),
            created=int(self._clock()),
            rights=list(dict.fromkeys(rights)),
            limits=limits,
            priority=priority,
        )
        with self._changing() as keys:
            if any(own.name == name and own.revoked is None for own in keys):
                raise InputError(f"there is a key of the name {name!r} already; revoke it first")
            if len(keys) >= MAX_KEYS:
                raise InputError(f"there are {MAX_KEYS:,} keys, revoked ones included; no more fit")
            keys.append(key)
        return secret, key

    def revoke(self, named: str) -> Key:
        """Revokes the key of that id or name. InputError if there is none."""
        with self._changing() as keys:
            for index, own in enumerate(keys):
                if own.revoked is None and named in (own.id, own.name):
                    gone = msgspec.structs.replace(own, revoked=int(self._clock()))
                    keys[index] = gone
                    return gone
            raise InputError(f"there is no key {named!r:.80}; see 'subsecond keys list'")

    @contextmanager
    def _changing(self) -> Iterator[list[Key]]:
        """The keys to be changed; they are written when the block ends without an error."""
        folder = self.path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            # A file of its own: the keys' file is another one after each change.
            lock = os.open(
                folder / f".{self.path.name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            raise InputError(f"can't write keys to {folder}: {error.strerror}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            keys = self.read()
            yield keys
            try:
                _replace(self.path, msgspec.json.format(msgspec.json.encode(_File(1, keys))))
            except OSError as error:
                raise InputError(f"can't write {self.path}: {error.strerror}") from None
        finally:
            os.close(lock)


class KeyRing:
    """The keys as the server knows them. May be used by several threads.

    Every call looks at the file's state (one stat, some microseconds) and reads it again if it is
    another one.
    """

    def __init__(self, path: Path) -> None:
        """InputError if the file can't be used now; later that is `find`'s Unavailable."""
        self._path = path
        self._lock = threading.Lock()
        data, self._seen = self._read_first()
        self._keys: dict[str, Key] | None = _active(_decoded(data, path))
        self.problem: str | None = None

    def find(self, presented: str) -> Key:
        """The key that somebody presents. Unauthorized if it isn't one; Unavailable, and nobody is
        let in, while the file is missing or damaged (`problem` says why, for the log).
        """
        with self._lock:
            self._refresh()
            keys = self._keys
        if keys is None:
            raise Unavailable("API keys can't be checked at present", 5.0, "keys_unavailable")
        match = _PRESENTED.fullmatch(presented)
        # The id is public; of the secret part, nothing is compared but hashes, in constant time,
        # and an unknown id costs the same.
        key = keys.get(match[1]) if match else None
        expected = key.sha256 if key is not None else _NO_KEY_HASH
        same = hmac.compare_digest(_hash(presented), expected)
        if key is None or not same:
            raise Unauthorized("the API key is not known here")
        return key

    def _read_first(self) -> tuple[bytes, object]:
        try:
            return _read(self._path)
        except FileNotFoundError:
            raise InputError(
                f"there are no keys in {self._path}; make one with 'subsecond keys create'"
            ) from None
        except OSError as error:
            raise InputError(f"can't read the keys in {self._path}: {error.strerror}") from None

    def _refresh(self) -> None:
        try:
            if _state(self._path.stat()) == self._seen:
                return
            self._seen = None  # what can't be read is tried again every time
            data, self._seen = _read(self._path)
            self._keys, self.problem = _active(_decoded(data, self._path)), None
        except (OSError, InputError) as error:
            self._keys, self.problem = None, str(error)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _active(keys: list[Key]) -> dict[str, Key]:
    return {own.id: own for own in keys if own.revoked is None}


def _state(status: os.stat_result) -> object:
    """What differs between two files that follow each other. A new file has another inode than the
    one that it replaces, and one that is written in place another time or size.
    """
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _read(path: Path) -> tuple[bytes, object]:
    """The bytes of the file, and its state. InputError if others may read or change it."""
    # Not blocking: a FIFO of that name would wait for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:  # noqa: PTH123 (a descriptor)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path} is not a file")
        if status.st_mode & 0o077 or status.st_uid not in (os.geteuid(), 0):
            raise InputError(
                f"{path} may be read or changed by others; make it yours alone (chmod 600)"
            )
        if status.st_size > MAX_FILE_BYTES:
            raise InputError(f"{path} has {status.st_size:,} bytes; that is no file of keys")
        return file.read(MAX_FILE_BYTES + 1), _state(status)


def _decoded(data: bytes, path: Path) -> list[Key]:
    try:
        keys = msgspec.json.decode(data, type=_File).keys
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(
            f"{path} is damaged ({error}); restore it, or delete it and create new keys"
        ) from None
    if len({own.id for own in keys}) < len(keys):
        raise InputError(f"{path} has an id twice; remove one of the entries")
    return keys


def _replace(path: Path, data: bytes) -> None:
    """Writes the file whole or not at all, readable for its owner alone from its first byte on."""
    fresh = path.parent / f".{path.name}.tmp-{secrets.token_hex(6)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(os.open(fresh, flags, 0o600), "wb") as file:  # noqa: PTH123 (a descriptor)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    finally:
        with suppress(FileNotFoundError):
            fresh.unlink()
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _check(name: str, rights: list[Right], limits: KeyLimits, priority: int) -> None:
    if not _NAME.fullmatch(name) or not name.isprintable():
        raise InputError(f"name must be 1 to 64 printable characters, not {name!r:.80}")
    if not rights:
        raise InputError(f"rights is empty; give one of {', '.join(RIGHTS)}")
    for right in rights:
        if right not in RIGHTS:
            raise InputError(f"rights may be {', '.join(RIGHTS)}, not {right!r:.40}")
    for field in KeyLimits.__struct_fields__:
        value: Any = getattr(limits, field)
        if value is not None and not 1 <= value <= MAX_LIMIT:
            raise InputError(f"{field} must be an integer from 1 to {MAX_LIMIT}, not {value}")
    if not -MAX_PRIORITY <= priority <= MAX_PRIORITY:
        raise InputError(
            f"priority must be an integer from {-MAX_PRIORITY} to {MAX_PRIORITY}, not {priority}"
        )
