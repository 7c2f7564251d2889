"""Gathering entries, numbering ids and hashing: compiled where that can be, else by numpy."""

from __future__ import annotations

from cirrus.client_backend.loops import ARE_COMPILED

if ARE_COMPILED:
    from cirrus.client_backend.csv_kernels import murmur3
    from cirrus.client_backend.numbering import number_fields, number_ids, take_entries, tidy_rows
else:
    from cirrus.client_backend.plain_gathering import (  # type: ignore[assignment]
        murmur3,
        number_fields,
        number_ids,
        take_entries,
        tidy_rows,
    )

__all__ = ["murmur3", "number_fields", "number_ids", "take_entries", "tidy_rows"]
