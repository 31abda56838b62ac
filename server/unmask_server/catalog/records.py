"""Things of the catalog in the database: put once, found by id or name, listed by age."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, Table, insert, or_, select, tuple_, update
from sqlalchemy.exc import IntegrityError

from unmask_server.catalog.errors import AlreadyExists, InvalidArgument, NotFound
from unmask_server.database.connect import query, transact
from unmask_server.database.rows import AnyRow, AnySelect
from unmask_server.reasons import Reason
from unmask_server.remembered import Remembered, weight_of

Thing = TypeVar("Thing")

Page = tuple[float, str]
"""(created_at, id) of the last thing of the page before."""

MAX_NAME = 200
"""Characters of a name."""

_CHUNK = 500
"""Rows a transaction: it holds SQLite's only writer for some milliseconds."""
_TRIES = 5
"""Tries of a put that others race for; each loser finds what the winner has put."""
_REMEMBERED = 64 * 2**20
"""Bytes of things kept in memory."""
_PREFIXES = ("pol-", "tea-", "que-", "ver-", "trj-")


@dataclass(frozen=True, slots=True)
class Entry:
    """A thing to put: its id is the fingerprint of `values`."""

    id: str
    name: str | None
    values: Mapping[str, Any]


class Records:
    """Rows of the catalog's tables, each of which has `id`, `name` and `created_at`.

    Nothing but a missing name ever changes, so what was read is remembered. Callable from threads.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known = Remembered[tuple[str, str], tuple[Any, int]](
            _REMEMBERED, lambda known: known[1]
        )

    def put(self, table: Table, entry: Entry) -> str:
        """Insert a thing unless it is there; give it its name if it has none. Returns its id.

        Raises:
            AlreadyExists: the name is another's, or the thing has another name.

        """
        (problem,) = self.put_many(table, [entry])
        if problem is not None:
            raise problem
        return entry.id

    def put_many(self, table: Table, entries: Sequence[Entry]) -> list[AlreadyExists | None]:
        """As `put`, for many; what went wrong with each, in order.

        They are listed in this order. The transaction ends every few hundred, so that a failure of
        the database may leave some of them there; putting them again is harmless.
        """
        problems: list[AlreadyExists | None] = []
        for start in range(0, len(entries), _CHUNK):
            chunk = entries[start : start + _CHUNK]
            problems += self._put_chunk(table, chunk)
            for entry in chunk:
                self._known.pop((table.name, entry.id))
        return problems

    def get(self, table: Table, name: str, make: Callable[[AnyRow], Thing]) -> Thing:
        """A thing by id or name.

        Raises:
            NotFound: there is none.

        """
        key = (table.name, name)
        known = self._known.get(key)
        if known is None:
            wanted = select(table).where(or_(table.c.id == name, table.c.name == name))
            row = query(self._engine, lambda c: c.execute(wanted).first())
            if row is None:
                raise NotFound(table.name, name)
            known = self._known.put(key, (make(row), 500 + weight_of(tuple(row))))
        found: Thing = known[0]
        return found

    def get_many(
        self, table: Table, ids: Sequence[str], make: Callable[[AnyRow], Thing]
    ) -> dict[str, Thing]:
        """Those of the ids that there are."""
        found: dict[str, Thing] = {}
        for start in range(0, len(ids), _CHUNK):
            wanted = select(table).where(table.c.id.in_(ids[start : start + _CHUNK]))
            rows = query(self._engine, partial(_all, wanted))
            found.update((row.id, make(row)) for row in rows)
        return found

    def page(
        self, table: Table, size: int, after: Page | None, make: Callable[[AnyRow], Thing]
    ) -> list[Thing]:
        """At most `size` things, oldest first, that come after those of the page before."""
        wanted = select(table).order_by(table.c.created_at, table.c.id).limit(size)
        if after is not None:
            wanted = wanted.where(tuple_(table.c.created_at, table.c.id) > tuple_(*after))
        return [make(row) for row in query(self._engine, partial(_all, wanted))]

    def forget(self) -> None:
        """Read everything anew: something that does change has changed."""
        self._known.clear()

    def _put_chunk(self, table: Table, entries: Sequence[Entry]) -> list[AlreadyExists | None]:
        for _ in range(_TRIES - 1):
            try:
                return transact(self._engine, lambda c: _put(c, table, entries))
            except IntegrityError:
                # Another one has put the same thing or name since this one looked.
                continue
        return transact(self._engine, lambda c: _put(c, table, entries))


def check_name(name: str | None) -> None:
    """Refuse a name that cannot be told from an id, or that cannot be written down.

    Raises:
        InvalidArgument: it is one of these.

    """
    if name is None:
        return
    if not 1 <= len(name) <= MAX_NAME:
        raise InvalidArgument("name", f"is not of 1 to {MAX_NAME} characters")
    if not name.isprintable():
        raise InvalidArgument("name", f"{name!r} has characters that cannot be printed")
    if name.startswith(_PREFIXES):
        raise InvalidArgument("name", f"{name!r} begins like an id; choose another")


def _all(wanted: AnySelect, connection: Connection) -> Sequence[AnyRow]:
    return connection.execute(wanted).all()


def _put(
    connection: Connection, table: Table, entries: Sequence[Entry]
) -> list[AlreadyExists | None]:
    here = select(table.c.id, table.c.name)
    wanted = [entry.name for entry in entries if entry.name is not None]
    rows = connection.execute(
        here.where(or_(table.c.id.in_([e.id for e in entries]), table.c.name.in_(wanted)))
    ).all()
    names: dict[str, str | None] = {row.id: row.name for row in rows}
    owners = {row.name: row.id for row in rows if row.name is not None}
    new: dict[str, Entry] = {}
    problems: list[AlreadyExists | None] = []
    for entry in entries:
        problem = _conflict(entry, names, owners, table.name)
        problems.append(problem)
        if problem is not None:
            continue
        name = names.get(entry.id) or entry.name
        if entry.id not in names or entry.id in new:
            new[entry.id] = Entry(entry.id, name, entry.values)
        elif name != names[entry.id]:
            connection.execute(update(table).where(table.c.id == entry.id).values(name=name))
        names[entry.id] = name
        if name is not None:
            owners[name] = entry.id
    now = time.time()
    if new:
        connection.execute(
            insert(table),
            [
                # A microsecond apart: the order of a list is that of its registration.
                {"id": e.id, "name": e.name, "created_at": now + i * 1e-6, **e.values}
                for i, e in enumerate(new.values())
            ],
        )
    return problems


def _conflict(
    entry: Entry, names: Mapping[str, str | None], owners: Mapping[str, str], kind: str
) -> AlreadyExists | None:
    if entry.name is None:
        return None
    if owners.get(entry.name, entry.id) != entry.id:
        return AlreadyExists(
            Reason.NAME_TAKEN,
            "name",
            f"{entry.name!r} is another {kind}, {owners[entry.name]}",
            kind=kind,
            name=owners[entry.name],
        )
    known_as = names.get(entry.id)
    if known_as not in (None, entry.name):
        return AlreadyExists(
            Reason.ALREADY_NAMED,
            "name",
            f"this {kind} has the name {known_as!r} already; use it or leave it out",
            kind=kind,
            name=str(known_as),
        )
    return None
