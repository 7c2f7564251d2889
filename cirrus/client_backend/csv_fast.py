"""CSV text as sparse rows, fast: plain text goes through compiled kernels, everything else through Python.

Both read the same rows; which one was taken can be told by the clock alone. Python reads segments with
quotation marks or other characters than ASCII, and those with something wrong in them, to say what it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import mmh3
import numpy as np
from numpy.typing import NDArray

from cirrus.client_backend import csv_kernels as kernels
from cirrus.client_backend.csv_format import CsvFormat
from cirrus.client_backend.csv_rows import CsvParser, LabelNames
from cirrus.client_backend.rows import Rows, SegmentFacts


class FastCsvParser:
    """Parses CSV text: see :class:`CsvParser`, which takes over where this one gives up.

    Args:
        path: What to call the file in an error message.
        file_format: Which columns to take, and how.
        label_names: Where labels that are text get their numbers.
    """

    def __init__(self, path: str, file_format: CsvFormat, label_names: LabelNames) -> None:
        self._slow = CsvParser(path, file_format, label_names)
        self._format = file_format
        self._missing = frozenset(file_format.na_values)
        self._missing_text, self._missing_starts = _packed(sorted(self._missing, key=len))
        self._may_be_missing = np.zeros(256, np.bool_)
        self._may_be_missing[[text.encode()[0] for text in self._missing if text]] = True
        used = [(column, kernels.NUMERIC) for column in file_format.numeric]
        used += [(column, kernels.CATEGORICAL) for column in file_format.categorical]
        n_numeric = len(file_format.numeric)
        roles = [4 * column.index + role for column, role in used]
        features = list(range(n_numeric)) + [0] * len(file_format.categorical)
        prefixes = [f"{column.name}=" for column, _ in used]
        missing = [
            n_numeric + mmh3.hash(f"{prefix}missing", signed=False) % file_format.hash_features
            for prefix in prefixes
        ]
        self._n_used = len(used)
        if file_format.label is not None:
            roles.append(4 * file_format.label.index + kernels.LABEL)
            features.append(0)
            prefixes.append("")
            missing.append(0)
        self._roles = np.array(roles, np.int64)
        self._features = np.array(features, np.int64)
        self._prefixes, self._prefix_starts = _packed(prefixes)
        self._missing_columns = np.array(missing, np.int64)
        self._is_simple = file_format.sep.isascii() and not file_format.text_labels

    def parse(self, data: bytes, first_line: int) -> tuple[Rows, SegmentFacts]:
        """See :class:`~cirrus.client_backend.rows.Parser`."""
        rows = self._fast(data, first_line) if self._is_simple else None
        if rows is None:
            return self._slow.parse(data, first_line)
        return rows, SegmentFacts(n_rows=rows.labels.size)

    def _fast(self, data: bytes, first_line: int) -> Rows | None:
        """Return the rows, or None if this is nothing for the kernels."""
        if b'"' in data or not data.isascii():
            return None
        text = np.frombuffer(data, np.uint8)
        n_columns = self._format.n_columns
        ends = np.empty((data.count(b"\n") + 1, n_columns + 1), np.int64)
        n_rows = kernels.find_cells(text, ord(self._format.sep), n_columns, ends)
        if n_rows < 0:
            return None
        ends = ends[int(first_line == 1 and self._format.has_header) : n_rows]
        hard = np.empty((len(ends) * len(self._format.numeric), 2), np.int64)
        known = np.empty(0)
        columns = np.empty(len(ends) * self._n_used, np.uint32)
        values = np.empty(columns.size, np.float32)
        lengths = np.empty(len(ends), np.uint32)
        labels = np.zeros(len(ends))
        for _ in range(2):
            n_entries, n_hard = kernels.read_rows(
                text,
                ends,
                self._roles,
                self._features,
                self._prefixes,
                self._prefix_starts,
                self._missing_text,
                self._missing_starts,
                self._may_be_missing,
                self._missing_columns,
                len(self._format.numeric),
                self._format.hash_features,
                columns,
                values,
                lengths,
                labels,
                hard,
                known,
            )
            if n_hard == 0 or known.size:
                break
            found = self._numbers(data, ends, hard[:n_hard])
            if found is None:
                return None
            known = found
        if self._format.label_above is None:
            narrow = labels.astype(np.float32)
        else:
            narrow = np.where(np.isnan(labels), np.nan, labels > self._format.label_above).astype(np.float32)
        values = values[:n_entries]
        # Labels that are missing or unusual, and values too large for float32, are for Python to judge.
        if not np.isfinite(narrow).all() or not np.isfinite(values).all():
            return None
        return Rows(
            lengths=lengths,
            indices=columns[:n_entries],
            values=None if (values == 1).all() else values,
            labels=narrow,
        )

    def _numbers(
        self, data: bytes, ends: NDArray[np.int64], hard: NDArray[np.int64]
    ) -> NDArray[np.float64] | None:
        """Return the numbers in cells that are more than a few digits, NaN for those that are missing."""
        numbers = np.empty(len(hard))
        begins = np.where(hard[:, 1] == 0, ends[hard[:, 0], 0], ends[hard[:, 0], hard[:, 1]] + 1)
        stops = ends[hard[:, 0], hard[:, 1] + 1]
        for i, (begin, stop) in enumerate(zip(begins.tolist(), stops.tolist(), strict=True)):
            try:
                numbers[i] = float(data[begin:stop])
            except ValueError:
                return None
        return numbers if np.isfinite(numbers).all() else None


def _packed(texts: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return texts as bytes, one after the other, and where each begins and the last one ends."""
    parts = [text.encode() for text in texts]
    starts = np.zeros(len(parts) + 1, np.int64)
    np.cumsum([len(part) for part in parts], out=starts[1:])
    return np.frombuffer(b"".join(parts), np.uint8), starts
