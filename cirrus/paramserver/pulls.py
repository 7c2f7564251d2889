"""Answers the pulls of one connection, and remembers them: a push can name a pull instead of its ids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import lz4.block
import numpy as np
from numpy.typing import NDArray

from cirrus.errors import ProtocolError
from cirrus.paramserver import kernels
from cirrus.paramserver.codec import Buffer, Header, encode_parts
from cirrus.paramserver.limits import Holding
from cirrus.paramserver.protocol import (
    ALIGNMENT_BYTES,
    COMPRESSED,
    MAX_FRAME_BYTES,
    MAX_SECTIONS,
    PULL_COMPRESSED,
    PULL_FLOAT16,
    PULL_HEAD,
    REMEMBERED_PULLS,
    SECTION,
    IdEncoding,
    Section,
    ValuesReply,
)
from cirrus.paramserver.tables import ShardTables

#: Pulls of more rows are answered but not remembered.
MAX_REMEMBERED_ROWS = 1 << 20
FIRST_CAPACITY_ROWS = 1024
FIRST_REPLY_BYTES = 8192
#: Before a reply there is room for an acknowledgement, so that both go out with one call.
REPLY_START = 32
#: What headers take of a reply's frame at most.
HEAD_BYTES = 4096
_DELTA_BYTES = {IdEncoding.DELTA8: 1, IdEncoding.DELTA16: 2, IdEncoding.DELTA32: 4}
_PROBLEMS = {
    kernels.BAD_PUSH: "a malformed pull",
    kernels.ID_OUT_OF_RANGE: "a pull of a row that this shard does not own",
    kernels.IDS_NOT_ASCENDING: "a pull whose ids are not sorted and unique",
}


@dataclass(frozen=True, slots=True)
class _Wanted:
    """One section of a pull, lengths checked, ids still encoded."""

    table: int
    count: int
    first: int
    encoding: int
    payload: NDArray[np.uint8]


class PullDesk:
    """Answers pulls.

    Args:
        tables: The shard's tables.
        memory: Where what answers take is counted; whoever gives that back calls :meth:`release`.
    """

    def __init__(self, tables: ShardTables, memory: Holding) -> None:
        self._memory = memory
        self.rows_pulled = 0
        self.keys = np.empty((REMEMBERED_PULLS, 1 + 2 * len(tables.tables)), np.int64)
        """For each pull remembered its request, then start and count of each table's rows in ``rows``."""
        self.rows: NDArray[np.uint32]
        """For each pull remembered its local rows."""
        self.reply: NDArray[np.uint8]
        """The answer to a plain pull, from :data:`REPLY_START` on."""
        self.release()
        self.reply_bytes = 0
        self.position = 0
        """Where the frame after the answered one begins."""
        self._tables = tables
        self._out = np.zeros(4, np.int64)
        self._widths = [table.width for table in tables.tables]
        self._next_slot = 0

    def answer_plain(self, buffer: NDArray[np.uint8], start: int, end: int) -> int:
        """Answer the usual kind of pull into :attr:`reply`, with one call of a kernel.

        Args:
            buffer: What was received.
            start: Where the pull begins.
            end: One past the last byte received.

        Returns:
            ANSWERED, NEED_MORE, or OTHER_FRAME for a pull that :meth:`answer` deals with.

        Raises:
            ProtocolError: The ids are malformed or not here.
        """
        tables, out = self._tables, self._out
        while True:
            keys = self.keys[self._next_slot]
            rows = self.rows[self._next_slot]
            status = kernels.answer_pull(
                buffer, start, end, tables.layout, tables.values, keys, rows, self.reply, REPLY_START, out
            )
            if status != kernels.NEED_ROOM:
                break
            n_rows, n_bytes = int(out[kernels.PULL_ROWS]), int(out[kernels.PULL_ROOM_BYTES])
            if n_rows > MAX_REMEMBERED_ROWS or n_bytes > MAX_FRAME_BYTES:
                return kernels.OTHER_FRAME
            self._make_room(n_rows)
            if REPLY_START + n_bytes > len(self.reply):
                size = REPLY_START + 2 * n_bytes
                self._memory.take(size - len(self.reply), f"a pull of {n_rows} rows")
                self.reply = np.empty(size, np.uint8)
        if status == kernels.ANSWERED:
            self._next_slot = (self._next_slot + 1) % REMEMBERED_PULLS
            self.position = int(out[kernels.PULL_POSITION])
            self.reply_bytes = int(out[kernels.PULL_REPLY_BYTES])
            self.rows_pulled += int(out[kernels.PULL_ROWS])
        elif status in _PROBLEMS:
            raise ProtocolError(_PROBLEMS[status])
        return int(status)

    def _make_room(self, n_rows: int) -> None:
        if n_rows > self.rows.shape[1]:
            n_bytes = 4 * REMEMBERED_PULLS * (2 * n_rows - self.rows.shape[1])
            self._memory.take(n_bytes, f"a pull of {n_rows} rows")
            larger = np.empty((REMEMBERED_PULLS, 2 * n_rows), np.uint32)
            larger[:, : self.rows.shape[1]] = self.rows
            self.rows = larger

    def release(self) -> None:
        """Forget all pulls, and begin with the little memory that is not counted.

        Pushes that name one of them will be asked for their ids.
        """
        self.keys[:] = -1
        self.rows = np.empty((REMEMBERED_PULLS, FIRST_CAPACITY_ROWS), np.uint32)
        self.reply = np.empty(FIRST_REPLY_BYTES, np.uint8)

    def answer(self, header: Header, body: memoryview, send: Callable[[list[Buffer]], None]) -> None:
        """Answer any pull.

        Args:
            header: Of the pull.
            body: Of the pull.
            send: Takes the reply's frame in pieces.

        Raises:
            ProtocolError: The pull is malformed, too large, or of rows that are not here.
            LimitError: There is not so much memory for an answer.
        """
        if len(body) < PULL_HEAD.size:
            raise ProtocolError("a truncated pull")
        n_sections, flags, _ = PULL_HEAD.unpack_from(body)
        wanted = self._parse(body, n_sections)
        n_values = sum(section.count * self._widths[section.table] for section in wanted)
        n_rows = sum(section.count for section in wanted)
        # Rows, values, and values as they are sent.
        with self._memory.lend(4 * n_rows + 8 * n_values, f"a pull of {n_rows} rows"):
            send(self._reply(header, flags, wanted))

    def _reply(self, header: Header, flags: int, wanted: list[_Wanted]) -> list[Buffer]:
        """Return the reply's frame in pieces."""
        rows = self._remember(header.request, wanted)
        self.rows_pulled += sum(section.count for section in wanted)
        sections = []
        for section, section_rows in zip(wanted, rows, strict=True):
            values = np.empty(section.count * self._widths[section.table], np.float32)
            self._gather(section.table, section_rows, values)
            sections.append(Section(table=section.table, values=values))
        float16, compressed = bool(flags & PULL_FLOAT16), bool(flags & PULL_COMPRESSED)
        reply = ValuesReply(sections=tuple(sections))
        return encode_parts(reply, header.request, float16=float16, compressed=compressed)

    def _gather(self, table: int, rows: NDArray[np.uint32], out: NDArray[np.float32]) -> None:
        kernels.gather_rows(self._tables.layout[table], self._tables.values, rows, out)

    def _parse(self, body: memoryview, n_sections: int) -> list[_Wanted]:
        if n_sections > MAX_SECTIONS:
            raise ProtocolError(f"a pull of {n_sections} sections")
        found = []
        n_values = 0
        offset = PULL_HEAD.size
        for _ in range(n_sections):
            if offset + SECTION.size > len(body):
                raise ProtocolError("a truncated pull")
            table, encoding, _, count, first, id_bytes, value_bytes, _ = SECTION.unpack_from(body, offset)
            offset += SECTION.size
            if table >= len(self._widths) or value_bytes or offset + id_bytes > len(body):
                raise ProtocolError("a malformed pull")
            n_values += count * self._widths[table]
            if 4 * n_values > MAX_FRAME_BYTES - HEAD_BYTES:
                raise ProtocolError(f"a pull of {n_values} values is too large for one frame")
            payload = np.frombuffer(body[offset : offset + id_bytes], np.uint8)
            offset += id_bytes + -id_bytes % ALIGNMENT_BYTES
            if encoding & COMPRESSED:
                encoding &= ~COMPRESSED
                payload = _decompress(encoding, count, payload)
            found.append(_Wanted(table, count, first, encoding, payload))
        return found

    def _remember(self, request: int, wanted: list[_Wanted]) -> list[NDArray[np.uint32]]:
        """Decode the ids into the next slot, so that a push can name this pull.

        Returns:
            The local rows of each section.
        """
        total = sum(section.count for section in wanted)
        keys = self.keys[self._next_slot]
        keys[:] = -1
        keys[2::2] = 0
        if total <= MAX_REMEMBERED_ROWS:
            self._make_room(total)
            target = self.rows[self._next_slot]
        else:
            target = np.empty(total, np.uint32)
        layout = self._tables.layout
        start = 0
        rows = []
        for section in wanted:
            part = target[start : start + section.count]
            first_row = layout[section.table, kernels.FIRST_ROW]
            n_rows = layout[section.table, kernels.N_ROWS]
            payload = section.payload
            status = kernels.decode_rows(
                payload,
                0,
                len(payload),
                section.encoding,
                section.count,
                section.first,
                first_row,
                n_rows,
                part,
            )
            if status != kernels.NEED_MORE:
                raise ProtocolError(_PROBLEMS[status])
            keys[1 + 2 * section.table] = start
            keys[2 + 2 * section.table] = section.count
            rows.append(part)
            start += section.count
        if total <= MAX_REMEMBERED_ROWS:
            keys[0] = request
            self._next_slot = (self._next_slot + 1) % REMEMBERED_PULLS
        return rows


def _decompress(encoding: int, count: int, payload: NDArray[np.uint8]) -> NDArray[np.uint8]:
    width = _DELTA_BYTES.get(IdEncoding(encoding)) if encoding in _DELTA_BYTES else None
    if width is None or count == 0:
        raise ProtocolError("a malformed pull")
    try:
        raw = lz4.block.decompress(payload.data, uncompressed_size=(count - 1) * width)
    except lz4.block.LZ4BlockError as error:
        raise ProtocolError(f"ids are not LZ4: {error}") from error
    return np.frombuffer(raw, np.uint8)
