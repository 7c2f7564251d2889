"""How text for Vowpal Wabbit is loaded; :mod:`~cirrus.client_backend.vw` parses it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cirrus.client_backend.load_formats import (
    LoadFacts,
    LoadFormat,
    Outcome,
    ParserReader,
    Segment,
    SegmentReader,
)
from cirrus.client_backend.rows import MAX_INDEX, Parser
from cirrus.errors import ConfigError

#: In an interaction, any namespace.
WILDCARD = ":"


@dataclass(frozen=True, kw_only=True)
class VwFormat(LoadFormat):
    """Text for Vowpal Wabbit."""

    hash_features: int = 2**18
    interactions: tuple[str, ...] = ()
    missing_label: str = "error"
    """``error``, ``drop`` the row, or ``zero``: take 0 for it."""

    def __post_init__(self) -> None:
        """Check every field."""
        if not 1 <= self.hash_features <= MAX_INDEX:
            raise ConfigError("hash_features", f"must be a whole number >= 1, got {self.hash_features!r}")
        if self.missing_label not in ("error", "drop", "zero"):
            raise ConfigError("missing_label", f'must be "error" or "drop", got {self.missing_label!r}')
        for pair in self.interactions:
            if len(pair) != 2 or not pair.isascii() or not pair.isprintable() or set(pair) & {" ", "|"}:
                what = "the first letters of two namespaces, such as 'ab' (':' is any)"
                raise ConfigError("interactions", f"must be {what}, got {pair!r}")
        if len({frozenset(pair) for pair in self.interactions}) < len(self.interactions):
            raise ConfigError("interactions", f"two of {', '.join(self.interactions)} are the same")

    def reader(self, files: Sequence[str]) -> SegmentReader:
        """See :meth:`LoadFormat.reader`."""
        return _VwReader(files, self)

    def outcome(self, facts: LoadFacts, names: Sequence[Any]) -> Outcome:
        """See :meth:`LoadFormat.outcome`."""
        encoding = {
            "format": "vw",
            "hash_features": self.hash_features,
            "interactions": list(self.interactions),
        }
        return Outcome(n_features=self.hash_features, encoding=encoding)


class _VwReader(ParserReader):
    def __init__(self, files: Sequence[str], how: VwFormat) -> None:
        super().__init__(files)
        self._how = how

    def make_parser(self, name: str, segment: Segment) -> Parser:
        # What compiles is loaded where text is parsed, which often is in processes of their own.
        from cirrus.client_backend.vw import VwParser

        return VwParser(name, self._how)
