"""`subsecond serve` as operators run it: https with keys, and logs that say what happened but not
what was said.
"""

from __future__ import annotations

import http.client
import json
import signal
import ssl
from contextlib import closing
from pathlib import Path
from typing import Any

from certificates import certificate
from command import PATIENCE_S, command

from subsecond.serve.keys import KeyFile

CANARY = "canary-of-a-client"


def ask(port: int, context: ssl.SSLContext, path: str, key: str, body: Any = None) -> Any:
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=PATIENCE_S)
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json",
               "x-request-id": CANARY}  # fmt: skip
    with closing(connection):
        connection.request("GET" if body is None else "POST", path, body and json.dumps(body),
                           headers)  # fmt: skip
        with connection.getresponse() as reply:
            return reply.status, reply.read()


def test_https_keys_and_json_lines(artifact: Path, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "x")
    secret, own = KeyFile(tmp_path / "keys.json").create("all", ["use", "admin", "metrics"])
    words = ["--model", f"m={artifact}", "--port", "0", "--threads", "1", "--max-sequences", "4",
             "--within", "20s", "--keys", str(tmp_path / "keys.json"), "--log", "json",
             "--tls-cert", str(cert), "--tls-key", str(key), "--state", str(tmp_path / "state"),
             "--answer-cache", "1M"]  # fmt: skip
    context = ssl.create_default_context(cafile=str(cert))
    with command(*words) as (process, said, port):
        served = json.loads(said[-1])
        assert served["logger"] == "subsecond.operation"
        assert f"https://127.0.0.1:{port}/v1" in served["message"]
        chat = {"model": "m", "messages": [{"role": "user", "content": CANARY}], "user": CANARY,
                "max_tokens": 4}  # fmt: skip
        assert ask(port, context, "/v1/chat/completions", secret, chat)[0] == 200
        assert ask(port, context, "/v1/chat/completions", secret + "x", chat)[0] == 401
        assert ask(port, context, "/v1/chat/completions", secret, {**chat, "n": CANARY})[0] == 400
        assert ask(port, context, f"/{CANARY}", secret)[0] == 404
        status, metrics = ask(port, context, "/metrics", secret)
        assert status == 200 and CANARY.encode() not in metrics
        assert ask(port, context, "/", secret)[0] == 200
        process.send_signal(signal.SIGHUP)  # reads the certificate again
        assert ask(port, context, "/v1/models", secret)[0] == 200
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        lines = [*said, *process.stderr.readlines()]
        assert process.wait(PATIENCE_S) == 0
    logged = [json.loads(line) for line in lines]
    requests = [line for line in logged if line["logger"] == "subsecond.access"]
    assert [(own["action"], own["status"]) for own in requests] == [
        ("chat", 200), ("none", 401), ("chat", 400), ("none", 404), ("models", 200),
    ]  # fmt: skip
    assert requests[0]["key"] == own.id and requests[0]["completion_tokens"] == 4
    assert requests[0]["promised"] is requests[0]["kept"] is True
    assert len({own["request"] for own in requests}) == len(requests)
    assert all(own["time"].endswith("Z") for own in logged)
    whole = "".join(lines)
    assert CANARY not in whole and secret not in whole
