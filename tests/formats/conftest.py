"""Every test of formats has a cache folder of its own, but for those of the real model."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_cache(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Path | None:
    if request.node.get_closest_marker("real_model"):
        return None
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("SUBSECOND_HOME", str(home))
    return home
