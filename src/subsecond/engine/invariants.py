"""What is always true of an engine between two steps, written once over snapshots.

Owns: the checks. Tests run them after every step; they cost a walk over all tables, so the engine
itself doesn't.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from subsecond.engine.engine import Engine
from subsecond.engine.pages import NO_PAGE, PAGE_POSITIONS, PageTable, page_count
from subsecond.engine.request import SequenceState


@dataclass(frozen=True)
class PoolView:
    """One cache group: free pages, references a page, promised pages."""

    window: int
    free: tuple[int, ...]
    references: tuple[int, ...]
    promised: int


@dataclass(frozen=True)
class TableView:
    """One holder of pages: a sequence or a kept text. owner: the promise that pays for it."""

    owner: int
    computed: int
    pages: tuple[tuple[int, ...], ...]
    first: tuple[int, ...]


@dataclass(frozen=True)
class Snapshot:
    """Everything that the checks look at."""

    pools: tuple[PoolView, ...]
    tables: tuple[TableView, ...]
    promises: tuple[tuple[int, tuple[int, ...]], ...]  # (owner, pages a group)
    faults: tuple[str, ...]  # of single requests


def snapshot(engine: Engine) -> Snapshot:
    """The engine's state as immutable data."""
    pools = tuple(
        PoolView(group.window, tuple(pool.free), tuple(pool.references), pool.promised)
        for group, pool in zip(engine.pages.groups, engine.pages.pools, strict=True)
    )
    tables, promises, faults = [], [], []
    for request in engine.scheduler.running:
        promises.append((id(request), tuple(request.promise)))
        faults += [fault for sequence in request.sequences for fault in _sequence_faults(sequence)]
        if request.finished:
            faults.append("a finished request runs")
        tables += [_view(id(request), s.computed, s.tables) for s in request.sequences if s.tables]
    for request in engine.scheduler.waiting:
        if request in engine.scheduler.running:
            faults.append("a request waits and runs")
        if request.promise or any(sequence.tables for sequence in request.sequences):
            faults.append("a waiting request holds pages")
    for kept in engine.kept:
        promises.append((id(kept), tuple(kept.promise)))
        tables.append(_view(id(kept), len(kept.tokens), kept.tables))
    return Snapshot(pools, tuple(tables), tuple(promises), tuple(faults))


def check(view: Snapshot) -> list[str]:
    """Every violated invariant in words; empty if all hold."""
    faults = list(view.faults)
    for index, pool in enumerate(view.pools):
        held = Counter(
            page for table in view.tables for page in table.pages[index] if page != NO_PAGE
        )
        if len(set(pool.free)) != len(pool.free):
            faults.append(f"group {index}: a page is free twice")
        for page, references in enumerate(pool.references):
            if references != held[page]:
                faults.append(
                    f"group {index}: page {page} has {references} references, {held[page]} holders"
                )
            if (references == 0) != (page in pool.free):
                faults.append(f"group {index}: page {page} is free and held, or neither")
        promised = sum(pages[index] for _, pages in view.promises)
        if pool.promised != promised:
            faults.append(
                f"group {index}: {pool.promised} pages are promised, requests hold {promised}"
            )
        if pool.promised > len(pool.references):
            faults.append(f"group {index}: more pages are promised than there are")
        for owner, pages in view.promises:
            own = {
                p for t in view.tables if t.owner == owner for p in t.pages[index] if p != NO_PAGE
            }
            if len(own) > pages[index]:
                faults.append(f"group {index}: {len(own)} pages held, {pages[index]} promised")
        for table in view.tables:
            faults += _table_faults(index, pool, table)
    return faults


def _table_faults(index: int, pool: PoolView, table: TableView) -> list[str]:
    pages, first = table.pages[index], table.first[index]
    faults = []
    oldest = max(0, table.computed - pool.window + 1) if pool.window else 0
    if any(page != NO_PAGE for page in pages[:first]) or NO_PAGE in pages[first:]:
        faults.append(f"group {index}: given back pages are not the first ones")
    if first * PAGE_POSITIONS > oldest:
        faults.append(f"group {index}: a page inside the window was given back")
    if len(pages) < page_count(table.computed):
        faults.append(f"group {index}: computed positions without a page")
    return faults


def _sequence_faults(sequence: SequenceState) -> list[str]:
    faults = []
    request = sequence.request
    if sequence.tokens[: len(request.prompt)] != request.prompt:
        faults.append("a sequence lost its prompt")
    if sequence.finish_reason is not None and sequence.tables:
        faults.append("a finished sequence holds pages")
    if sequence.tables and not 0 <= sequence.computed < len(sequence.tokens):
        faults.append(f"{sequence.computed} of {len(sequence.tokens)} tokens computed")
    if sequence.generated > request.max_tokens:
        faults.append("more tokens than max_tokens")
    if request.params.logprobs is not None and len(sequence.logprobs) != sequence.generated:
        faults.append("tokens without log probabilities")
    return faults


def _view(owner: int, computed: int, tables: list[PageTable]) -> TableView:
    return TableView(
        owner, computed, tuple(tuple(t.pages) for t in tables), tuple(t.first for t in tables)
    )
