"""Stop strings over pieces of text.

Owns: the text that may still become a stop string. Does not know: tokens, requests.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Passes pieces through until a stop string appears; the stop string and what follows are
    dropped.

    Of several, the one that is complete first counts, so that the result doesn't depend on where
    the pieces were cut. Text is held back only while it is the beginning of a stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.found: str | None = None

    def push(self, piece: str) -> str:
        """The text that may be shown now. After a stop string was found (`found`), always empty."""
        if self.found is not None:
            return ""
        if not self._stops:
            return piece
        text = self._held + piece
        found = [(text.find(stop), stop) for stop in self._stops]
        ends = [(place + len(stop), place, stop) for place, stop in found if place >= 0]
        if ends:
            _, place, self.found = min(ends)
            self._held = ""
            return text[:place]
        keep = self._unfinished(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """The held text, once nothing more comes."""
        held, self._held = self._held, ""
        return held

    def _unfinished(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            end = text[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
