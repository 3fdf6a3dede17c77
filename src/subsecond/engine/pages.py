"""Who holds which KV page.

Owns: the free pages of every cache group, reference counts, and which pages nobody holds but the
prefix cache would like to keep. Does not know: requests, tokens, what a page contains.

A page is held (references > 0), idle (nobody holds it, its content is cached) or free. Ownership of
a sequence's pages in one group (64 positions a page):

    | given back: left the window | shared or cached, read only | own (refs = 1), may be written |
    0                             first                         computed             len(pages)

A page that is about to be written is always owned by one table and isn't cached: `extend` copies it
first if it is shared or cached. Idle pages are given to whoever needs one, in the order in which
they became idle: where none is free, or where so many are idle that memory that was never touched
had better stay so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

PAGE_POSITIONS = 64
NO_PAGE = -1


@dataclass(frozen=True)
class CacheGroup:
    """Layers that see the same positions. window: how many positions a token sees, itself included;
    0 is all.
    """

    window: int = 0

    def first_page(self, position: int) -> int:
        """The first page of a sequence that its token at `position` sees."""
        return max(0, position - self.window + 1) // PAGE_POSITIONS if self.window else 0


class PagePool:
    """The pages of one cache group. idle: in the order in which they became so (a dict for its
    order alone). cached: whether the page's content is known to the prefix cache. warm: the pages
    below this number have their memory; idle pages are given away before one that has not.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.free = list(
            range(size - 1, -1, -1)
        )  # lowest page first, so that few pages are ever touched
        self.references = [0] * size
        self.cached = [False] * size
        self.idle: dict[int, None] = {}
        self.warm = size  # of an engine that nobody warms, no page is worse than another

    def is_free(self, page: int) -> bool:
        """Whether nobody holds the page, and its content means nothing."""
        return self.references[page] == 0 and not self.cached[page]

    @property
    def available(self) -> int:
        """Pages that nobody holds."""
        return len(self.free) + len(self.idle)

    def take(self) -> int:
        """A free page, now with one reference; there must be one."""
        page = self.free.pop()
        self.references[page] = 1
        return page

    def share(self, page: int) -> None:
        """One more table holds the page."""
        if self.references[page] == 0:
            self.idle.pop(page, None)
        self.references[page] += 1

    def give(self, page: int) -> None:
        """One table fewer holds the page; where none does it is idle or free."""
        self.references[page] -= 1
        if self.references[page] == 0:
            if self.cached[page]:
                self.idle[page] = None
            else:
                self.free.append(page)

    def uncache(self, page: int) -> None:
        """The page's content isn't wanted any more; it is free if nobody holds it."""
        self.cached[page] = False
        if page in self.idle:
            del self.idle[page]
            self.free.append(page)


class PageTable:
    """A sequence's pages in one group: `pages[i]` holds positions 64 i to 64 i + 63; before `first`
    all are given back.
    """

    __slots__ = ("first", "pages")

    def __init__(self) -> None:
        self.pages: list[int] = []
        self.first = 0

    @property
    def held(self) -> int:
        """Number of pages."""
        return len(self.pages) - self.first


CopyPage = Callable[[int, int, int], None]  # group, source page, destination page
Forget = Callable[[int, int], None]  # group, page


class Pages:
    """The pools of all cache groups, and the operations on a sequence's tables (one table a
    group).

    most_idle: with more idle pages than that in a group, one of them is taken before a free one.
    forget: called with a cached page that is needed for another content; it must `uncache` it.
    """

    def __init__(
        self,
        groups: Sequence[CacheGroup],
        pages_per_group: int,
        copy_page: CopyPage,
        most_idle: int | None = None,
    ) -> None:
        self.groups = tuple(groups)
        self.pools = [PagePool(pages_per_group) for _ in self.groups]
        self.most_idle = pages_per_group if most_idle is None else most_idle
        self.forget: Forget = self._uncache
        self._copy_page = copy_page

    def worst_case(
        self, prompt: int, last_stored: int, choices: int, step_positions: int
    ) -> list[int]:
        """Most pages, one number a group, that `choices` texts after one prompt can hold at the
        same time.

        prompt, last_stored: positions. step_positions: most positions that one step stores for a
        sequence.
        """
        total = page_count(last_stored)
        shared = prompt // PAGE_POSITIONS
        need = []
        for group in self.groups:
            if group.window == 0:
                need.append(shared + choices * (total - shared))
            else:
                live = page_count(group.window + step_positions) + 1
                need.append(choices * min(total, live))
        return need

    def fits(self, need: Sequence[int]) -> bool:
        """Whether so many pages, one number a group, exist."""
        return all(pages <= pool.size for pages, pool in zip(need, self.pools, strict=True))

    def open(self) -> list[PageTable]:
        """Empty tables for a new sequence."""
        return [PageTable() for _ in self.groups]

    def extend(self, tables: Sequence[PageTable], computed: int, end: int) -> bool:
        """Makes positions `computed` to `end` - 1 writable: own pages behind all of them. False if
        pages run out; the tables keep what they got.
        """
        place = computed // PAGE_POSITIONS
        for index, (table, pool) in enumerate(zip(tables, self.pools, strict=True)):
            pages = table.pages
            if place < len(pages):
                old = pages[place]
                if (pool.references[old] > 1 or pool.cached[old]) and not self._part(
                    index, table, place
                ):
                    return False
            while len(pages) * PAGE_POSITIONS < end:
                page = self._take(index)
                if page == NO_PAGE:
                    return False
                pages.append(page)
        return True

    def fork(self, tables: Sequence[PageTable]) -> list[PageTable]:
        """Tables of a second sequence with the same past; all pages are shared."""
        forks = self.open()
        for table, fork, pool in zip(tables, forks, self.pools, strict=True):
            fork.pages, fork.first = list(table.pages), table.first
            for page in table.pages[table.first :]:
                pool.share(page)
        return forks

    def slide(self, tables: Sequence[PageTable], computed: int) -> None:
        """Gives back the pages that no later position sees."""
        for table, pool, group in zip(tables, self.pools, self.groups, strict=True):
            if group.window == 0:
                continue
            first = min(group.first_page(computed), len(table.pages))
            while table.first < first:
                pool.give(table.pages[table.first])
                table.pages[table.first] = NO_PAGE
                table.first += 1

    def close(self, tables: Sequence[PageTable]) -> None:
        """Gives back everything, the last page first: so leaves become idle before what they
        follow.
        """
        for table, pool in zip(tables, self.pools, strict=True):
            for page in reversed(table.pages[table.first :]):
                pool.give(page)
            table.pages, table.first = [], 0

    def recount(self, cached: Sequence[Sequence[int]]) -> None:
        """Nobody holds a page any more: these are idle, in their order, all else is free."""
        for pool, pages in zip(self.pools, cached, strict=True):
            pool.references = [0] * pool.size
            pool.cached = [False] * pool.size
            for page in pages:
                pool.cached[page] = True
            pool.idle = dict.fromkeys(pages)
            pool.free = [page for page in range(pool.size - 1, -1, -1) if not pool.cached[page]]

    def _part(self, index: int, table: PageTable, place: int) -> bool:
        """Makes a shared or cached page the table's own: a copy of it, or, where nobody else holds
        it and there is no other page, the page itself, which isn't cached any more.
        """
        pool, old = self.pools[index], table.pages[place]
        page = self._take(index)
        if page != NO_PAGE:
            self._copy_page(index, old, page)
            table.pages[place] = page
            pool.give(old)
            return True
        if pool.references[old] > 1:
            return False
        self.forget(index, old)
        return True

    def _take(self, index: int) -> int:
        """A page for a new content, free or idle; NO_PAGE if all are held."""
        pool = self.pools[index]
        spare = len(pool.idle) > self.most_idle or (pool.free and pool.free[-1] >= pool.warm)
        if pool.idle and (not pool.free or spare):
            self.forget(index, next(iter(pool.idle)))  # which makes it the next free one
        return pool.take() if pool.free else NO_PAGE

    def _uncache(self, index: int, page: int) -> None:
        self.pools[index].uncache(page)


def page_count(positions: int) -> int:
    """Pages that hold positions 0 to `positions` - 1."""
    return -(-positions // PAGE_POSITIONS)
