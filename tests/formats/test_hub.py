"""Hub ids, against a stand-in server on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import tiny

from subsecond.formats import hub, open_artifact

FIRST, SECOND = "1" * 40, "2" * 40


class Hub:
    """What the stand-in serves: files by commit, `main` pointing at one; the requests it saw."""

    def __init__(self, commits: dict[str, dict[str, bytes]]) -> None:
        self.commits = commits
        self.main = FIRST
        self.seen: list[str] = []
        self.cut: set[str] = set()  # files whose first answer ends half way


def handler(state: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            state.seen.append(f"{self.command} {self.path}")
            parts = self.path.split("?")[0].strip("/").split("/")
            if parts[:4] == ["api", "models", "org", "tiny"]:
                self.api(parts[4:])
            elif parts[:3] == ["org", "tiny", "resolve"]:
                self.file(parts[3], "/".join(parts[4:]), body)
            else:
                self.json(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})

        def api(self, rest: list[str]) -> None:
            revision = rest[1] if len(rest) > 1 else "main"
            commit = state.main if revision == "main" else revision
            if commit not in state.commits:
                missing = {"X-Error-Code": "RevisionNotFound"}
                self.json(404, {"error": "Invalid rev"}, missing)
            elif rest and rest[0] == "tree":
                self.json(200, [self.entry(n, d) for n, d in state.commits[commit].items()])
            else:
                siblings = [{"rfilename": name} for name in state.commits[commit]]
                info = {
                    "id": "org/tiny",
                    "modelId": "org/tiny",
                    "sha": commit,
                    "siblings": siblings,
                }
                self.json(200, info | {"private": False, "tags": [], "downloads": 0, "likes": 0})

        def entry(self, name: str, data: bytes) -> dict[str, Any]:
            oid = hashlib.sha1(data).hexdigest()  # noqa: S324
            return {"type": "file", "path": name, "size": len(data), "oid": oid}

        def file(self, revision: str, name: str, body: bool) -> None:
            commit = state.main if revision == "main" else revision
            data = state.commits[commit].get(name)
            if data is None:
                self.json(404, {"error": "no file"}, {"X-Error-Code": "EntryNotFound"})
                return
            start = 0
            wanted = self.headers.get("Range", "")
            if wanted.startswith("bytes="):
                start = int(wanted[6:].split("-")[0] or 0)
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(data) - start))
            self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')  # noqa: S324
            self.send_header("X-Repo-Commit", commit)
            self.send_header("Accept-Ranges", "bytes")
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            if body and name in state.cut:
                state.cut.discard(name)
                self.wfile.write(data[start : start + (len(data) - start) // 2])
                self.wfile.flush()
                self.connection.close()
                self.close_connection = True
            elif body:
                self.wfile.write(data[start:])

        def json(self, code: int, value: Any, headers: dict[str, str] | None = None) -> None:
            data = json.dumps(value).encode()
            self.send_response(code)
            for key, text in (headers or {}).items():
                self.send_header(key, text)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    return Handler


@pytest.fixture
def stand_in(tmp_path: Path) -> Iterator[tuple[Hub, dict[str, str]]]:
    """A running hub, and the environment of a process that uses it (the library reads it at
    import)."""
    commits = {}
    for seed, commit in enumerate((FIRST, SECOND)):
        folder = tiny.write("llama", tmp_path / commit, seed, tokenizer=True, shards=2)
        commits[commit] = {p.name: p.read_bytes() for p in folder.iterdir()}
        commits[commit]["pytorch_model.bin"] = b"never wanted"
        commits[commit]["onnx/model.safetensors"] = b"never wanted"
    state = Hub(commits)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(state))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    names = ("PATH", "HOME", "PYTHONPATH", "SUBSECOND_HOME")
    environment = {name: os.environ[name] for name in names if name in os.environ}
    environment |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    yield state, environment
    server.shutdown()
    server.server_close()
    thread.join()


def run(environment: dict[str, str], call: str) -> tuple[int, str]:
    """Prints what `call` returns, or the typed error that it raises (exit code 2)."""
    code = (
        "import sys\nfrom subsecond.errors import SubsecondError\n"
        "from subsecond.formats import locate, pull\n"
        f"try:\n    print({call})\nexcept SubsecondError as e:\n"
        "    print(type(e).__name__, e); sys.exit(2)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 2), done.stderr
    return done.returncode, done.stdout.strip()


def test_fetched_pinned_and_then_offline(stand_in: tuple[Hub, dict[str, str]]) -> None:
    state, environment = stand_in
    state.cut.add("model-00001-of-00002.safetensors")  # the library resumes
    code, path = run(environment, "locate('org/tiny')")
    assert code == 0, path
    source = open_artifact(path).manifest.source
    assert (source.name, source.revision) == ("org/tiny", FIRST)
    assert not any("pytorch_model" in line or "onnx" in line for line in state.seen)

    count = len(state.seen)
    state.main = SECOND
    assert run(environment, "locate('org/tiny')") == (0, path)
    assert open_artifact(path).manifest.source.revision == FIRST, "pinned"
    assert len(state.seen) == count, "a converted model needs no network"

    code, newer = run(environment, "pull('org/tiny')")
    assert code == 0, newer
    assert open_artifact(newer).manifest.source.revision == SECOND
    assert not Path(path).exists(), "no revision names the older commit any longer"
    assert run(environment, "locate('org/tiny')") == (0, newer)

    offline = environment | {"HF_HUB_OFFLINE": "1"}
    count = len(state.seen)
    code, other = run(offline, "locate('org/tiny', 'f32')")
    assert code == 0, other
    assert len(state.seen) == count
    assert open_artifact(other).manifest.source.revision == SECOND


def test_revisions_of_one_commit_share_an_artifact(stand_in: tuple[Hub, dict[str, str]]) -> None:
    state, environment = stand_in
    code, path = run(environment, "locate('org/tiny')")
    assert code == 0, path
    made = Path(path, "manifest.json").stat().st_ino
    for name in ("org/tiny@main", f"org/tiny@{FIRST}", "org/tiny"):
        assert run(environment, f"locate({name!r})") == (0, path)
    assert Path(path, "manifest.json").stat().st_ino == made, "converted again"
    assert len([p for p in Path(path).parent.iterdir() if p.is_dir()]) == 1

    state.main = SECOND
    code, newer = run(environment, "pull('org/tiny@main')")
    assert code == 0, newer
    assert newer != path
    open_artifact(path)  # "org/tiny" and the commit itself still name it
    assert run(environment, "locate('org/tiny')") == (0, path)


def test_errors_name_the_repository_not_the_cache(stand_in: tuple[Hub, dict[str, str]]) -> None:
    state, environment = stand_in
    config = json.loads(state.commits[FIRST]["config.json"])
    config["rms_norm_eps"] = "small"
    state.commits[FIRST]["config.json"] = json.dumps(config).encode()
    code, text = run(environment, "locate('org/tiny')")
    assert code == 2
    assert text.startswith("ModelError org/tiny/config.json: config key rms_norm_eps")


@pytest.mark.parametrize(
    ("call", "extra", "words"),
    [
        ("locate('org/absent')", {}, "no repository org/absent"),
        ("locate('org/tiny@nowhere')", {}, "no revision 'nowhere'"),
        ("locate('org/tiny')", {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE"),
        ("locate('org/tiny')", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "check the network"),
        ("locate('org/tiny/absent.gguf')", {}, "no file 'absent.gguf'"),
    ],
)
def test_errors_say_what_to_do(
    call: str, extra: dict[str, str], words: str, stand_in: tuple[Hub, dict[str, str]]
) -> None:
    code, text = run(stand_in[1] | extra, call)
    assert code == 2
    name = call.partition("'")[2].partition("'")[0]
    start = f"FetchError no folder or file {name} here; taken as a hub id: "
    assert text.startswith(start)
    assert words in text.removeprefix(start)
    assert "\n" not in text


def test_a_repository_of_pickles_is_refused(stand_in: tuple[Hub, dict[str, str]]) -> None:
    state, environment = stand_in
    files = state.commits[FIRST]
    state.commits[FIRST] = {n: d for n, d in files.items() if "safetensors" not in n}
    code, text = run(environment, "locate('org/tiny')")
    assert code == 2
    assert "no safetensors" in text


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("org/name", hub.HubId("org/name", "", "")),
        ("org/na.me-1@v1.0", hub.HubId("org/na.me-1", "", "v1.0")),
        ("org/name@refs/pr/1", hub.HubId("org/name", "", "refs/pr/1")),
        ("org/name/model.Q4_1.gguf", hub.HubId("org/name", "model.Q4_1.gguf", "")),
        ("org/name/sub/m.gguf@main", hub.HubId("org/name", "sub/m.gguf", "main")),
        ("name", None),
        ("../name", None),
        ("org/..", None),
        ("org/name/../m.gguf", None),
        ("org/name@../x", None),
        ("a/b/c", None),
        ("http://host/x", None),
        ("org/name\n", None),
    ],
)
def test_spelling(text: str, wanted: hub.HubId | None) -> None:
    assert hub.parse(text) == wanted
