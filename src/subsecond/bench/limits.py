"""What this machine's memory and processor can do at most, measured now.

Owns: the typed result and how long is measured. The measurement itself is native
(csrc/runtime/limits.h). Knows nothing of models. Nothing is remembered: memory's speed on a shared
machine changes within seconds, so a limit is worth something only beside a figure of the same
minute.
"""

from __future__ import annotations

import sys

import msgspec

from subsecond import _native

BUFFER_BYTES = 512 << 20  # well above the last cache of the processors that we know


class Limits(msgspec.Struct, frozen=True):
    """Rates of `threads` threads together. None: this CPU has no instruction for the type."""

    threads: int
    read_bytes_per_s: float
    int8_ops_per_s: float | None
    bf16_ops_per_s: float | None
    f32_ops_per_s: float | None

    def rate(self, kind: str) -> float:
        """Operations a second for a weight format's arithmetic; float32's where the CPU has none of
        its own.
        """
        rates = {
            "int4": self.int8_ops_per_s,
            "int8": self.int8_ops_per_s,
            "int8_split": self.int8_ops_per_s,
            "bf16": self.bf16_ops_per_s,
            "f32": self.f32_ops_per_s,
        }
        return rates[kind] or self.f32_ops_per_s or float("inf")

    def lines(self) -> list[str]:
        """The limits for people."""
        rates = [
            ("int8", self.int8_ops_per_s),
            ("bf16", self.bf16_ops_per_s),
            ("f32", self.f32_ops_per_s),
        ]
        shown = [f"{name} {rate / 1e9:.0f} Gop/s" for name, rate in rates if rate]
        return [
            f"this machine, {self.threads} threads: reads {self.read_bytes_per_s / 1e9:.1f} GB/s; "
            + ", ".join(shown)
        ]


def measure(threads: int, *, read_seconds: float = 0.5, rate_seconds: float = 0.2) -> Limits:
    """Measures this machine, for about `read_seconds` + 3 `rate_seconds` seconds. Raises
    MemoryError without 512 MiB.
    """
    native = _native.limits
    return Limits(
        threads=threads,
        read_bytes_per_s=native.read_bandwidth(threads, BUFFER_BYTES, read_seconds),
        int8_ops_per_s=native.int8_rate(threads, rate_seconds),
        bf16_ops_per_s=native.bf16_rate(threads, rate_seconds),
        f32_ops_per_s=native.f32_rate(threads, rate_seconds),
    )


if __name__ == "__main__":
    sys.stdout.write(msgspec.json.encode(measure(int(sys.argv[1]))).decode() + "\n")
