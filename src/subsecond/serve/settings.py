"""What an operator sets, with its bounds.

Owns: the settings and their checks. Does not know: what they do.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from subsecond.engine.messages import LoadOptions
from subsecond.errors import InputError
from subsecond.serve.limits import RequestLimits

LEAST_CACHE_BYTES = 1 << 20
MOST_WAITING = 8192  # a promise is then judged in some 6 ms
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/-]{0,127}")
"""Of names that models are served under."""


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """One server. models: (name, what `LLM` takes), at least one; the first is the page's.

    within_s: the deadline of requests that bring none; None: none. keys: the file of the API keys;
    None: anybody who reaches the address may ask and watch. state: the folder of ledger, audit log
    and kept answers; None: they aren't kept. audit_texts: the audit log has prompts and
    answers. tls_cert, tls_key: PEM files, both or none. artifacts: a folder of artifacts that an
    admin key may load, beside the converted models of the cache.
    log_format: of what goes to standard error; "json": one object a line, with a line a request.
    answer_cache_bytes: of answers that are given again to the very same question; 0: none.
    answer_redis: the URL of a Redis that keeps them instead.
    drain_s: how long answers may go on after a signal to end. max_waiting: requests on their way at
    once, with a deadline and as many without (`places`).
    """

    models: tuple[tuple[str, str], ...]
    within_s: float | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    keys: Path | None = None
    state: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    audit_texts: bool = False
    artifacts: Path | None = None
    log_format: Literal["text", "json"] = "text"
    answer_cache_bytes: int = 0
    answer_redis: str | None = field(default=None, repr=False)  # it may have a password
    options: LoadOptions = field(default_factory=LoadOptions)
    limits: RequestLimits = field(default_factory=RequestLimits)
    drain_s: float = 30.0
    max_waiting: int = 256

    def __post_init__(self) -> None:
        if not self.models:
            raise InputError("no model is given; name at least one")
        names = [name for name, _ in self.models]
        for name in names:
            if not NAME_PATTERN.fullmatch(name):
                raise InputError(
                    f"the model name {name!r:.80} must begin with a letter or digit and have only "
                    "letters, digits and . _ : @ / -"
                )
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"two models are named {name!r}; give each a name: NAME=PATH")
        if self.artifacts is not None and self.keys is None:
            raise InputError("--artifacts is for an admin key to load from; give --keys too")
        if self.artifacts is not None and not self.artifacts.is_dir():
            raise InputError(f"--artifacts {str(self.artifacts)!r} is no folder; give one that is")
        if self.within_s is not None and not 0.001 <= self.within_s <= 86_400:
            raise InputError(f"within is {self.within_s:g} s, not from 0.001 to 86400")
        if not 0 <= self.port <= 65_535:
            raise InputError(f"port is {self.port}, not from 0 to 65535")
        if not 0 <= self.drain_s <= 3600:
            raise InputError(f"drain is {self.drain_s:g} s, not from 0 to 3600")
        if not 1 <= self.max_waiting <= MOST_WAITING:
            raise InputError(f"max-waiting is {self.max_waiting}, not from 1 to {MOST_WAITING}")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InputError("--tls-cert and --tls-key are only of use together; give both")
        if self.audit_texts and self.state is None:
            raise InputError(
                "--audit-texts is for the audit log in the folder of --state; give one"
            )
        if self.answer_cache_bytes and self.state is None:
            raise InputError("--answer-cache lies in the folder of --state; give one")
        if self.answer_cache_bytes and self.answer_cache_bytes < LEAST_CACHE_BYTES:
            raise InputError(
                f"--answer-cache has {self.answer_cache_bytes} bytes; give at least 1M, or 0"
            )
        if self.answer_redis is not None and self.answer_cache_bytes:
            raise InputError("answers are kept on disk or on Redis: give --answer-cache or a Redis")
        if self.keys is None and not self.is_local:
            raise InputError(
                f"{self.host} can be reached from other machines, so API keys are needed: make one "
                "with 'subsecond keys create NAME' and give --keys FILE"
            )

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the address."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
