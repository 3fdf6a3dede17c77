"""The page: its files and their headers, who may see it, and the dashboard's figures."""

from __future__ import annotations

import asyncio
import base64
import re
from importlib.resources import files
from pathlib import Path

from running import serving

from subsecond.serve.keys import KeyFile
from subsecond.serve.page import POLICY

WEB = files("subsecond.serve").joinpath("web")


def basic(secret: str) -> str:
    return "Basic " + base64.b64encode(f"me:{secret}".encode()).decode()


def test_every_file_is_served_and_nothing_else(artifact: Path) -> None:
    async def main() -> None:
        async with serving(artifact) as running:
            page = await running.ask("/")
            assert page.status == 200 and page.body.startswith(b"<!doctype html>")
            named = re.findall(rb'(?:src|href)="(/ui/[^"]+)"', page.body)
            modules = [f"/ui/{own.name}" for own in WEB.iterdir() if own.name.endswith(".js")]
            assert len(named) == 3 and len(modules) >= 4
            for path in [*(name.decode() for name in named), *modules]:
                reply = await running.ask(path)
                assert reply.status == 200, path
                assert reply.headers["content-security-policy"] == POLICY
                assert reply.headers["x-content-type-options"] == "nosniff"
                again = await running.ask(path, if_none_match=reply.headers["etag"])
                assert (again.status, again.body) == (304, b"")
            for path in ("/ui/", "/ui/no.js", "/ui/..%2f..%2fpage.py", "/ui/%2e%2e/page.py", "/ui"):
                assert (await running.ask(path)).status == 404

    asyncio.run(main())


def test_the_files_need_nothing_from_elsewhere_and_no_inline_code() -> None:
    for own in WEB.iterdir():
        text = own.read_text("utf-8")
        for link in re.findall(r"https?://[^\s\"'`)]+", text):
            assert link.startswith("http://www.w3.org/"), f"{own.name}: {link}"
        assert "innerHTML" not in text and "eval(" not in text, own.name
        if own.name.endswith(".html"):
            assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=", text)
    for word in ("unsafe", "*", "http:", "data:"):
        assert word not in POLICY


def test_every_text_is_there_in_both_languages() -> None:
    text = WEB.joinpath("words.js").read_text("utf-8")
    english, chinese = text.split("  zh: {")[0], text.split("  zh: {")[1].split("\n};")[0]
    keys = [set(re.findall(r"\b(\w+): \"", part)) for part in (english, chinese)]
    assert keys[0] == keys[1] and len(keys[0]) > 60
    used: set[str] = set()
    for own in WEB.iterdir():
        source = own.read_text("utf-8")
        used |= set(re.findall(r'(?:data-t="|say\(")(\w+)"', source))
    assert used <= keys[0]


def test_the_browser_asks_for_the_key_and_may_use_it(artifact: Path, tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    user, _ = file.create("user", ["use"])
    watcher, _ = file.create("watcher", ["metrics"])

    async def main() -> None:
        async with serving(artifact, keys=file.path) as running:
            page = await running.ask("/")
            assert page.status == 401
            assert page.headers["www-authenticate"].startswith("Basic ")
            other = await running.ask("/v1/models")
            assert other.headers["www-authenticate"].startswith("Bearer ")
            for bad in ("Basic", "Basic !!", basic(""), basic(user + "x"), "Basic " + "A" * 999):
                assert (await running.ask("/", authorization=bad)).status == 401, bad
            assert (await running.ask("/", authorization=basic(user))).status == 200
            assert (await running.ask("/v1/models", authorization=basic(user))).status == 200
            assert (await running.ask("/dashboard", authorization=basic(user))).status == 403
            assert (await running.ask("/dashboard", authorization=basic(watcher))).status == 200
            running.headers["authorization"] = basic(user)
            for site in ("cross-site", "same-site"):
                fetched = await running.chat(headers={"sec-fetch-site": site})
                assert fetched.status == 403
                link = {"sec-fetch-site": site, "sec-fetch-mode": "navigate"}
                assert (await running.ask("/", **link)).status == 200
                assert (await running.chat(headers=link)).status == 403
            assert (await running.chat(headers={"sec-fetch-site": "same-origin"})).status == 200

    asyncio.run(main())


def test_the_dashboard_has_the_figures(artifact: Path) -> None:
    async def main() -> None:
        async with serving(artifact, within_s=20.0) as running:
            empty = (await running.ask("/dashboard")).json
            assert empty["latencies"]["ttft_ms"] == {"p50": None, "p95": None, "p99": None}
            for _ in range(3):
                await running.chat(max_tokens=5, ignore_eos=True)
            await running.chat(deadline_ms=1)
            found = (await running.ask("/dashboard")).json
            assert (found["total"]["promised"], found["total"]["kept"]) == (3, 3)
            assert found["total"]["declined"] == {"deadline": 1}
            assert [row["model"] for row in found["ledger"]] == ["m"]
            assert found["latencies"]["answers"] == 3
            assert 0 < found["latencies"]["ttft_ms"]["p50"] <= found["latencies"]["total_ms"]["p99"]
            assert len(found["tokens_per_s"]) == 59
            (model,) = found["now"]["models"]
            assert model["certificate"] == "converted" and set(model["limits"]) == {"1", "4"}
            assert model["pages"]["used"] == 0 and found["now"]["unready"] == ""

    asyncio.run(main())
