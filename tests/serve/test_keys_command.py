"""`subsecond keys`, from words to the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from subsecond.cli import main
from subsecond.errors import InputError
from subsecond.serve.keys import KeyFile, KeyRing


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def test_create_list_revoke(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--keys", str(path)]
    assert main(["keys", "create", "laptop", *where]) == 0
    secret = capsys.readouterr().out.strip()
    key = KeyRing(path).find(secret)
    assert (key.name, key.rights, key.priority) == ("laptop", ["use"], 0)

    line = (
        "--right use --right admin --requests-per-minute 60 --tokens-per-minute 9 --concurrency 2"
    )
    assert main(["keys", "create", "ops", *where, *line.split(), "--priority=-3", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    own = KeyRing(path).find(made.pop("key"))
    assert (own.rights, own.priority, own.limits.concurrency) == (["use", "admin"], -3, 2)

    assert main(["keys", "list", "--json", *where]) == 0
    listed = json.loads(capsys.readouterr().out)["keys"]
    assert listed[1] == made and [one["name"] for one in listed] == ["laptop", "ops"]
    assert "sha256" not in listed[0]

    assert main(["keys", "revoke", "laptop", *where]) == 0
    assert main(["keys", "list", *where]) == 0
    shown = capsys.readouterr()
    assert secret not in shown.out + shown.err
    assert "60 requests/min, 9 tokens/min, 2 at once" in shown.out
    assert KeyFile(path).read()[0].revoked is not None


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("keys", "action is missing"),
        ("keys delete a", "action must be one of create, list, revoke"),
        ("keys create", "name is missing"),
        ("keys revoke", "name is missing"),
        ("keys revoke a", "no key 'a'"),
        ("keys list a", "takes no name"),
        ("keys list --right use", "--right is only for 'keys create'"),
        ("keys revoke a --priority 3", "--priority is only for"),
        ("keys create a --right root", "--right must be one of"),
        ("keys create a --concurrency 0", "concurrency must be"),
        ("keys create a --priority 10", "priority must be"),
    ],
)
def test_bad_use_is_one_line(
    path: Path, line: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*line.split(), "--keys", str(path)]) == InputError.exit_code
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1
    assert not path.exists()
