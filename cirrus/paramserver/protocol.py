"""The words of the wire protocol: kinds of frames, limits, and one frozen dataclass a message.

Theory of operation
-------------------

A connection carries frames. A frame is a 16-byte header and a body of up to :data:`MAX_FRAME_BYTES`::

    magic u16 | version u8 | kind u8 | request u32 | length u32 | reserved u32      (little-endian)

The magic and the place of the version never change, so that peers of different versions can say so to each
other: both speak first, the shard with a :class:`Challenge`, the client with a :class:`Hello`. Then each
proves to the other that it has the run's token, which itself never travels (:class:`Proof`,
:class:`Welcome`; see ``handshake.py``). Until then a shard accepts nothing else and no body above
:data:`MAX_HELLO_BYTES`. From there on requests are answered in order, each reply carrying its request's
number, with one exception: pushes are pipelined, and an :class:`Ack` answers all of them up to its number.

The messages of a training step are binary; those that travel a few times a lease are JSON.
``docs/protocol.md`` has the byte layout. There is no I/O here and none in :mod:`cirrus.paramserver.codec`.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cirrus.config import MAX_TABLES

#: ``b"CR"``, little-endian.
MAGIC = 0x5243
VERSION = 2
HEADER = struct.Struct("<HBBIII")
#: epoch, lease, position, number of sections, flags, step of a push.
PUSH_KEY = struct.Struct("<IIIHHQ")
#: number of sections, flags of a pull.
PULL_HEAD = struct.Struct("<HHI")
#: table, id encoding, value encoding, count, first id or pull, id bytes, value bytes, value bytes before
#: compression.
SECTION = struct.Struct("<HBBIIIII")
#: Payloads are padded to this, so that arrays in a receive buffer are aligned.
ALIGNMENT_BYTES = 8
#: A larger frame is refused before anything is allocated for it.
MAX_FRAME_BYTES = 64 * 2**20
#: Ids and values of all sections of one frame may take no more than this once they are decoded: a range of
#: ids and a compressed payload are far shorter on the wire than in memory.
MAX_DECODED_BYTES = 2 * MAX_FRAME_BYTES
#: Until a peer has proved that it has the token, none of its frames may have a longer body.
MAX_HELLO_BYTES = 4096
#: A frame has at most one section a table.
MAX_SECTIONS = MAX_TABLES
#: JSON messages are short; the longest carries the marks of a shard's leases.
MAX_JSON_BYTES = 8 * 2**20
#: A shard remembers the ids of this many pulls of a connection, so that pushes can name them.
REMEMBERED_PULLS = 8
#: Rows a client asks for in one pull frame and section at most (the reply has to fit in a frame).
MAX_PULL_VALUES = 4 * 2**20


class Kind(enum.IntEnum):
    """What a frame carries."""

    HELLO = 1
    WELCOME = 2
    ERROR = 3
    PULL = 4
    VALUES = 5
    PUSH = 6
    ACK = 7
    NEED_IDS = 8
    ATTACH = 9
    ATTACHED = 10
    REGISTER = 11
    REGISTERED = 12
    NEXT_TASK = 13
    TASK = 14
    COMPLETE = 15
    STEP_TURN = 16
    DONE = 17
    EVALUATION = 18
    SHARD_STARTED = 19
    MARKS = 20
    MARKS_REPLY = 21
    CHECKPOINT = 22
    STATISTICS = 23
    STATISTICS_REPLY = 24
    END = 25
    TURN_REPLY = 26
    CHALLENGE = 27
    PROOF = 28


class IdEncoding(enum.IntEnum):
    """How a section names its rows. :data:`COMPRESSED` may be or-ed to the deltas."""

    DELTA8 = 0
    DELTA16 = 1
    DELTA32 = 2
    SAME_AS_PULL = 3
    RANGE = 4
    NONE = 5


class ValueEncoding(enum.IntEnum):
    """How a section's values are stored. :data:`COMPRESSED` may be or-ed."""

    FLOAT32 = 0
    FLOAT16 = 1
    NONE = 2


#: Flag on an encoding: the payload is an LZ4 block.
COMPRESSED = 0x80
#: Flag of a pull: answer with float16 values.
PULL_FLOAT16 = 1
#: Flag of a pull: compress the answer.
PULL_COMPRESSED = 2


class ErrorCode(enum.IntEnum):
    """Why a shard refused."""

    PROTOCOL = 1
    VERSION = 2
    AUTHENTICATION = 3
    SUPERSEDED = 4
    REGISTRATION = 5
    LEASE_LOST = 6
    INTERNAL = 7
    LIMIT = 8


Ids = NDArray[np.uint32]
Values = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Section:
    """The part of a pull, push or reply that concerns one table.

    Either ``ids`` (sorted, unique, uint32) or ``pull`` (the request whose ids are meant) or neither (a
    reply). ``values`` are float32, flat, ``len(ids) * width`` of them.
    """

    table: int
    ids: Ids | None = None
    pull: int | None = None
    values: Values | None = None

    def __eq__(self, other: object) -> bool:
        """Compare arrays by content."""
        if not isinstance(other, Section):
            return NotImplemented
        return (
            self.table == other.table
            and self.pull == other.pull
            and _same(self.ids, other.ids)
            and _same(self.values, other.values)
        )

    __hash__ = None  # type: ignore[assignment]  # arrays cannot be hashed


def _same(a: NDArray[np.generic] | None, b: NDArray[np.generic] | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


@dataclass(frozen=True, kw_only=True)
class Challenge:
    """A shard's first words, to whoever connects."""

    nonce: str
    """Random, :data:`~cirrus.paramserver.handshake.NONCE_BYTES` in hexadecimal, never used twice."""


@dataclass(frozen=True, kw_only=True)
class Hello:
    """A client's first words, sent without waiting for the shard's."""

    shard: int
    generation: int
    """The one of the shard that it means to reach."""
    nonce: str
    """As the shard's."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """The client has the token."""

    proof: str
    """SHA-256 HMAC over both first words, in hexadecimal; see ``handshake.py``."""


@dataclass(frozen=True, kw_only=True)
class Welcome:
    """The shard's answer to the right proof: it has the token too."""

    shard: int
    generation: int
    proof: str


@dataclass(frozen=True, kw_only=True)
class Error:
    """A refusal; the connection ends after most of them."""

    code: int
    message: str


@dataclass(frozen=True, kw_only=True)
class Pull:
    """Ask for rows of one or more tables."""

    sections: tuple[Section, ...]
    float16: bool = False
    compressed: bool = False


@dataclass(frozen=True, kw_only=True)
class ValuesReply:
    """The rows asked for, in order."""

    sections: tuple[Section, ...]


@dataclass(frozen=True, kw_only=True)
class Push:
    """All gradients of one step for one shard, keyed (epoch, lease, position)."""

    epoch: int
    lease: int
    position: int
    step: int
    sections: tuple[Section, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Ack:
    """All pushes up to this frame's request number were dealt with.

    ``lease_lost`` is true when some were dropped since the lease belongs to another connection now.
    """

    lease_lost: bool = False


@dataclass(frozen=True, kw_only=True)
class NeedIds:
    """The push of this request named a pull that the shard has forgotten: send it again with its ids."""


@dataclass(frozen=True, kw_only=True)
class Attach:
    """This connection will push the steps of a lease; any other connection may not from now on."""

    epoch: int
    lease: int
    grant: int


@dataclass(frozen=True, kw_only=True)
class Attached:
    """The first position of the lease that this shard has not applied."""

    position: int


@dataclass(frozen=True, kw_only=True)
class Register:
    """A worker or evaluator reports for work at shard 0."""

    worker: int
    generation: int
    role: str = "train"
    seconds: float = 0.0
    """How long this generation has worked so far."""


@dataclass(frozen=True, kw_only=True)
class Registered:
    """The worker may ask for tasks."""


@dataclass(frozen=True, kw_only=True)
class NextTask:
    """A worker asks what to do next; the answer may take ``wait_seconds``."""

    wait_seconds: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a worker shall do: ``train`` a lease, ``evaluate``, ``wait`` and ask again, or ``end``."""

    action: str
    epoch: int = 0
    lease: int = 0
    grant: int = 0
    first_step: int = 0
    """The run's clock at position 0 of the lease."""
    n_workers: int = 1
    """How many workers train at this moment."""


@dataclass(frozen=True, kw_only=True)
class Complete:
    """Every step of the lease was acknowledged by every shard."""

    epoch: int
    lease: int
    grant: int
    generations: tuple[int, ...]
    """Generations of the shards that acknowledged."""
    loss_sum: float = 0.0
    weight_sum: float = 0.0
    n_rows: int = 0
    n_steps: int = 0
    fetch_seconds: float = 0.0
    pull_seconds: float = 0.0
    compute_seconds: float = 0.0
    push_seconds: float = 0.0
    worker_seconds: float = 0.0
    """How long the worker's generation has worked so far."""


@dataclass(frozen=True, kw_only=True)
class StepTurn:
    """A worker wants to go on with a step, where workers wait for each other; see ``turns.py``.

    It says at the same time that every shard has acknowledged the steps before.
    """

    epoch: int
    lease: int
    grant: int
    position: int
    pushing: bool = False
    """False: it wants to pull. True: it has pulled, and wants to push."""
    wait_seconds: float = 1.0
    """How long the answer may take."""


@dataclass(frozen=True, kw_only=True)
class TurnReply:
    """Whether it is the worker's turn; if not, it asks again."""

    granted: bool


@dataclass(frozen=True, kw_only=True)
class Done:
    """A request without an answer of its own was carried out."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluator found."""

    epoch: int
    grant: int
    loss: float
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ShardStarted:
    """A shard tells shard 0 which steps it holds, so that lost ones are done again."""

    shard: int
    generation: int
    completed_epochs: int
    marks: Mapping[str, list[int]] = field(default_factory=dict)
    """Epoch (as text) to the next position of every lease, for epochs that are not complete."""


@dataclass(frozen=True, kw_only=True)
class MarksRequest:
    """Shard 0 asks another shard which steps it holds."""


@dataclass(frozen=True, kw_only=True)
class MarksReply:
    """The answer: as in :class:`ShardStarted`."""

    generation: int
    completed_epochs: int
    marks: Mapping[str, list[int]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class WriteCheckpoint:
    """Shard 0 asks another shard to write its part of a checkpoint to the object store."""

    url: str


@dataclass(frozen=True, kw_only=True)
class StatisticsRequest:
    """Ask for a shard's counters."""


@dataclass(frozen=True, kw_only=True)
class StatisticsReply:
    """A shard's counters since the run began."""

    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class End:
    """Shard 0 tells another shard that the run is over."""

    finished: bool = False
    """True when the model is in the run folder: no snapshot is needed any more."""


Message = (
    Challenge
    | Hello
    | Proof
    | Welcome
    | Error
    | Pull
    | ValuesReply
    | Push
    | Ack
    | NeedIds
    | Attach
    | Attached
    | Register
    | Registered
    | NextTask
    | Task
    | Complete
    | Done
    | Evaluation
    | ShardStarted
    | MarksRequest
    | MarksReply
    | WriteCheckpoint
    | StatisticsRequest
    | StatisticsReply
    | End
    | StepTurn
    | TurnReply
)

#: The messages whose body is JSON.
JSON_MESSAGES: Mapping[Kind, type] = {
    Kind.CHALLENGE: Challenge,
    Kind.HELLO: Hello,
    Kind.PROOF: Proof,
    Kind.WELCOME: Welcome,
    Kind.ERROR: Error,
    Kind.ACK: Ack,
    Kind.NEED_IDS: NeedIds,
    Kind.ATTACH: Attach,
    Kind.ATTACHED: Attached,
    Kind.REGISTER: Register,
    Kind.REGISTERED: Registered,
    Kind.NEXT_TASK: NextTask,
    Kind.TASK: Task,
    Kind.COMPLETE: Complete,
    Kind.DONE: Done,
    Kind.EVALUATION: Evaluation,
    Kind.SHARD_STARTED: ShardStarted,
    Kind.MARKS: MarksRequest,
    Kind.MARKS_REPLY: MarksReply,
    Kind.CHECKPOINT: WriteCheckpoint,
    Kind.STATISTICS: StatisticsRequest,
    Kind.STATISTICS_REPLY: StatisticsReply,
    Kind.END: End,
    Kind.STEP_TURN: StepTurn,
    Kind.TURN_REPLY: TurnReply,
}
