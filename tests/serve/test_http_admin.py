"""Models that come and go while a server runs: by an admin key, refused where something is wrong
with them, and without breaking a promise.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from running import Running, becomes, serving
from test_metrics import samples

from subsecond.engine.cost import Coefficients, CostModel
from subsecond.engine.messages import SamplingFields
from subsecond.engine.policy import StepLimits
from subsecond.errors import ModelError
from subsecond.formats import artifact as artifacts
from subsecond.formats import certificate, files
from subsecond.formats.certificate import Canary
from subsecond.serve.desk import Costs, Desk
from subsecond.serve.keys import KeyFile
from subsecond.serve.text_side import TextSide


@asynccontextmanager
async def administered(artifact: Path, folder: Path, **settings: Any) -> AsyncIterator[Running]:
    """A server whose headers are those of an admin key, with artifacts to load."""
    file = KeyFile(folder / "keys.json")
    secret, _ = file.create("admin", ["admin", "use", "metrics"])
    shelf = folder / "shelf"
    if not shelf.exists():
        shutil.copytree(artifact, shelf / "other")
    async with serving(artifact, keys=file.path, artifacts=shelf, **settings) as running:
        running.headers["authorization"] = f"Bearer {secret}"
        yield running


async def act(running: Running, what: str, **body: Any) -> Any:
    return await running.ask(f"/models/{what}", body)


def rewrite(folder: Path, **changes: Any) -> None:
    """Another certificate in an artifact, with the manifest that goes with it."""
    path = folder / artifacts.CERTIFICATE
    record = certificate.decode(path.read_bytes())
    path.write_bytes(msgspec.structs.replace(record, **changes).to_json())
    manifest = json.loads((folder / artifacts.MANIFEST).read_text())
    manifest["files"][artifacts.CERTIFICATE] = {
        "size": path.stat().st_size,
        "sha256": files.sha256(path),
    }
    (folder / artifacts.MANIFEST).write_text(json.dumps(manifest))


def test_models_come_and_go(artifact: Path, tmp_path: Path) -> None:
    async def main() -> None:
        async with administered(artifact, tmp_path, state=tmp_path / "state") as running:
            stored = (await running.ask("/models")).json
            assert "other" in stored["stored"]
            assert [own["name"] for own in stored["data"]] == ["m"]
            reply = await act(running, "load", model="other", name="second")
            assert (reply.status, reply.json["state"]) == (200, "ready")
            assert reply.json["certificate"] == "converted"
            listed = (await running.ask("/v1/models")).json["data"]
            assert [(own["id"], own["certificate"]) for own in listed] == [
                ("m", "converted"), ("second", "converted"),
            ]  # fmt: skip
            assert (await running.chat(model="second")).status == 200
            text = (await running.ask("/metrics")).body
            assert 'subsecond_model_info{certificate="converted"' in text.decode()
            assert 'model="second"' in text.decode()
            twice = await act(running, "load", model="other", name="second")
            assert (twice.status, twice.error["param"]) == (400, "name")
            assert (await act(running, "unload", model="second")).json["state"] == "unloaded"
            assert (await running.chat(model="second")).status == 404
            assert (await act(running, "unload", model="second")).status == 404
            found = samples((await running.ask("/metrics")).body)
            left = {name for name, labels in found if ("model", "second") in labels}
            assert all("promises" in name or "declined" in name for name in left), left
            assert (await running.chat()).status == 200
            assert (await act(running, "unload", model="m")).status == 200
            ready = await running.ask("/health/ready")
            assert (ready.status, ready.error["code"]) == (503, "no_model")
            assert (await act(running, "load", model="other", name="m")).status == 200
            assert (await running.chat()).status == 200
        log = [
            json.loads(line) for line in (tmp_path / "state" / "audit.jsonl").read_text().split()
        ]
        acts = [(own["action"], own["model"]) for own in log if own["outcome"].endswith("loaded")]
        assert acts == [("load", "second"), ("unload", "second"), ("unload", "m"), ("load", "m")]

    asyncio.run(main())


def test_who_and_what_is_refused(artifact: Path, tmp_path: Path) -> None:
    async def main() -> None:
        async with administered(artifact, tmp_path) as running:
            for bad in ("/etc", "../other", "no", "file:///x", "https://x/y", str(artifact)):
                reply = await act(running, "load", model=bad)
                assert (reply.status, reply.error["param"]) == (400, "model"), bad
            for fields, param in (
                ({}, "model"),
                ({"model": "other", "name": ".x"}, "name"),
                ({"model": "other", "deadline_ms": 0}, "deadline_ms"),
                ({"model": "other", "path": "/x"}, "path"),
            ):
                reply = await act(running, "load", **fields)
                assert (reply.status, reply.error["param"]) == (400, param), fields
            users, _ = KeyFile(tmp_path / "keys.json").create("user", ["use", "metrics"])
            running.headers["authorization"] = f"Bearer {users}"
            for path in ("load", "unload"):
                assert (await act(running, path, model="other")).status == 403
            assert (await running.ask("/models")).status == 403
        async with serving(artifact) as running:  # without keys there is no admin key
            assert (await act(running, "load", model="other")).status == 403

    asyncio.run(main())


def broken_copies(artifact: Path, shelf: Path) -> None:
    for name in ("foreign", "torn", "failed"):
        shutil.copytree(artifact, shelf / name)
    rewrite(shelf / "foreign", weights_sha256="0" * 64)
    (shelf / "torn" / artifacts.CERTIFICATE).write_bytes(b"{}")
    with (shelf / "failed" / artifacts.WEIGHTS).open("r+b") as file:
        file.seek(64)
        file.write(b"\xff" * 64)


def test_an_artifact_without_a_true_certificate_is_refused(artifact: Path, tmp_path: Path) -> None:
    broken_copies(artifact, tmp_path / "shelf")

    async def main() -> None:
        async with administered(artifact, tmp_path) as running:
            for name in ("foreign", "torn", "failed"):
                reply = await act(running, "load", model=name)
                assert (reply.status, reply.error["code"]) == (400, "model_refused"), name
                assert str(tmp_path) not in reply.error["message"]
            assert "certificate" in (await act(running, "load", model="foreign")).error["message"]
            assert [own.name for own in running.server.models.values()] == ["m"]
            assert not running.server.loader.states and set(running.server.desk.costs) == {"m"}
            assert (await running.chat()).status == 200
            assert (await running.ask("/health/ready")).status == 200

    asyncio.run(main())


def test_a_model_that_does_not_answer_as_certified_is_refused(
    artifact: Path, tmp_path: Path
) -> None:
    """The answer of this very executor and build is owed token for token."""
    from subsecond.runtime.build import native_build
    from subsecond.tasks.canary import canaries_of

    shelf = tmp_path / "shelf"
    for name in ("true", "false"):
        shutil.copytree(artifact, shelf / name)
    canaries = canaries_of(artifact)
    assert canaries[0].build == native_build() and len(canaries[0].answer) > 1
    rewrite(shelf / "true", canaries=canaries)
    wrong = [*canaries[0].answer[:-1], (canaries[0].answer[-1] + 1) % 8]
    lying: list[Canary] = [msgspec.structs.replace(canaries[0], answer=wrong)]
    rewrite(shelf / "false", canaries=lying)

    async def main() -> None:
        async with administered(artifact, tmp_path) as running:
            assert (await act(running, "load", model="true")).status == 200
            reply = await act(running, "load", model="false")
            assert (reply.status, reply.error["code"]) == (400, "model_refused")
            assert "verify" in reply.error["message"]
            await becomes(lambda: set(running.server.engine.health.models) == {"m", "true"})

    asyncio.run(main())


def test_a_certificate_of_other_files_is_foreign_at_the_start_too(
    artifact: Path, tmp_path: Path
) -> None:
    shutil.copytree(artifact, tmp_path / "a")
    for name in ("tokenizer", "text"):
        rewrite(tmp_path / "a", **{f"{name}_sha256": "1" * 64})
        with pytest.raises(ModelError, match=rf"not of this {name}\.json"):
            TextSide.open("a", tmp_path / "a")
        shutil.rmtree(tmp_path / "a")
        shutil.copytree(artifact, tmp_path / "a")


def test_an_unload_waits_for_prompts_that_wait_for_others(artifact: Path, tmp_path: Path) -> None:
    """Where each is sent when the one before has ended, there are moments without any."""

    async def main() -> None:
        async with administered(artifact, tmp_path, max_waiting=1) as running:
            desk = running.server.desk
            body: dict[str, Any] = {"model": "m"}
            body["input"] = [f"{index} one two" for index in range(150)]
            embedding = asyncio.create_task(running.ask("/v1/embeddings", body))
            await becomes(lambda: desk.unsent["m"] > 0)
            assert (await act(running, "unload", model="m")).status == 200
            assert (await embedding).status == 200
            loaded = await act(running, "load", model="other", name="m")
            assert loaded.status == 200
            long = {"model": "m", "input": body["input"] * 13}  # not done when it is unloaded
            cut = asyncio.create_task(running.ask("/v1/embeddings", long))
            await becomes(lambda: desk.unsent["m"] > 0)
            assert (await act(running, "unload", model="m", deadline_ms=1)).status == 200
            reply = await cut
            assert (reply.status, reply.error["code"]) == (503, "engine_unavailable")
            assert not desk.unsent["m"]

    asyncio.run(main())


def promised(tokens: int, deadline_s: float) -> Desk:
    """A desk with one promise; steps take 10 ms."""
    cost = CostModel(Coefficients(((1, 0.01),), 0.0, 0.0, 0.0), margin=1.0)
    limits = StepLimits(tokens=64, sequences=8, rows=8, guard_s=0.0)
    desk = Desk(costs={"m": Costs(cost, limits)})
    entry = desk.entry(
        "m", 1, SamplingFields(tokens), deadline_s=deadline_s, promised_tokens=tokens, priority=0,
        arrival_s=0.0,
    )  # fmt: skip
    assert desk.take([entry], 0.0).promised
    return desk


def test_what_a_promise_bears() -> None:
    desk = promised(50, 1.0)  # half a second of work within one
    busy = desk.busy(0.0)
    assert busy.seconds == pytest.approx(0.5, rel=0.1)
    assert busy.late_s(0.3) <= 0 < busy.late_s(0.6)
    assert not desk.busy(0.0, besides="m").work
    desk.entries[0].close()
    assert desk.busy(0.0).late_s(1e9) < 0 and desk.busy(0.0).seconds == 0


def test_nothing_is_promised_that_could_not_wait_for_a_load() -> None:
    desk = promised(10, 1.0)
    desk.taken_until_s = 2.0

    def ask(deadline_s: float) -> bool:
        fields = SamplingFields(10)
        entry = desk.entry("m", 1, fields, deadline_s=deadline_s, promised_tokens=10, priority=0,
                           arrival_s=0.0)  # fmt: skip
        return desk.take([entry], 0.0).promised

    assert not ask(1.9)
    assert not ask(3.0)  # what is held could not wait either, so the load waits for it
    desk.entries[0].close()
    assert not ask(1.9)
    assert ask(3.0)


def test_a_load_waits_for_promises_and_is_declined_where_they_leave_no_time(
    roomy_artifact: Path, tmp_path: Path
) -> None:
    async def main() -> None:
        async with administered(roomy_artifact, tmp_path, within_s=30.0) as running:
            body = running.chat_body(max_tokens=20_000, ignore_eos=True, on_deadline="finish",
                                     min_tokens=100, stream=True, deadline_ms=2500)  # fmt: skip
            old = asyncio.create_task(running.ask("/v1/chat/completions", body))
            await becomes(lambda: running.server.engine.in_flight > 0)
            reply = await act(running, "load", model="other", deadline_ms=1)
            assert (reply.status, reply.error["code"]) == (429, "deadline_declined")
            assert reply.headers["x-should-retry"] == "false" and "retry-after" in reply.headers
            assert running.server.desk.taken_until_s == 0.0
            unloading = asyncio.create_task(act(running, "unload", model="m", deadline_ms=1))
            await becomes(lambda: "m" in running.server.loader.states)
            assert (await running.chat()).status == 404
            assert (await old).events[-1][1] == "[DONE]"
            assert (await unloading).status == 200
            row = running.server.ledger.total()
            assert (row.promised, row.kept, row.open) == (1, 1, 0)

    asyncio.run(main())
