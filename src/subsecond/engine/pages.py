"""Who holds which KV page.

Owns: the free pages of every cache group, reference counts, and the promise that makes a running
request independent of all later ones. Does not know: requests, tokens, what a page contains.

Ownership of a sequence's pages in one group (64 positions a page):

    | given back: left the window | shared with forks (refs > 1), read only | own (refs = 1), may be
    written |
    0                             first                                     computed
            len(pages)

A page that is about to be written is always owned by one table: `extend` copies it first if it is
shared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from subsecond.errors import RuntimeFailure

PAGE_POSITIONS = 64
NO_PAGE = -1


@dataclass(frozen=True)
class CacheGroup:
    """Layers that see the same positions. window: how many positions a token sees, itself included;
    0 is all.
    """

    window: int = 0


class PagePool:
    """The pages of one cache group."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.free = list(
            range(size - 1, -1, -1)
        )  # lowest page first, so that few pages are ever touched
        self.references = [0] * size
        self.promised = 0

    def take(self) -> int:
        """A free page, now with one reference."""
        if not self.free:
            raise RuntimeFailure("KV pages ran out although they were promised")
        page = self.free.pop()
        self.references[page] = 1
        return page

    def share(self, page: int) -> None:
        """One more table holds the page."""
        self.references[page] += 1

    def give(self, page: int) -> None:
        """One table fewer holds the page; it is free when none does."""
        self.references[page] -= 1
        if self.references[page] == 0:
            self.free.append(page)


class PageTable:
    """A sequence's pages in one group: `pages[i]` holds positions 64 i to 64 i + 63; before `first`
    all are given back.
    """

    __slots__ = ("first", "pages")

    def __init__(self) -> None:
        self.pages: list[int] = []
        self.first = 0


CopyPage = Callable[[int, int, int], None]  # group, source page, destination page


class Pages:
    """The pools of all cache groups, and the operations on a sequence's tables (one table a
    group).
    """

    def __init__(
        self, groups: Sequence[CacheGroup], pages_per_group: int, copy_page: CopyPage
    ) -> None:
        self.groups = tuple(groups)
        self.pools = [PagePool(pages_per_group) for _ in self.groups]
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
        """Whether the need could ever be promised."""
        return all(pages <= pool.size for pages, pool in zip(need, self.pools, strict=True))

    def promise(self, need: Sequence[int]) -> bool:
        """Sets `need` pages aside; False, and nothing is done, if so many aren't left."""
        if any(
            pool.promised + pages > pool.size for pages, pool in zip(need, self.pools, strict=True)
        ):
            return False
        for pages, pool in zip(need, self.pools, strict=True):
            pool.promised += pages
        return True

    def withdraw(self, need: Sequence[int]) -> None:
        """Ends a promise."""
        for pages, pool in zip(need, self.pools, strict=True):
            pool.promised -= pages

    def open(self) -> list[PageTable]:
        """Empty tables for a new sequence."""
        return [PageTable() for _ in self.groups]

    def extend(self, tables: Sequence[PageTable], computed: int, end: int) -> None:
        """Makes positions `computed` to `end` - 1 writable: own pages behind all of them."""
        for index, (table, pool) in enumerate(zip(tables, self.pools, strict=True)):
            place = computed // PAGE_POSITIONS
            if place < len(table.pages) and pool.references[table.pages[place]] > 1:
                page = pool.take()
                self._copy_page(index, table.pages[place], page)
                pool.give(table.pages[place])
                table.pages[place] = page
            while len(table.pages) * PAGE_POSITIONS < end:
                table.pages.append(pool.take())

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
            oldest = max(0, computed - group.window + 1)  # what position `computed` sees first
            while (table.first + 1) * PAGE_POSITIONS <= oldest and table.first < len(table.pages):
                pool.give(table.pages[table.first])
                table.pages[table.first] = NO_PAGE
                table.first += 1

    def cut(self, tables: Sequence[PageTable], end: int) -> bool:
        """Forgets positions from `end` on; False, and nothing is done, if earlier ones that they
        need are gone.
        """
        for table, group in zip(tables, self.groups, strict=True):
            if group.window and max(0, end - group.window + 1) < table.first * PAGE_POSITIONS:
                return False
        for table, pool in zip(tables, self.pools, strict=True):
            while len(table.pages) > max(page_count(end), table.first):
                pool.give(table.pages.pop())
        return True

    def cover(self, tables: Sequence[PageTable], end: int) -> bool:
        """Whether the tables hold all positions below `end` that the next one sees."""
        if len(tables) != len(self.groups):
            return False
        for table, group in zip(tables, self.groups, strict=True):
            oldest = max(0, end - group.window + 1) if group.window else 0
            if len(table.pages) < page_count(end) or table.first * PAGE_POSITIONS > oldest:
                return False
            if NO_PAGE in table.pages[table.first :]:
                return False
        return True

    def recount(
        self, tables: Sequence[Sequence[PageTable]], promises: Sequence[Sequence[int]]
    ) -> None:
        """Makes the pools what these tables hold and these promises set aside; all else is free."""
        for index, pool in enumerate(self.pools):
            references = [0] * pool.size
            for own in tables:
                for page in own[index].pages[own[index].first :]:
                    references[page] += 1
            pool.references = references
            pool.free = [page for page in range(pool.size - 1, -1, -1) if not references[page]]
            pool.promised = sum(promise[index] for promise in promises)

    def close(self, tables: Sequence[PageTable]) -> None:
        """Gives back everything."""
        for table, pool in zip(tables, self.pools, strict=True):
            for page in table.pages[table.first :]:
                pool.give(page)
            table.pages, table.first = [], 0


def page_count(positions: int) -> int:
    """Pages that hold positions 0 to `positions` - 1."""
    return -(-positions // PAGE_POSITIONS)
