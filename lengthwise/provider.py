"""Who can tell features: a mapping from their names to accessors, checked against the table."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Generic, TypeVar

from lengthwise import features
from lengthwise.errors import InputError, UnknownNameError

A = TypeVar("A")


class Provider(Mapping[str, A], Generic[A]):
    """What one part (an engine, a plugin, a router) can tell, by the names of the features table.

    ``label`` is what errors call the part; ``accessors`` say how it gets at each feature, in
    whatever form suits it. A name that is not in the table is an ``UnknownNameError`` here, that
    is, when the part is imported. What the part can't tell it does not list: ``require`` refuses
    a reader of it, so that no feature is ever silently 0.
    """

    def __init__(self, label: str, accessors: Mapping[str, A]) -> None:
        for name in accessors:
            if name not in features.FEATURES:
                raise UnknownNameError(f"feature of {label}", name, features.FEATURES)
        self.label = label
        self._accessors = dict(accessors)

    def __getitem__(self, name: str) -> A:
        return self._accessors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._accessors)

    def __len__(self) -> int:
        return len(self._accessors)

    def require(self, names: Iterable[str], reader: str) -> None:
        """Raises ``InputError`` if ``reader`` reads what is not told here."""
        reason = self.lacks(names, reader)
        if reason is not None:
            raise InputError(reason)

    def lacks(self, names: Iterable[str], reader: str) -> str | None:
        """One line that says which of ``names`` are not told here; None if all are.

        Raises ``UnknownNameError`` for a name that is not in the table.
        """
        missing = [name for name in dict.fromkeys(names) if features.get(name).name not in self]
        if not missing:
            return None
        told = ", ".join(f"{name} (of a {features.get(name).of})" for name in missing)
        near = [difflib.get_close_matches(name, self, n=1, cutoff=0.5) for name in missing]
        nearest = ", ".join(dict.fromkeys(found[0] for found in near if found))
        hint = f"; nearest: {nearest}" if nearest else ""
        return (
            f"{reader} reads {told}, and {self.label} can't tell{hint} (it has: {', '.join(self)})"
        )
