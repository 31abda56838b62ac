"""Many 16-byte keys as one bound parameter.

A list in SQL is one parameter a key: slow to bind, limited in number, and another statement for
every length. Here the keys travel concatenated in a single blob, which the database cuts up again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import BindParameter, Integer, LargeBinary, bindparam, func, literal_column, select
from sqlalchemy.sql.selectable import CTE

KEY_BYTES = 16


def packed_keys(parameter: str) -> CTE:
    """Build a table of one column, `key`, from the blob and the count in two parameters.

    The parameters are bound by `bind_keys` under the same name. Without keys it is one row of an
    empty key, which equals no stored one.
    """
    keys = select(literal_column("0").label("i")).cte(f"{parameter}_i", recursive=True)
    count: BindParameter[int] = bindparam(f"{parameter}_count", type_=Integer)
    following = select(keys.c.i + literal_column("1")).where(keys.c.i < count - literal_column("1"))
    numbers = keys.union_all(following)
    blob = bindparam(f"{parameter}_blob", type_=LargeBinary)
    start = numbers.c.i * literal_column(str(KEY_BYTES)) + literal_column("1")
    cut = func.substr(blob, start, literal_column(str(KEY_BYTES)), type_=LargeBinary)
    return select(cut.label("key")).cte(parameter)


def bind_keys(parameter: str, keys: Iterable[bytes]) -> dict[str, Any]:
    """Bind the parameters of `packed_keys`; each key has 16 bytes."""
    blob = b"".join(keys)
    return {f"{parameter}_blob": blob, f"{parameter}_count": len(blob) // KEY_BYTES}
