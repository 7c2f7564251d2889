"""The shard's inner loops, compiled by numba, all without the interpreter lock.

All tables of a shard lie behind each other in one flat float32 array. A row's weights and their optimizer
states are neighbours, ``width * stride`` floats together: the weights, then the first state of each of them,
and so on. A sparse push waits for memory, and so it waits once a row and not once an array (measured: FTRL on
10,900 of 2**20 rows takes a third of the time). Two small arrays describe the tables, so that one compiled
kernel serves any number of them:

``layout`` int64 ``(n_tables, 6)``
    first element, first row (global), number of rows here, width, stride, optimizer code.
``hyper`` float32 ``(n_tables, 6)``
    learning rate, l1, l2, and up to three parameters of the optimizer.

:func:`apply_pushes` walks the frames of a receive buffer and applies every plain push in it in one call: a
Python loop a frame would cost more than the frame. It stops at the first frame that is not a plain push of
the lease that the connection is attached to; the caller deals with that one.

Concurrency: several threads run :func:`apply_pushes` on the same tables at once without locks (Hogwild, Recht
et al., 2011). Two updates of one row at the same instant may lose one of the two; nothing else can happen.

Run as a program, this module compiles every kernel, so that a first run need not.
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

from cirrus.paramserver.protocol import (
    ALIGNMENT_BYTES,
    COMPRESSED,
    HEADER,
    MAGIC,
    MAX_SECTIONS,
    PULL_HEAD,
    PUSH_KEY,
    SECTION,
)
from cirrus.paramserver.protocol import IdEncoding as _Id
from cirrus.paramserver.protocol import Kind as _Kind
from cirrus.paramserver.protocol import ValueEncoding as _Value

_F = TypeVar("_F")

# Columns of ``layout``.
FIRST_ELEMENT, FIRST_ROW, N_ROWS, WIDTH, STRIDE, OPTIMIZER = range(6)
# Columns of ``hyper``.
RATE, L1, L2, PARAM0, PARAM1, PARAM2 = range(6)
# Optimizer codes.
SGD, MOMENTUM, NESTEROV, ADAGRAD, ADAM, FTRL, ADD = range(7)
# Counters that apply_pushes adds to; whole steps had something for this shard, nothing of which was refused.
STEPS_APPLIED, DUPLICATES_DROPPED, NONFINITE_REFUSED, ROWS_PUSHED, STEPS_WHOLE, N_COUNTERS = range(6)
# Why apply_pushes stopped.
NEED_MORE, OTHER_FRAME, NOT_ATTACHED, BAD_PUSH, ID_OUT_OF_RANGE, IDS_NOT_ASCENDING, GAP, NEED_IDS = range(8)
# What answer_pull says beside these.
ANSWERED, NEED_ROOM = 8, 9
# Entries of the ``out`` array of answer_pull; the last two when it needs room.
PULL_POSITION, PULL_REPLY_BYTES, PULL_ROWS, PULL_ROOM_BYTES = range(4)
# Entries of the ``out`` array of apply_pushes.
OUT_POSITION, OUT_REQUEST, OUT_FRAMES, OUT_STATUS = range(4)

#: Values updated together: they and their states fit the first-level cache.
_TILE = 512
_HEADER_BYTES = HEADER.size
_KEY_BYTES = PUSH_KEY.size
_SECTION_BYTES = SECTION.size
_PUSH, _PULL, _VALUES = int(_Kind.PUSH), int(_Kind.PULL), int(_Kind.VALUES)
_PULL_HEAD_BYTES = PULL_HEAD.size
_MAX_SECTIONS = MAX_SECTIONS
_ALIGN = ALIGNMENT_BYTES
# The protocol's version, as a number: numba tells by the content of this file alone what to compile anew.
_VERSION = 2
_MAGIC_VERSION = MAGIC | _VERSION << 16
_COMPRESSED = COMPRESSED
_DELTA8, _DELTA16, _DELTA32 = int(_Id.DELTA8), int(_Id.DELTA16), int(_Id.DELTA32)
_SAME, _RANGE, _NONE = int(_Id.SAME_AS_PULL), int(_Id.RANGE), int(_Id.NONE)
_FLOAT32 = int(_Value.FLOAT32)


_COMPILE = numba.njit(cache=True, nogil=True, error_model="numpy")


def _jit(function: _F) -> _F:
    return cast(_F, _COMPILE(cast(Any, function)))


@_jit
def _u16(buffer: Any, at: int) -> int:
    return int(buffer[at]) | int(buffer[at + 1]) << 8


@_jit
def _u32(buffer: Any, at: int) -> int:
    return int(buffer[at]) | int(buffer[at + 1]) << 8 | int(buffer[at + 2]) << 16 | int(buffer[at + 3]) << 24


@_jit
def decode_rows(
    buffer: Any,
    at: int,
    n_bytes: int,
    encoding: int,
    count: int,
    first: int,
    first_row: int,
    n_rows: int,
    out: Any,
) -> int:
    """Write the local row numbers of a section's ids to ``out``.

    Returns:
        A status; NEED_MORE means that all is well.
    """
    if count == 0:
        return NEED_MORE if n_bytes == 0 else BAD_PUSH
    row = first - first_row
    if row < 0 or row >= n_rows:
        return ID_OUT_OF_RANGE
    if encoding == _RANGE:
        if n_bytes != 0:
            return BAD_PUSH
        if row + count > n_rows:
            return ID_OUT_OF_RANGE
        for i in range(count):
            out[i] = row + i
        return NEED_MORE
    smallest = 1
    out[0] = row
    if encoding == _DELTA8:
        if n_bytes != count - 1:
            return BAD_PUSH
        for i in range(count - 1):
            delta = int(buffer[at + i])
            smallest = min(smallest, delta)
            row += delta
            out[i + 1] = row
    elif encoding == _DELTA16:
        if n_bytes != 2 * (count - 1):
            return BAD_PUSH
        deltas16 = buffer[at : at + n_bytes].view(np.uint16)
        for i in range(count - 1):
            delta = int(deltas16[i])
            smallest = min(smallest, delta)
            row += delta
            out[i + 1] = row
    elif encoding == _DELTA32:
        if n_bytes != 4 * (count - 1):
            return BAD_PUSH
        deltas32 = buffer[at : at + n_bytes].view(np.uint32)
        for i in range(count - 1):
            delta = int(deltas32[i])
            smallest = min(smallest, delta)
            row += delta
            out[i + 1] = row
    else:
        return BAD_PUSH
    # Rows ascend, so the last one is the largest; wrapped uint32 entries before it cannot be reached.
    if row >= n_rows:
        return ID_OUT_OF_RANGE
    if smallest < 1:
        return IDS_NOT_ASCENDING
    return NEED_MORE


@_jit
def all_finite(values: Any) -> bool:
    """Tell whether no float32 is NaN or infinite: these alone have all bits of the exponent set.

    In integers, because a loop over those is vectorised where one over floats must keep its order.
    """
    bits = values.view(np.uint32)
    largest = np.uint32(0)
    for i in range(bits.size):
        largest = max(largest, bits[i] & np.uint32(0x7F800000))
    return bool(largest != np.uint32(0x7F800000))


@_jit
def _update(code: int, h: Any, w: Any, a: Any, b: Any, g: Any, n: int, step: int) -> None:
    """Do one optimizer step on ``n`` values that lie together.

    These are weights ``w``, states ``a`` and ``b``, and gradients ``g``.

    Each loop is free of branches, so that the compiler makes vector instructions of it: a square root and a
    division a value otherwise cost more than all the rest.
    """
    zero, one = np.float32(0.0), np.float32(1.0)
    rate, l1, l2 = h[RATE], h[L1], h[L2]
    if code == SGD:
        rate = rate / (one + h[PARAM0] * np.float32(step))
        shrink = rate * l1
        for i in range(n):
            v = w[i] - rate * (g[i] + l2 * w[i])
            w[i] = max(v - shrink, zero) + min(v + shrink, zero)
    elif code in (MOMENTUM, NESTEROV):
        mu = h[PARAM0]
        rate = rate / (one + h[PARAM1] * np.float32(step))
        shrink = rate * l1
        ahead, behind = (one, mu) if code == NESTEROV else (zero, one)
        for i in range(n):
            gradient = g[i] + l2 * w[i]
            velocity = mu * a[i] + gradient
            a[i] = velocity
            v = w[i] - rate * (ahead * gradient + behind * velocity)
            w[i] = max(v - shrink, zero) + min(v + shrink, zero)
    elif code == ADAGRAD:
        epsilon = h[PARAM0]
        for i in range(n):
            gradient = g[i] + l2 * w[i]
            squares = a[i] + gradient * gradient
            a[i] = squares
            scaled = rate / (np.sqrt(squares) + epsilon)
            v = w[i] - scaled * gradient
            shrink = scaled * l1
            w[i] = max(v - shrink, zero) + min(v + shrink, zero)
    elif code == ADAM:
        beta1, beta2, epsilon = h[PARAM0], h[PARAM1], h[PARAM2]
        correction1 = np.float32(1.0 - float(beta1) ** (step + 1))
        correction2 = np.float32(1.0 - float(beta2) ** (step + 1))
        for i in range(n):
            gradient = g[i] + l2 * w[i]
            mean = beta1 * a[i] + (one - beta1) * gradient
            variance = beta2 * b[i] + (one - beta2) * gradient * gradient
            a[i] = mean
            b[i] = variance
            scaled = rate / (np.sqrt(variance / correction2) + epsilon)
            v = w[i] - scaled * (mean / correction1)
            shrink = scaled * l1
            w[i] = max(v - shrink, zero) + min(v + shrink, zero)
    elif code == FTRL:
        beta = h[PARAM0]
        inverse = one / rate
        for i in range(n):
            before = b[i]
            after = before + g[i] * g[i]
            root = np.sqrt(after)
            z = a[i] + g[i] - (root - np.sqrt(before)) * inverse * w[i]
            a[i] = z
            b[i] = after
            # max and min are the soft threshold of z at l1, which is 0 between -l1 and l1.
            w[i] = -(max(z - l1, zero) + min(z + l1, zero)) / ((beta + root) * inverse + l2)
    else:  # ADD
        for i in range(n):
            w[i] += g[i]


@_jit
def row_span(table: Any) -> int:
    """Return how many floats one row of a table takes, with its states."""
    return int(table[WIDTH] * table[STRIDE])


@_jit
def apply_rows(table: Any, h: Any, values: Any, rows: Any, gradient: Any, step: int) -> None:
    """Apply one optimizer step to some rows of one table.

    Rows are gathered a tile at a time, updated where they lie together, and scattered back.

    Args:
        table: The table's row of ``layout``.
        h: The table's row of ``hyper``.
        values: The flat array.
        rows: Local row numbers, unique.
        gradient: Flat float32, ``len(rows) * width``.
        step: The run's clock, from 0.

    Formulas: momentum and Nesterov (Sutskever et al., 2013), AdaGrad (Duchi et al., 2011), Adam (Kingma and
    Ba, 2015, moments of untouched rows standing still), FTRL-proximal (McMahan et al., 2013, algorithm 1). L1
    is a proximal step after the update, L2 is part of the gradient; FTRL has both in its closed form.
    """
    if table[WIDTH] > 1:
        _apply_wide(table, h, values, rows, gradient, step)
        return
    base, stride, code = table[FIRST_ELEMENT], table[STRIDE], table[OPTIMIZER]
    at = np.empty(_TILE, np.int64)
    w = np.empty(_TILE, np.float32)
    a = np.empty(_TILE, np.float32)
    b = np.empty(_TILE, np.float32)
    for start in range(0, rows.size, _TILE):
        n = min(_TILE, rows.size - start)
        for i in range(n):
            at[i] = base + np.int64(rows[start + i]) * stride
        for i in range(n):
            w[i] = values[at[i]]
        if stride > 1:
            for i in range(n):
                a[i] = values[at[i] + 1]
        if stride > 2:
            for i in range(n):
                b[i] = values[at[i] + 2]
        _update(code, h, w, a, b, gradient[start : start + n], n, step)
        for i in range(n):
            values[at[i]] = w[i]
        if stride > 1:
            for i in range(n):
                values[at[i] + 1] = a[i]
        if stride > 2:
            for i in range(n):
                values[at[i] + 2] = b[i]


@_jit
def _apply_wide(table: Any, h: Any, values: Any, rows: Any, gradient: Any, step: int) -> None:
    """As :func:`apply_rows`, for rows of several values.

    A tile is some whole rows, or a part of one that is longer than it. Places are unsigned, since the
    compiler allows for negative ones otherwise and makes no vector instructions of the copies.
    """
    code, n_states = table[OPTIMIZER], table[STRIDE] - 1
    base, width, span = np.uint64(table[FIRST_ELEMENT]), np.uint64(table[WIDTH]), np.uint64(row_span(table))
    w = np.empty(_TILE, np.float32)
    a = np.empty(_TILE, np.float32)
    b = np.empty(_TILE, np.float32)
    some_rows = max(1, _TILE // table[WIDTH])
    for start in range(0, rows.size, some_rows):
        n_rows = min(some_rows, rows.size - start)
        for first in range(0, table[WIDTH], _TILE):
            n = min(_TILE, table[WIDTH] - first)
            columns = np.uint64(n)
            for r in range(n_rows):
                at = base + np.uint64(rows[start + r]) * span + np.uint64(first)
                to = np.uint64(r) * columns
                for c in range(columns):
                    w[to + c] = values[at + c]
                if n_states > 0:
                    for c in range(columns):
                        a[to + c] = values[at + width + c]
                if n_states > 1:
                    for c in range(columns):
                        b[to + c] = values[at + width + width + c]
            begin = start * table[WIDTH] + first
            _update(code, h, w, a, b, gradient[begin : begin + n_rows * n], n_rows * n, step)
            for r in range(n_rows):
                at = base + np.uint64(rows[start + r]) * span + np.uint64(first)
                to = np.uint64(r) * columns
                for c in range(columns):
                    values[at + c] = w[to + c]
                if n_states > 0:
                    for c in range(columns):
                        values[at + width + c] = a[to + c]
                if n_states > 1:
                    for c in range(columns):
                        values[at + width + width + c] = b[to + c]


@_jit
def gather_rows(table: Any, values: Any, rows: Any, out: Any) -> None:
    """Copy the weights of some rows of one table to ``out``, flat float32 ``len(rows) * width``."""
    base, width, stride = table[FIRST_ELEMENT], table[WIDTH], table[STRIDE]
    if width == 1:
        for i in range(rows.size):
            out[i] = values[base + np.int64(rows[i]) * stride]
    else:
        span = row_span(table)
        for i in range(rows.size):
            start = base + np.int64(rows[i]) * span
            for c in range(width):
                out[i * width + c] = values[start + c]


@_jit
def _put_u16(buffer: Any, at: int, number: int) -> None:
    buffer[at] = number & 0xFF
    buffer[at + 1] = number >> 8 & 0xFF


@_jit
def _put_u32(buffer: Any, at: int, number: int) -> None:
    _put_u16(buffer, at, number & 0xFFFF)
    _put_u16(buffer, at + 2, number >> 16 & 0xFFFF)


@_jit
def _padded(n_bytes: int) -> int:
    return (n_bytes + _ALIGN - 1) // _ALIGN * _ALIGN


@_jit
def _measure_pull(buffer: Any, body: int, stop: int, layout: Any, out: Any) -> int:
    """Check the lengths of a plain pull; note in ``out`` how many rows and reply bytes it takes."""
    n_sections = _u16(buffer, body)
    if _u16(buffer, body + 2) != 0 or n_sections > _MAX_SECTIONS:
        return OTHER_FRAME
    n_rows = 0
    n_bytes = _HEADER_BYTES + _PULL_HEAD_BYTES
    at = body + _PULL_HEAD_BYTES
    for _ in range(n_sections):
        if at + _SECTION_BYTES > stop:
            return OTHER_FRAME
        table = _u16(buffer, at)
        count = _u32(buffer, at + 4)
        following = at + _SECTION_BYTES + _padded(_u32(buffer, at + 12))
        odd = int(buffer[at + 2]) > _RANGE or _u32(buffer, at + 16) != 0
        if odd or table >= layout.shape[0] or following > stop:
            return OTHER_FRAME
        n_rows += count
        n_bytes += _SECTION_BYTES + _padded(4 * count * layout[table, WIDTH])
        at = following
    out[PULL_ROWS] = n_rows
    out[PULL_ROOM_BYTES] = n_bytes
    return NEED_MORE


@_jit
def answer_pull(
    buffer: Any,
    start: int,
    end: int,
    layout: Any,
    values: Any,
    keys: Any,
    rows: Any,
    reply: Any,
    reply_start: int,
    out: Any,
) -> int:
    """Answer a plain pull: decode its ids, remember their rows, gather the weights into the reply's frame.

    Args:
        buffer: uint8, what was received.
        start: Where the frame begins.
        end: One past the last byte received.
        layout: Tables, see the module.
        values: The flat array.
        keys: int64 ``(1 + 2 * n_tables,)``, where to note request, and start and count of each table's rows.
        rows: uint32, room for the local rows.
        reply: uint8, room for the reply.
        reply_start: Where in it the reply's frame begins.
        out: int64 ``(4,)``: where the next frame begins, bytes of the reply, rows and bytes that need room.

    Returns:
        ANSWERED; NEED_MORE bytes of the frame; NEED_ROOM; OTHER_FRAME, for one that is compressed, malformed
        or in any other way not plain; or what is wrong with the ids.
    """
    if end - start < _HEADER_BYTES:
        return NEED_MORE
    length = _u32(buffer, start + 8)
    body = start + _HEADER_BYTES
    stop = body + length
    if _u32(buffer, start) != (_MAGIC_VERSION | _PULL << 24) or length < _PULL_HEAD_BYTES:
        return OTHER_FRAME
    if stop > end:
        return NEED_MORE
    status = _measure_pull(buffer, body, stop, layout, out)
    if status != NEED_MORE:
        return status
    if out[PULL_ROWS] > rows.size or out[PULL_ROOM_BYTES] > reply.size - reply_start:
        return NEED_ROOM
    n_sections = _u16(buffer, body)
    for i in range(keys.size):
        keys[i] = 0
    keys[0] = -1
    at = body + _PULL_HEAD_BYTES
    to = reply_start + _HEADER_BYTES + _PULL_HEAD_BYTES
    used = 0
    for _ in range(n_sections):
        table = _u16(buffer, at)
        count = _u32(buffer, at + 4)
        id_bytes = _u32(buffer, at + 12)
        part = rows[used : used + count]
        first_row, n_rows = layout[table, FIRST_ROW], layout[table, N_ROWS]
        ids = at + _SECTION_BYTES
        encoding, first = int(buffer[at + 2]), _u32(buffer, at + 8)
        status = decode_rows(buffer, ids, id_bytes, encoding, count, first, first_row, n_rows, part)
        if status != NEED_MORE:
            return status
        keys[1 + 2 * table] = used
        keys[2 + 2 * table] = count
        used += count
        n_bytes = 4 * count * layout[table, WIDTH]
        _put_u16(reply, to, table)
        reply[to + 2] = _NONE
        reply[to + 3] = _FLOAT32
        for word in range(3):
            _put_u32(reply, to + 4 + 4 * word, 0)
        _put_u32(reply, to + 16, n_bytes)
        _put_u32(reply, to + 20, n_bytes)
        to += _SECTION_BYTES
        gather_rows(layout[table], values, part, reply[to : to + n_bytes].view(np.float32))
        for i in range(to + n_bytes, to + _padded(n_bytes)):
            reply[i] = 0
        to += _padded(n_bytes)
        at = ids + _padded(id_bytes)
    request = _u32(buffer, start + 4)
    keys[0] = request
    _put_u32(reply, reply_start, _MAGIC_VERSION | _VALUES << 24)
    _put_u32(reply, reply_start + 4, request)
    _put_u32(reply, reply_start + 8, to - reply_start - _HEADER_BYTES)
    _put_u32(reply, reply_start + 12, 0)
    _put_u32(reply, reply_start + _HEADER_BYTES, n_sections)
    _put_u32(reply, reply_start + _HEADER_BYTES + 4, 0)
    out[PULL_POSITION] = stop
    out[PULL_REPLY_BYTES] = to - reply_start
    return ANSWERED


@_jit
def _find_pull(remembered_keys: Any, request: int) -> int:
    for slot in range(remembered_keys.shape[0]):
        if remembered_keys[slot, 0] == request:
            return slot
    return -1


@_jit
def _check_section(
    buffer: Any,
    at: int,
    stop: int,
    layout: Any,
    remembered_keys: Any,
    remembered: Any,
    scratch: Any,
    used: int,
    plan: Any,
) -> int:
    """Check one section and note in ``plan`` where its rows and values are; return a status.

    ``plan`` gets: table, slot of the remembered pull or -1, start of the rows there or in ``scratch``, count,
    start of the values in the buffer, start of the next section.
    """
    if at + _SECTION_BYTES > stop:
        return BAD_PUSH
    table = _u16(buffer, at)
    id_encoding = int(buffer[at + 2])
    value_encoding = int(buffer[at + 3])
    count = _u32(buffer, at + 4)
    first = _u32(buffer, at + 8)
    id_bytes = _u32(buffer, at + 12)
    value_bytes = _u32(buffer, at + 16)
    if id_encoding & _COMPRESSED or value_encoding != _FLOAT32:
        return OTHER_FRAME
    id_start = at + _SECTION_BYTES
    value_start = id_start + (id_bytes + _ALIGN - 1) // _ALIGN * _ALIGN
    following = value_start + (value_bytes + _ALIGN - 1) // _ALIGN * _ALIGN
    if table >= layout.shape[0] or following > stop:
        return BAD_PUSH
    width = layout[table, WIDTH]
    slot = -1
    rows_start = used
    if id_encoding == _SAME:
        slot = _find_pull(remembered_keys, first)
        if slot < 0:
            return NEED_IDS
        rows_start = remembered_keys[slot, 1 + 2 * table]
        count = remembered_keys[slot, 2 + 2 * table]
    if value_bytes != 4 * count * width:
        return BAD_PUSH
    if slot < 0:
        if used + count > scratch.size:
            return BAD_PUSH
        status = decode_rows(
            buffer, id_start, id_bytes, id_encoding, count, first, layout[table, FIRST_ROW], layout[table,
            N_ROWS], scratch[used:],
        )  # fmt: skip
        if status != NEED_MORE:
            return status
    plan[0] = table
    plan[1] = slot
    plan[2] = rows_start
    plan[3] = count
    plan[4] = value_start
    plan[5] = following
    return NEED_MORE


@_jit
def apply_pushes(
    buffer: Any,
    start: int,
    end: int,
    layout: Any,
    hyper: Any,
    values: Any,
    marks: Any,
    epoch: int,
    lease: int,
    remembered_keys: Any,
    remembered: Any,
    scratch: Any,
    counters: Any,
    refuse_nonfinite: bool,
    out: Any,
) -> None:
    """Apply the plain pushes that a receive buffer begins with.

    Args:
        buffer: uint8; frames lie from ``start``, bytes are there up to ``end``.
        start: Where the first frame begins.
        end: One past the last byte received.
        layout: Tables, see the module.
        hyper: Optimizer parameters, see the module.
        values: The flat array.
        marks: int32, the next position of every lease of ``epoch``.
        epoch: The epoch that the connection is attached to, -1 for none.
        lease: The lease that the connection is attached to.
        remembered_keys: int64 ``(REMEMBERED_PULLS, 1 + 2 * n_tables)``: request, then start and count.
        remembered: uint32 ``(REMEMBERED_PULLS, capacity)``: local rows of those pulls.
        scratch: uint32, room for the rows of one frame.
        counters: int64 ``(N_COUNTERS,)``, added to.
        refuse_nonfinite: Drop sections with NaN or infinity.
        out: int64 ``(4,)``: where the next frame begins, the last push's request, pushes consumed, and why it
            stopped.
    """
    at = start
    n_frames = 0
    request = 0
    status = NEED_MORE
    plans = np.empty((_MAX_SECTIONS, 6), np.int64)
    while True:
        if end - at < _HEADER_BYTES:
            break
        if _u32(buffer, at) != (_MAGIC_VERSION | _PUSH << 24):
            status = OTHER_FRAME
            break
        length = _u32(buffer, at + 8)
        body = at + _HEADER_BYTES
        stop = body + length
        if stop > end:
            break
        if length < _KEY_BYTES or length % _ALIGN:
            status = BAD_PUSH
            break
        if _u32(buffer, body) != epoch or _u32(buffer, body + 4) != lease:
            status = NOT_ATTACHED
            break
        position = _u32(buffer, body + 8)
        n_sections = _u16(buffer, body + 12)
        step = _u32(buffer, body + 16) | _u32(buffer, body + 20) << 32
        mark = int(marks[lease])
        if position > mark:
            status = GAP
            break
        if position < mark:
            counters[DUPLICATES_DROPPED] += 1
        else:
            if n_sections > _MAX_SECTIONS:
                status = BAD_PUSH
                break
            section = body + _KEY_BYTES
            used = 0
            for k in range(n_sections):
                status = _check_section(
                    buffer, section, stop, layout, remembered_keys, remembered, scratch, used, plans[k]
                )
                if status != NEED_MORE:
                    break
                section = plans[k, 5]
                if plans[k, 1] < 0:
                    used += plans[k, 3]
            if status != NEED_MORE:
                break
            if section != stop:
                status = BAD_PUSH
                break
            refused_before = counters[NONFINITE_REFUSED]
            for k in range(n_sections):
                table, slot, rows_start, count = plans[k, 0], plans[k, 1], plans[k, 2], plans[k, 3]
                width = layout[table, WIDTH]
                gradient = buffer[plans[k, 4] : plans[k, 4] + 4 * count * width].view(np.float32)
                if refuse_nonfinite and not all_finite(gradient):
                    counters[NONFINITE_REFUSED] += 1
                    continue
                if slot < 0:
                    rows = scratch[rows_start : rows_start + count]
                else:
                    rows = remembered[slot, rows_start : rows_start + count]
                apply_rows(layout[table], hyper[table], values, rows, gradient, step)
                counters[ROWS_PUSHED] += count
            marks[lease] = mark + 1
            counters[STEPS_APPLIED] += 1
            if n_sections > 0 and counters[NONFINITE_REFUSED] == refused_before:
                counters[STEPS_WHOLE] += 1
        request = _u32(buffer, at + 4)
        n_frames += 1
        at = stop
    out[OUT_POSITION] = at
    out[OUT_REQUEST] = request
    out[OUT_FRAMES] = n_frames
    out[OUT_STATUS] = status


def compile_all() -> None:
    """Compile every kernel, or load it from numba's cache."""
    received: NDArray[np.uint8] = np.zeros(64, np.uint8)
    payload = np.frombuffer(bytes(8), np.uint8)  # read-only, as those of frames that were decompressed
    layout = np.array([[0, 0, 1, 1, 1, SGD]], np.int64)
    hyper: NDArray[np.float32] = np.zeros((1, 6), np.float32)
    values: NDArray[np.float32] = np.zeros(1, np.float32)
    rows: NDArray[np.uint32] = np.zeros(1, np.uint32)
    for buffer in (received, payload):
        apply_pushes(
            buffer, 0, 0, layout, hyper, values, np.zeros(1, np.int32), 0, 0, np.zeros((1, 3), np.int64),
            np.zeros((1, 1), np.uint32), rows, np.zeros(N_COUNTERS, np.int64), True, np.zeros(4, np.int64),
        )  # fmt: skip
        decode_rows(buffer, 0, 0, _RANGE, 1, 0, 0, 1, rows)
    answer_pull(
        received, 0, 0, layout, values, np.zeros(3, np.int64), rows, received, 0, np.zeros(4, np.int64)
    )
    gather_rows(layout[0], values, rows, np.zeros(1, np.float32))


if __name__ == "__main__":
    print("compiling the parameter server's kernels (once, they are cached) ...", flush=True)
    compile_all()
