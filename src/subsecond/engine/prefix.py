"""Which text's keys and values a page holds, so that a text that begins alike needn't compute them.

Owns: the tree of known beginnings, the search in it, what is forgotten with a page. Does not know:
requests, steps, who holds a page (that is `pages`).

An entry is a page's worth of tokens after a known beginning. It is found by the tenant, then page
by page by the token ids themselves: they are the keys, so a hash alone never decides (dict compares
the bytes, whose hashes are secret to the process). Pages, and so entries, belong to one engine and
with it to one artifact. Tenants have trees of their own: none gets what another has computed.

    root of a tenant --[64 ids]--> entry --[64 ids]--> entry --[17 ids]--> the end of a text

Only an entry of 64 ids has successors. A text's path in the tree is held by its page tables: in a
full group they hold every page of the path, in a window group the last ones. Hence, as `close`
gives back the last page first and `publish` holds the path's pages instead of equal own ones, an
entry's page in a full group is never idle for longer than a successor's: least recently used means
leaves first. An entry without its page in a full group is of no use and goes, with its pages in all
other groups. In window groups pages may be missing: a hit needs those that its next token sees.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from subsecond.engine.pages import NO_PAGE, PAGE_POSITIONS, Pages, PageTable, page_count

TOKEN_BYTES = array("i").itemsize
FULL_BYTES = PAGE_POSITIONS * TOKEN_BYTES


class Entry:
    """Tokens after a known beginning. key: their ids as bytes; pages: one a cache group, or
    NO_PAGE; depth: pages of the beginning with this one; keys: of `children`, in order. parent is
    None for a root, and for an entry that was forgotten.
    """

    __slots__ = ("children", "depth", "key", "keys", "pages", "parent")

    def __init__(self, parent: Entry | None, key: bytes, pages: list[int]) -> None:
        self.parent = parent
        self.key = key
        self.pages = pages
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.children: dict[bytes, Entry] = {}
        self.keys: list[bytes] = []

    @property
    def forgotten(self) -> bool:
        """Whether nothing can be found through this entry."""
        return self.parent is None and self.depth > 0

    def nearest(self, key: bytes) -> tuple[Entry | None, int]:
        """The child with the most tokens in common with `key` from the first on, and how many.

        Keys in order: no other shares more than one of the two beside the key's place.
        """
        place = bisect_left(self.keys, key)
        best, most = None, 0
        for other in self.keys[max(0, place - 1) : place + 1]:
            common = _common_tokens(other, key)
            if common > most:
                best, most = self.children[other], common
        return best, most


@dataclass(frozen=True)
class Hit:
    """A known beginning of `length` tokens. entry: its last full page. path: its pages' entries,
    the last of which may hold more tokens than the beginning.
    """

    entry: Entry
    path: Sequence[Entry]
    length: int


class PrefixCache:
    """The known beginnings of an engine's texts."""

    def __init__(self, pages: Pages) -> None:
        self.pages = pages
        self.roots: dict[str, Entry] = {}
        self.entries: list[dict[int, Entry]] = [{} for _ in pages.groups]  # of the cached pages
        pages.forget = self.forget

    def find(self, tenant: str, tokens: Sequence[int], most: int) -> Hit:
        """The longest beginning of `tokens`, at most `most`, that is known to this tenant."""
        root = self.roots.get(tenant)
        if root is None:
            root = self.roots[tenant] = self._root()
        ids = array("i", tokens[:most]).tobytes()
        path: list[Entry] = []
        entry, begin = root, 0
        while begin + FULL_BYTES <= len(ids):
            child = entry.children.get(ids[begin : begin + FULL_BYTES])
            if child is None:
                break
            path.append(child)
            entry, begin = child, begin + FULL_BYTES
        nearest, common = entry.nearest(ids[begin : begin + FULL_BYTES])
        if nearest is not None:
            path.append(nearest)
        length = self._covered(path, begin // TOKEN_BYTES + common)
        full = length // PAGE_POSITIONS
        return Hit(path[full - 1] if full else root, path[: page_count(length)], length)

    def open(self, hit: Hit) -> list[PageTable]:
        """Tables that hold the hit's pages."""
        tables = self.pages.open()
        for index, (table, pool) in enumerate(zip(tables, self.pages.pools, strict=True)):
            first = self._first(index, hit)
            table.pages, table.first = [NO_PAGE] * first, first
            for entry in hit.path[first:]:
                pool.share(entry.pages[index])
                table.pages.append(entry.pages[index])
        return tables

    def uses(self, hit: Hit) -> list[tuple[int, int]]:
        """(pages that the hit's tables hold, how many of them are idle now) in each group."""
        found = []
        for index, pool in enumerate(self.pages.pools):
            pages = [entry.pages[index] for entry in hit.path[self._first(index, hit) :]]
            found.append((len(pages), sum(not pool.references[page] for page in pages)))
        return found

    def publish(
        self, entry: Entry, tokens: Sequence[int], tables: Sequence[PageTable], computed: int
    ) -> Entry:
        """Makes the full pages of a text's first `computed` tokens known from `entry` on, where
        its path in the tree ends; where it ends now. Where a page is known already the tables hold
        that one afterwards: its content is the same to the bit.
        """
        while not entry.forgotten:
            begin = entry.depth * PAGE_POSITIONS
            if begin + PAGE_POSITIONS > computed:
                break
            key = array("i", tokens[begin : begin + PAGE_POSITIONS]).tobytes()
            entry = self._enter(entry, key, tables)
        return entry

    def publish_end(
        self, entry: Entry, tokens: Sequence[int], tables: Sequence[PageTable], computed: int
    ) -> None:
        """`publish`, and the last page, which isn't full. For a text that won't write it again."""
        entry = self.publish(entry, tokens, tables, computed)
        begin = entry.depth * PAGE_POSITIONS
        if entry.forgotten or begin >= computed:  # more: an interrupt came while it got its pages
            return
        key = array("i", tokens[begin:computed]).tobytes()
        place = bisect_left(entry.keys, key)
        if place == len(entry.keys) or not entry.keys[place].startswith(key):
            self._enter(entry, key, tables)

    def forget(self, index: int, page: int) -> None:
        """The page gets another content: no beginning is found in it any more."""
        entry = self.entries[index][page]
        if not self.pages.groups[index].window:
            self._remove(entry)
            return
        self._disown(entry, index)
        while entry.parent and not entry.children and set(entry.pages) == {NO_PAGE}:
            parent = entry.parent
            self._remove(entry)
            entry = parent

    def clear(self) -> None:
        """Forgets all texts; what runs goes on, and stays unknown."""
        for root in self.roots.values():
            for child in list(root.children.values()):
                self._remove(child)

    def rebuild(self) -> None:
        """Makes the tree and the pools whole after an interrupt anywhere: nobody holds a page, the
        pages of the tree are idle, leaves first, and all others free.
        """
        claimed: list[dict[int, Entry]] = [{} for _ in self.pages.groups]
        stack = list(self.roots.values())
        while stack:
            entry = stack.pop()
            for child in list(entry.children.values()):
                if self._sound(child, claimed):
                    for own, page in zip(claimed, child.pages, strict=True):
                        if page != NO_PAGE:
                            own[page] = child
                    stack.append(child)
                else:
                    del entry.children[child.key]
            entry.keys = sorted(entry.children)
        self.entries = claimed
        self.pages.recount([list(own)[::-1] for own in claimed])

    def _sound(self, entry: Entry, claimed: Sequence[dict[int, Entry]]) -> bool:
        """Whether an entry has the pages that it must have, and for itself."""
        if entry.parent is None:
            return False
        for page, own, group in zip(entry.pages, claimed, self.pages.groups, strict=True):
            if page in own or (page == NO_PAGE and not group.window):
                return False
        return bool(entry.children) or any(page != NO_PAGE for page in entry.pages)

    def _enter(self, parent: Entry, key: bytes, tables: Sequence[PageTable]) -> Entry:
        """The child of `parent` with this key; it has the tables' pages, or they have its."""
        place = parent.depth
        entry = parent.children.get(key)
        if entry is None:
            entry = Entry(parent, key, [table.pages[place] for table in tables])
            for index, page in enumerate(entry.pages):
                if page != NO_PAGE:
                    self._own(entry, index, page)
            at = bisect_left(parent.keys, key)
            parent.children[key] = entry
            parent.keys.insert(at, key)
            if at and key.startswith(parent.keys[at - 1]):  # the end of a text that has gone on
                self._remove_idle(parent.children[parent.keys[at - 1]])
            return entry
        for index, (table, pool) in enumerate(zip(tables, self.pages.pools, strict=True)):
            own, known = table.pages[place], entry.pages[index]
            if own in (known, NO_PAGE):
                continue
            if known == NO_PAGE:
                entry.pages[index] = own
                self._own(entry, index, own)
            else:
                pool.share(known)
                table.pages[place] = known
                pool.give(own)
        return entry

    def _own(self, entry: Entry, index: int, page: int) -> None:
        self.entries[index][page] = entry
        self.pages.pools[index].cached[page] = True

    def _disown(self, entry: Entry, index: int) -> None:
        page = entry.pages[index]
        entry.pages[index] = NO_PAGE
        self.entries[index].pop(page, None)
        self.pages.pools[index].uncache(page)

    def _remove_idle(self, entry: Entry) -> None:
        """Removes an entry that nobody holds."""
        pools = self.pages.pools
        if not any(
            pool.references[page]
            for pool, page in zip(pools, entry.pages, strict=True)
            if page != NO_PAGE
        ):
            self._remove(entry)

    def _remove(self, entry: Entry) -> None:
        """Takes an entry out of the tree, with what is found through it."""
        parent = entry.parent
        if parent is None:
            return
        del parent.children[entry.key]
        parent.keys.pop(bisect_left(parent.keys, entry.key))
        stack = [entry]
        while stack:
            gone = stack.pop()
            stack += gone.children.values()
            gone.parent, gone.children, gone.keys = None, {}, []
            for index, page in enumerate(gone.pages):
                if page != NO_PAGE:
                    self._disown(gone, index)

    def _covered(self, path: Sequence[Entry], length: int) -> int:
        """The most of `length` tokens whose next one finds all that it sees."""
        index = 0
        while index < len(self.pages.groups):
            group = self.pages.groups[index]
            blocks = range(group.first_page(length), page_count(length)) if group.window else ()
            missing = [block for block in blocks if path[block].pages[index] == NO_PAGE]
            if missing:
                length, index = missing[-1] * PAGE_POSITIONS, 0
            else:
                index += 1
        return length

    def _first(self, index: int, hit: Hit) -> int:
        return self.pages.groups[index].first_page(hit.length)

    def _root(self) -> Entry:
        return Entry(None, b"", [NO_PAGE] * len(self.pages.groups))


def _common_tokens(left: bytes, right: bytes) -> int:
    """How many tokens two keys share from the first on."""
    size = min(len(left), len(right))
    differing = int.from_bytes(left[:size], "big") ^ int.from_bytes(right[:size], "big")
    return (size - (differing.bit_length() + 7) // 8) // TOKEN_BYTES
