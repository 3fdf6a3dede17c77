"""The models that a front wants its engine process to hold, whichever process that is just now.

Owns: their states, and who waits for a load or an unload to end. Does not know: processes, how
messages travel (it is given a function that sends), requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from subsecond.engine.health import ModelState
from subsecond.engine.messages import (
    Costs,
    ErrorInfo,
    FrontMessage,
    Load,
    Loaded,
    LoadFailed,
    LoadOptions,
    ModelInfo,
    Unload,
    error_of,
)
from subsecond.errors import EngineUnavailable, InputError

Send: TypeAlias = Callable[[FrontMessage], None]


@dataclass(eq=False)
class WantedModel:
    """A model that is wanted. costs: of its steps, `CostModel.to_json`; b"": not measured."""

    path: str
    options: LoadOptions
    state: ModelState = "loading"
    reason: str = ""
    waiter: asyncio.Future[ModelInfo] | None = None
    costs: bytes = b""


class WantedModels:
    """Of one front. All methods belong to the event loop's thread."""

    def __init__(self) -> None:
        self._models: dict[str, WantedModel] = {}
        self._unloads: dict[str, list[asyncio.Future[None]]] = {}

    @property
    def states(self) -> dict[str, tuple[ModelState, str]]:
        """Of each, its state and, where it failed, the reason."""
        return {name: (own.state, own.reason) for name, own in self._models.items()}

    def __iter__(self) -> Iterator[tuple[str, WantedModel]]:
        for name, own in list(self._models.items()):
            if self._models.get(name) is own:  # else it was unloaded during the iteration
                yield name, own

    def add(self, name: str, path: str, options: LoadOptions) -> WantedModel:
        """Wants a model; InputError for a name that is taken."""
        known = self._models.get(name)
        if known is not None and known.state != "failed":
            raise InputError(f"the model {name!r} is loaded already; unload it first")
        own = self._models[name] = WantedModel(path, options)
        return own

    def drop(self, name: str, own: WantedModel) -> None:
        """The model is wanted no longer, unless another one of its name is by now."""
        if self._models.get(name) is own:
            del self._models[name]

    def find(self, name: str) -> WantedModel:
        """A wanted model, in whatever state; InputError if there is none."""
        own = self._models.get(name)
        if own is None:
            raise InputError(f"no model {name!r} is loaded")
        return own

    def is_ready(self, name: str) -> bool:
        """Whether it takes requests."""
        own = self._models.get(name)
        return own is not None and own.state == "ready"

    async def load(self, name: str, own: WantedModel, send: Send) -> ModelInfo:
        """Has the process load it. Raises what loading raised, EngineUnavailable if the process
        ends meanwhile.
        """
        waiter: asyncio.Future[ModelInfo] = asyncio.get_running_loop().create_future()
        own.waiter = waiter
        send(Load(name, own.path, own.options))
        return await waiter

    async def unload(self, name: str, send: Send | None) -> None:
        """Wants a model no longer, and returns when the process has freed it. send: None where
        there is no process.
        """
        waiter = self.find(name).waiter
        del self._models[name]
        if waiter is not None and not waiter.done():
            waiter.set_exception(InputError(f"the model {name!r} was unloaded while it loaded"))
        if send is None:
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._unloads.setdefault(name, []).append(done)
        send(Unload(name))
        await done

    # What the process says of them, and its end.

    def loaded(self, message: Loaded | LoadFailed, send: Send) -> None:
        """A load has ended."""
        own = self._models.get(message.model)
        if own is None:  # unloaded meanwhile
            return
        waiter = own.waiter
        waits = waiter is not None and not waiter.done()  # else whoever asked has given up
        if isinstance(message, Loaded):
            if own.costs:
                send(Costs(message.model, own.costs))
            own.state, own.reason = "ready", ""
            if waiter is not None and waits:
                waiter.set_result(message.info)
        else:
            own.state, own.reason = "failed", message.message
            if waiter is not None and waits:
                waiter.set_exception(error_of(ErrorInfo(message.kind, message.message)))

    def unloaded(self, name: str) -> None:
        """A model is freed."""
        for done in self._unloads.pop(name, []):
            if not done.done():
                done.set_result(None)

    def unready(self) -> None:
        """The process takes no requests any more: what was ready must be loaded again."""
        for own in self._models.values():
            if own.state == "ready":
                own.state = "loading"

    def lost(self) -> None:
        """The process has ended, and with it whatever was waited for."""
        for name in list(self._unloads):
            self.unloaded(name)
        for own in self._models.values():
            if own.waiter is not None and not own.waiter.done():
                own.waiter.set_exception(
                    EngineUnavailable("the engine process ended while it loaded the model")
                )
