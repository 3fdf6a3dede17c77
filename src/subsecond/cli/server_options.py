"""The options of what serves, and of what measures servers.

Owns: the dataclasses of `serve`, `keys` and `bench serve`. Does not know: what the commands do.
"""

from __future__ import annotations

from typing import Any

from subsecond.cli.execution_options import NO_SPECULATION, Execution
from subsecond.cli.fields import MODEL, command, option, positional
from subsecond.cli.parser import duration, field, integer, number, one_of, size
from subsecond.config import DEFAULT_MODEL


@command
class BenchServe:
    """put a load on an OpenAI-compatible server and time every answer from its moment"""

    url: str = positional("the server, such as http://127.0.0.1:8000 (key: $OPENAI_API_KEY)")
    rate: float | None = option(None, "requests a second, at random moments", type=number)
    duration: float | None = option(
        None, "seconds in which requests arrive (default: 60)", type=number
    )
    requests: int | None = option(
        None, "go on past the duration until there are so many", type=integer
    )
    trace: str | None = option(
        None, "JSON lines of requests and their moments, instead of --rate", metavar="FILE"
    )
    model: str | None = option(
        None, "name of the model (default: the first that the server lists)", short="m"
    )
    endpoint: str = option(
        "chat", "the kind of request (default: %(default)s)", choices=("chat", "completions")
    )
    prompt_words: int = option(
        100, "words of a prompt, drawn at random (default: %(default)s)", type=integer
    )
    prompt_file: str | None = option(
        None, "take the prompts' words from a text, one piece after another", metavar="FILE"
    )
    max_tokens: int = option(48, "most tokens of an answer (default: %(default)s)", type=integer)
    deadline_ms: float | None = option(
        None,
        "an answer is on time if it has ended so long after its moment; sent as X-Deadline-Ms",
        type=number,
    )
    no_stream: bool = option(False, "ask for whole answers instead of streams")
    body: list[tuple[str, Any]] | None = option(
        None,
        "a further field of every request, such as temperature=0; may be given several times",
        type=field,
        action="append",
        metavar="NAME=JSON",
    )
    timeout: float = option(
        60.0, "seconds from its moment after which a request is given up (default: 60)", type=number
    )
    drain: float = option(
        30.0, "seconds to wait at the end for what is not answered (default: 30)", type=number
    )
    warmup: int = option(
        1, "requests before, which don't count (default: %(default)s)", type=integer
    )
    seed: int = option(0, "of the moments and the prompts (default: %(default)s)", type=integer)
    json: bool = option(False, "the result as one JSON object")
    samples: str | None = option(None, "write every request's end as JSON lines", metavar="FILE")
    plot: str | None = option(None, "write a picture, such as load.png", metavar="FILE")


@command
class Keys:
    """make, list and revoke the API keys of a server"""

    action: str = positional("create, list or revoke", type=one_of(("create", "list", "revoke")))
    name: str | None = positional("create: a new name; revoke: an id or a name", None)
    keys: str | None = option(
        None, "the file of the keys (default: ~/.config/subsecond/keys.json)", metavar="FILE"
    )
    right: list[str] | None = option(
        None,
        "what the key may do, several times for several rights: use, admin, metrics (default: use)",
        action="append",
        choices=("use", "admin", "metrics"),
    )
    requests_per_minute: int | None = option(
        None, "requests that it may send (default: no limit)", type=integer
    )
    tokens_per_minute: int | None = option(
        None, "tokens of prompts and answers (default: no limit)", type=integer
    )
    concurrency: int | None = option(None, "requests at once (default: no limit)", type=integer)
    priority: int | None = option(
        None, "who gets the free room first, -9 to 9 (default: 0)", type=integer
    )
    json: bool = option(False, "the result as one JSON object")


@command
class Serve(Execution):
    """answer the OpenAI interface, each answer promised by its deadline or declined at once"""

    models: list[str] | None = positional(
        f"{MODEL}; several for several models (default: {DEFAULT_MODEL})", None, nargs="*"
    )
    model: list[str] | None = option(
        None,
        "a model under a name of your own; may be given several times",
        action="append",
        metavar="NAME=PATH",
    )
    within: float | None = option(
        None,
        "deadline of requests that bring none, such as 1s or 500ms (default: none)",
        type=duration,
        metavar="TIME",
    )
    host: str = option(
        "127.0.0.1", "address; another than this machine's own needs --keys (default: %(default)s)"
    )
    port: int = option(8000, "port; 0 takes a free one (default: %(default)s)", type=integer)
    keys: str | None = option(
        None, "the file of API keys ('subsecond keys'); without it, whoever reaches the address "
        "may use it",
        metavar="FILE",
    )  # fmt: skip
    state: str | None = option(
        None, "folder of the promises' ledger and of the audit log (default: neither is kept)",
        metavar="DIR",
    )  # fmt: skip
    audit_texts: bool = option(
        False, "prompts and answers in the audit log, in plain text; needs --state"
    )
    drain: float = option(
        30.0,
        "seconds that answers may go on after a signal to end (default: 30s)",
        type=duration,
        metavar="TIME",
    )
    tls_cert: str | None = option(
        None, "certificate in PEM, to serve https; read again at SIGHUP", metavar="FILE"
    )
    tls_key: str | None = option(None, "its private key in PEM", metavar="FILE")
    artifacts: str | None = option(
        None,
        "folder of artifacts that an admin key may load, beside what 'subsecond list' shows",
        metavar="DIR",
    )
    log: str = option(
        "text",
        "warnings as text, or JSON lines with one a request (default: %(default)s)",
        choices=("text", "json"),
    )
    answer_cache: int = option(
        0,
        "keep answers on disk and give them again to the very same question, such as 256M; needs "
        "--state (default: none are kept)",
        type=size,
        metavar="BYTES",
    )
    answer_redis: str | None = option(
        None,
        "keep them on a Redis instead, such as redis://127.0.0.1:6379/0; a URL with a password "
        "belongs into $SUBSECOND_REDIS_URL",
        metavar="URL",
    )
    max_waiting: int = option(
        256,
        "requests on their way at once, with a deadline and as many without; beyond, 503 (default: "
        "%(default)s)",
        type=integer,
    )
    no_speculation: bool = option(False, NO_SPECULATION)
    max_sequences: int = option(
        16, "answers that are computed together (default: %(default)s)", type=integer
    )
