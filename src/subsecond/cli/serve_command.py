"""`subsecond serve`: answers the OpenAI interface, with a deadline on every request."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from subsecond.cli import console
from subsecond.cli.server_options import Serve
from subsecond.config import DEFAULT_MODEL, ModelOptions
from subsecond.engine.messages import LoadOptions
from subsecond.errors import InputError, RuntimeFailure
from subsecond.formats.locate import locate
from subsecond.formats.progress import TerminalProgress

if TYPE_CHECKING:
    from subsecond.engine.child import Launched
    from subsecond.serve.server import Server
    from subsecond.serve.settings import ServeSettings

REDIS_URL = "SUBSECOND_REDIS_URL"


def run(options: Serve) -> int:
    """Exit code 0 after a signal to end."""
    from subsecond.serve.engine_command import launch_for
    from subsecond.serve.settings import ServeSettings

    begun_s = time.monotonic() - console.seconds_since_start()
    models = _models(options)
    first = ModelOptions(
        model=models[0][1],
        weights=options.weights,
        kv=options.kv,
        threads=options.threads,
        isa=options.isa,
        context=options.context,
        max_sequences=options.max_sequences,
    )
    settings = ServeSettings(
        models=models,
        within_s=options.within,
        host=options.host,
        port=options.port,
        keys=None if options.keys is None else Path(options.keys).expanduser(),
        state=None if options.state is None else Path(options.state).expanduser(),
        options=LoadOptions(
            kv=first.kv,
            threads=first.threads,
            max_sequences=first.max_sequences,
            isa=first.isa,
            context=first.context,
            speculation=not options.no_speculation,
        ),
        audit_texts=options.audit_texts,
        drain_s=options.drain,
        max_waiting=options.max_waiting,
        tls_cert=None if options.tls_cert is None else Path(options.tls_cert).expanduser(),
        tls_key=None if options.tls_key is None else Path(options.tls_key).expanduser(),
        artifacts=None if options.artifacts is None else Path(options.artifacts).expanduser(),
        log_format="json" if options.log == "json" else "text",
        answer_cache_bytes=options.answer_cache,
        answer_redis=_redis(options.answer_redis),
    )
    with TerminalProgress() as progress:
        paths = {
            name: locate(model, options.weights, progress=progress)  # type: ignore[arg-type]
            for name, model in models
        }

    try:
        launched = launch_for(paths[models[0][0]], settings.options, settings.log_format)
    except OSError as error:
        raise RuntimeFailure(f"the engine process can't be started: {error.strerror}") from None
    with launched:  # what is imported from here on takes as long as it needs to load a model
        _serve(options, settings, paths, launched, begun_s)
    return 0


def _serve(
    options: Serve,
    settings: ServeSettings,
    paths: dict[str, Path],
    launched: Launched,
    begun_s: float,
) -> None:
    from subsecond.serve import logs
    from subsecond.serve.run import serve

    def say(text: str) -> None:
        if options.log == "json":
            logs.operation.info(text)
        else:
            console.note(f"subsecond: {text}")

    async def ready(server: Server, url: str) -> None:
        ready_s = time.monotonic() - begun_s
        for name in list(server.models):
            say(await _capacity(server, name))
        say(f"serving {', '.join(server.models)} at {url}/v1 (ready after {ready_s:.1f} s)")

    serve(settings, paths, ready, launched)


def _redis(given: str | None) -> str | None:
    """The URL of the Redis that keeps answers. Whoever lists processes may see their arguments."""
    if given is not None:
        from subsecond.serve.redis_answers import check_url, has_password

        check_url(given)
        if has_password(given):
            raise InputError(
                "the URL of --answer-redis has a password, which others can see there; give it "
                f"in ${REDIS_URL} instead"
            )
    return given or os.environ.get(REDIS_URL) or None


def _models(options: Serve) -> tuple[tuple[str, str], ...]:
    """The names that the models are served under, and what they are loaded from."""
    models = [(_name(model), model) for model in options.models or ()]
    for text in options.model or ():
        name, equals, path = text.partition("=")
        if not equals or not name or not path:
            raise InputError(f"--model must be NAME=PATH, not {text!r:.80}")
        models.append((name, path))
    return tuple(models) or ((DEFAULT_MODEL, DEFAULT_MODEL),)


def _name(model: str) -> str:
    """A model without a name of its own is served under its alias or hub id, or under the last part
    of its path.
    """
    path = Path(model)
    is_path = model.startswith((".", "/", "~")) or path.exists()
    return (path.resolve().name if path.is_dir() else path.stem) if is_path else model


async def _capacity(server: Server, name: str) -> str:
    """The line that says what can be promised."""
    from subsecond.serve.loading import STATED

    found = await server.state_capacity(name)
    if found is None:
        return (
            f"{name} promises nothing by itself: no --within, so each request brings its deadline"
        )
    shape = f"{STATED[0]} in, {STATED[1]} out"
    if not found.requests_per_s:
        return f"{name} can't promise {shape} here: it would take {found.alone_s:.2f} s alone"
    return (
        f"{name} promises {found.requests_per_s:.1f} requests/s of {shape}; p99 {found.p99_s:.2f} s"
    )
