"""What is always true of an engine between two steps, written once over snapshots.

Owns: the checks. Tests run them after every step; they cost a walk over all tables and the prefix
cache, so the engine itself doesn't.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from subsecond.engine.engine import Engine
from subsecond.engine.pages import NO_PAGE, PAGE_POSITIONS, PageTable, page_count
from subsecond.engine.prefix import FULL_BYTES, Entry
from subsecond.engine.request import Request, SequenceState


@dataclass(frozen=True)
class PoolView:
    """One cache group: free pages, references a page, cached pages, idle ones in their order."""

    window: int
    free: tuple[int, ...]
    references: tuple[int, ...]
    cached: frozenset[int]
    idle: tuple[int, ...]


@dataclass(frozen=True)
class TableView:
    """A sequence that holds pages. path: for each of its pages that are in the prefix cache, those
    of the cache's entry, one a group; keys: what those entries say they hold.
    """

    tenant: str
    tokens: tuple[int, ...]
    computed: int
    pages: tuple[tuple[int, ...], ...]
    first: tuple[int, ...]
    path: tuple[tuple[int, ...], ...]
    keys: tuple[bytes, ...]
    tree: str | None


@dataclass(frozen=True)
class EntryView:
    """A known page: its pages, one a group, and its place in the list of all entries."""

    key: bytes
    pages: tuple[int, ...]
    parent: int  # -1: a root


@dataclass(frozen=True)
class Snapshot:
    """Everything that the checks look at."""

    pools: tuple[PoolView, ...]
    tables: tuple[TableView, ...]
    entries: tuple[EntryView, ...]
    faults: tuple[str, ...]  # of single requests, and of the tree's form


def snapshot(engine: Engine) -> Snapshot:
    """The engine's state as immutable data."""
    pools = tuple(
        PoolView(
            group.window,
            tuple(pool.free),
            tuple(pool.references),
            frozenset(page for page, cached in enumerate(pool.cached) if cached),
            tuple(pool.idle),
        )
        for group, pool in zip(engine.pages.groups, engine.pages.pools, strict=True)
    )
    scheduler = engine.scheduler
    faults = list(_request_faults(engine))
    tables = tuple(
        _view(engine, sequence)
        for request in scheduler.running
        for sequence in request.sequences
        if sequence.tables
    )
    entries, misshapen = _entries(engine)
    return Snapshot(pools, tables, entries, (*faults, *misshapen))


def check(view: Snapshot) -> list[str]:
    """Every violated invariant in words; empty if all hold."""
    faults = list(view.faults)
    for index, pool in enumerate(view.pools):
        faults += _pool_faults(index, pool, view)
        for table in view.tables:
            faults += _table_faults(index, pool, table)
    for table in view.tables:
        faults += _path_faults(view, table)
    return faults


def _pool_faults(index: int, pool: PoolView, view: Snapshot) -> Iterator[str]:
    held = Counter(page for table in view.tables for page in table.pages[index] if page != NO_PAGE)
    free, idle = Counter(pool.free), Counter(pool.idle)
    if max(free.values(), default=0) > 1:
        yield f"group {index}: a page is free twice"
    for page, references in enumerate(pool.references):
        if references != held[page]:
            yield f"group {index}: page {page} has {references} references, {held[page]} holders"
        if (references > 0) + (page in free) + (page in idle) != 1:
            yield f"group {index}: page {page} isn't one of held, idle and free"
        if page in idle and page not in pool.cached:
            yield f"group {index}: page {page} is idle, but its content is unknown"
    owned = [entry.pages[index] for entry in view.entries if entry.pages[index] != NO_PAGE]
    if sorted(owned) != sorted(pool.cached):
        yield f"group {index}: cached pages are {sorted(pool.cached)}, entries own {sorted(owned)}"
    if pool.window:
        return
    order = {page: place for place, page in enumerate(pool.idle)}
    for entry in view.entries:
        page = entry.pages[index]
        if page == NO_PAGE:
            yield f"group {index}: an entry has no page"
        if entry.parent >= 0:
            before = view.entries[entry.parent].pages[index]
            if before in order and order.get(page, len(order)) > order[before]:
                yield f"group {index}: page {before} goes before {page}, which follows it"


def _table_faults(index: int, pool: PoolView, table: TableView) -> Iterator[str]:
    pages, first = table.pages[index], table.first[index]
    oldest = max(0, table.computed - pool.window + 1) if pool.window else 0
    if any(page != NO_PAGE for page in pages[:first]) or NO_PAGE in pages[first:]:
        yield f"group {index}: given back pages are not the first ones"
    if first * PAGE_POSITIONS > oldest:
        yield f"group {index}: a page inside the window was given back"
    if len(pages) < page_count(table.computed):
        yield f"group {index}: computed positions without a page"


def _path_faults(view: Snapshot, table: TableView) -> Iterator[str]:
    if table.tree not in (None, table.tenant):
        yield "a text's pages are known to another tenant"
    for place, (key, pages) in enumerate(zip(table.keys, table.path, strict=True)):
        begin = place * PAGE_POSITIONS
        if key != array("i", table.tokens[begin : begin + PAGE_POSITIONS]).tobytes():
            yield f"page {place} is known under other tokens than its text's"
        if begin + PAGE_POSITIONS > table.computed:
            yield f"page {place} is known before it is computed"
        for index, (own, known) in enumerate(zip(table.pages, pages, strict=True)):
            if own[place] not in (NO_PAGE, known):
                yield f"group {index}: a text holds page {own[place]} beside the known {known}"


def _request_faults(engine: Engine) -> Iterator[str]:
    scheduler = engine.scheduler
    for request in scheduler.running:
        for sequence in request.sequences:
            yield from _sequence_faults(sequence)
            waits = sequence.finish_reason is None and not sequence.tables
            begun = sequence.choice == 0 or sequence.generated > 0
            if (sequence in scheduler.unplaced) != (waits and begun):
                yield "a text of a running request is lost, or waits and runs"
        if request.finished:
            yield "a finished request runs"
    for request in scheduler.waiting:
        if request in scheduler.running:
            yield "a request waits and runs"
        if any(sequence.tables for sequence in request.sequences):
            yield "a waiting request holds pages"
        if request.finished:
            yield "a finished request waits"
    for requests in (scheduler.waiting, scheduler.running):
        for sequence in (text for request in requests for text in request.sequences):
            if sequence.finish_reason is None and not sequence.tables and sequence.computed:
                yield "a text without pages has computed tokens"
        if not _ordered(requests):
            yield "requests are out of order"


def _ordered(requests: Sequence[Request]) -> bool:
    ranks = [request.rank for request in requests]
    return ranks == sorted(ranks)


def _sequence_faults(sequence: SequenceState) -> Iterator[str]:
    request = sequence.request
    if sequence.tokens[: len(request.prompt)] != request.prompt:
        yield "a sequence lost its prompt"
    if sequence.finish_reason is not None and sequence.tables:
        yield "a finished sequence holds pages"
    if sequence.tables and not 0 <= sequence.computed < len(sequence.tokens):
        yield f"{sequence.computed} of {len(sequence.tokens)} tokens computed"
    if sequence.generated > request.max_tokens:
        yield "more tokens than max_tokens"
    if request.params.logprobs is not None and len(sequence.logprobs) != sequence.generated:
        yield "tokens without log probabilities"
    if request.cached_tokens >= len(request.prompt):
        yield "a whole prompt is said to be cached"


def _entries(engine: Engine) -> tuple[tuple[EntryView, ...], list[str]]:
    """All entries, each after its parent, and what is wrong with the tree's form."""
    found: list[EntryView] = []
    faults: list[str] = []
    stack = [(root, -1) for root in engine.prefixes.roots.values()]
    while stack:
        entry, place = stack.pop()
        if entry.keys != sorted(entry.children):
            faults.append("an entry's keys are not its children's")
        for key, child in entry.children.items():
            if child.parent is not entry or child.key != key or child.depth != entry.depth + 1:
                faults.append("an entry isn't where it says")
            if child.children and len(key) != FULL_BYTES:
                faults.append("an entry follows a page that isn't full")
            for index, page in enumerate(child.pages):
                if page != NO_PAGE and engine.prefixes.entries[index].get(page) is not child:
                    faults.append(f"group {index}: page {page} doesn't lead to its entry")
            found.append(EntryView(key, tuple(child.pages), place))
            stack.append((child, len(found) - 1))
    return tuple(found), faults


def _view(engine: Engine, sequence: SequenceState) -> TableView:
    tables: list[PageTable] = sequence.tables
    path: list[Entry] = []
    entry = sequence.entry
    while entry is not None and entry.parent is not None:
        path.append(entry)
        entry = entry.parent
    path.reverse()
    roots = engine.prefixes.roots
    tree = next((tenant for tenant, root in roots.items() if root is entry), None)
    return TableView(
        sequence.request.tenant,
        tuple(sequence.tokens),
        sequence.computed,
        tuple(tuple(table.pages) for table in tables),
        tuple(table.first for table in tables),
        tuple(tuple(entry.pages) for entry in path),
        tuple(entry.key for entry in path),
        tree,
    )
