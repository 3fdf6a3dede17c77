"""Which build of the native module this is. Owns: its name. Does not know: who compares it."""

from __future__ import annotations

from pathlib import Path


def native_build() -> str:
    """xxh3 of the native module: two builds may round differently, one never does."""
    import xxhash

    from subsecond import _native

    return xxhash.xxh3_64_hexdigest(Path(_native.__file__).read_bytes())
