"""The routes: which path is what, who may use it, and what happens to errors.

Owns: the table of routes, authorization, and the one place where whatever goes wrong becomes an
answer. Does not know: how text is generated, sockets.

Who isn't let in learns nothing: everything but liveness and readiness needs a key where the server
has keys, decided by the path as it was received, before any route is looked for.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.routing import Route as PathRoute
from starlette.routing import Router

from subsecond.errors import SubsecondError
from subsecond.serve import admin, logs, page, routes
from subsecond.serve.audit import Entry, logged
from subsecond.serve.errors import (
    Forbidden,
    MethodNotAllowed,
    NotFound,
    ServeError,
    Unauthorized,
    error_for,
)
from subsecond.serve.exchange import ClientGone, Exchange, Receive, Scope, Send
from subsecond.serve.keys import Right
from subsecond.serve.openapi import description
from subsecond.serve.server import ANYONE, Server

log = logging.getLogger(__name__)

OPEN = frozenset({"/health/live", "/health/ready"})
_LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
_ASK_BROWSER = 'Basic realm="subsecond (API key as the password)", charset="UTF-8"'
_QUIET = frozenset({"live", "ready", "metrics", "dashboard", "page"})  # asked for all the time
_GONE = 499  # what access logs write for a client that left

Handler = Callable[[Server, Exchange], Awaitable[routes.Done]]


@dataclass(frozen=True)
class _Routed:
    """A route. right: what a key needs to have; None: nothing, any key may use it."""

    handler: Handler
    method: str
    right: Right | None
    name: str


ROUTES: dict[str, _Routed] = {
    "/health/live": _Routed(routes.live, "GET", None, "live"),
    "/health/ready": _Routed(routes.ready, "GET", None, "ready"),
    "/v1/chat/completions": _Routed(routes.chat, "POST", "use", "chat"),
    "/v1/completions": _Routed(routes.completions, "POST", "use", "completions"),
    "/v1/responses": _Routed(routes.responses, "POST", "use", "responses"),
    "/v1/embeddings": _Routed(routes.embeddings, "POST", "use", "embeddings"),
    "/v1/models": _Routed(routes.models, "GET", "use", "models"),
    "/v1/models/{model:path}": _Routed(routes.model, "GET", "use", "model"),
    "/tokenize": _Routed(routes.tokenize, "POST", "use", "tokenize"),
    "/detokenize": _Routed(routes.detokenize, "POST", "use", "detokenize"),
    "/metrics": _Routed(routes.metrics, "GET", "metrics", "metrics"),
    "/dashboard": _Routed(page.dashboard, "GET", "metrics", "dashboard"),
    "/models": _Routed(admin.models, "GET", "admin", "stored_models"),
    "/models/load": _Routed(admin.load, "POST", "admin", "load"),
    "/models/unload": _Routed(admin.unload, "POST", "admin", "unload"),
    "/": _Routed(page.index, "GET", None, "page"),
    "/ui/{name}": _Routed(page.file, "GET", None, "page"),
    "/openapi.json": _Routed(page.description, "GET", None, "openapi"),
}


class App:
    """The ASGI application of one server."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._router = Router(
            [PathRoute(path, _Endpoint(self, own, path)) for path, own in ROUTES.items()],
            redirect_slashes=False,
            default=_Endpoint(self, None),
        )
        methods = {
            path.replace(":path}", "}"): (own.method, own.right) for path, own in ROUTES.items()
        }
        server.described = lambda: description(methods, OPEN)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Of ASGI."""
        if scope["type"] != "http":
            return
        exchange = Exchange(scope, receive, send, self._server.settings.limits)
        try:
            self._let_in(exchange)
        except Exception as error:
            await self._refuse(exchange, error, "none")
            return
        scope["subsecond.exchange"] = exchange
        await self._router(scope, receive, send)

    def _let_in(self, exchange: Exchange) -> None:
        """Who asks; Unauthorized for nobody that is known."""
        exchange.check_headers()
        scope, ring = exchange.scope, self._server.ring
        if scope["path"] in OPEN and exchange.path == scope["path"]:
            exchange.key = None
            return
        _refuse_foreign_page(exchange)
        if ring is not None:
            try:
                exchange.authorize(ring)
            except Unauthorized as error:
                if scope["path"] == "/" or scope["path"].startswith("/ui/"):
                    error.headers["www-authenticate"] = _ASK_BROWSER
                raise
            return
        # Without keys, a web page could reach this address under a name of its own.
        host = (exchange.header(b"host") or b"").decode("latin-1").lower()
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if name not in _LOCAL_HOSTS and name != self._server.settings.host.lower():
            raise Forbidden(
                "without API keys, this server answers under its own address only; use "
                "http://127.0.0.1 or make keys"
            )
        exchange.key = ANYONE

    async def handle(self, exchange: Exchange, routed: _Routed | None) -> None:
        """Answers a request that was let in."""
        server, name = self._server, routed.name if routed else "none"
        server.begin()
        try:
            if routed is None:
                raise NotFound("there is no such route; see /v1/models")
            if exchange.method != routed.method and (exchange.method, routed.method) != (
                "HEAD",
                "GET",
            ):
                raise MethodNotAllowed(exchange.method, [routed.method])
            if routed.right is not None and exchange.key is not None:
                exchange.key.require(routed.right)
            done = await routed.handler(server, exchange)
        except Exception as error:
            await self._refuse(exchange, error, name)
        else:
            self._record(exchange, name, done)
        finally:
            server.end()

    async def _refuse(self, exchange: Exchange, error: Exception, name: str) -> None:
        """Says what went wrong, to the client as far as it is its business, else to the log."""
        if isinstance(error, ClientGone):
            exchange.status = exchange.status or _GONE
            self._record(exchange, name, routes.Done("cancelled"))
            return
        told = error_for(error)
        if told.status == 500:
            log.error("request %s failed", exchange.id, exc_info=error)
        elif not isinstance(error, SubsecondError):
            log.warning("request %s: %s", exchange.id, error)
        with contextlib.suppress(ClientGone):
            await exchange.refuse(told)
        self._record(exchange, name, routes.Done(str(told.code)), told)

    def _record(
        self, exchange: Exchange, name: str, done: routes.Done, told: ServeError | None = None
    ) -> None:
        status = told.status if told is not None else exchange.status
        self._server.metrics.request(name, status)
        audit = self._server.audit
        traces = self._server.traces
        if name in _QUIET or not (audit or traces or logs.access.isEnabledFor(logging.INFO)):
            return
        key = exchange.key
        entry = Entry(
            request=exchange.id,
            key=None if key is None else key.id,
            client=exchange.client,
            user=done.user,
            action=name,
            model=done.model,
            status=status,
            outcome=done.outcome,
            prompt_tokens=done.prompt_tokens,
            completion_tokens=done.completion_tokens,
            deadline_ms=done.deadline_ms,
            promised=done.promised,
            kept=done.kept,
            prompt=None if exchange.texts is None else exchange.texts.prompt,
            answer=None if exchange.texts is None else exchange.texts.answer,
            elapsed_ms=round((time.monotonic() - exchange.start_s) * 1e3, 3),
        )
        if audit is not None:
            audit.record(entry)
        if traces is not None:
            traces.record(exchange, entry)
        logs.access.info("request", extra={"fields": logged(entry)})


def _refuse_foreign_page(exchange: Exchange) -> None:
    """A browser sends the key that it knows with whatever a page of another place asks for, and
    says so.
    """
    site = exchange.header(b"sec-fetch-site")
    if site in (None, b"same-origin", b"none"):
        return
    if exchange.method == "GET" and exchange.header(b"sec-fetch-mode") == b"navigate":
        return  # a link to here
    raise Forbidden("pages of other places may not use this server")


class _Endpoint:
    """A route for starlette: an ASGI application."""

    def __init__(self, app: App, routed: _Routed | None, path: str | None = None) -> None:
        self._app = app
        self._routed = routed
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del receive, send
        scope["subsecond.route"] = self._path
        await self._app.handle(scope["subsecond.exchange"], self._routed)
