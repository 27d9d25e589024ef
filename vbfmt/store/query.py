"""Build queries of the catalog."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vbfmt.store.rows import COLUMNS

_MOST = 2**63 - 1


@dataclass(frozen=True)
class Query:
    """The conditions that adapters must meet; see `vbfmt.store.Store.entries`."""

    base_model: str | None = None
    bank: str | None = None
    metadata: Mapping[str, str] | None = None
    added_since: float | None = None
    limit: int | None = None

    def statement(self) -> tuple[str, tuple[Any, ...]]:
        """Return the SQL and its parameters. Each row has `COLUMNS` and the names; the newest is
        first."""
        where: list[str] = ["1"]
        values: list[Any] = []
        for condition, value in (
            ("base_model = ?", self.base_model),
            ("bank = ?", self.bank),
            ("added >= ?", self.added_since),
        ):
            if value is not None:
                where.append(condition)
                values.append(value)
        for key, text in (self.metadata or {}).items():
            where.append("id IN (SELECT adapter FROM metadata WHERE key = ? AND value = ?)")
            values += [key, text]
        if not all(map(_is_possible, values)):
            where, values = ["0"], []
        limit = -1 if self.limit is None else max(0, min(int(self.limit), _MOST))
        query = (
            f"SELECT {COLUMNS}, (SELECT json_group_array(name) FROM names WHERE names.digest = "
            f"adapters.digest) FROM adapters WHERE {' AND '.join(where)} "
            f"ORDER BY added DESC, digest LIMIT {limit}"
        )
        return query, tuple(values)


def _is_possible(value: object) -> bool:
    """Return whether the catalog can contain a value. It cannot contain text with a lone
    surrogate."""
    try:
        str(value).encode()
    except UnicodeEncodeError:
        return False
    return True
