"""What is fuzzed: everything that reads bytes which somebody else wrote.

Each target takes bytes and may raise nothing outside Cirrus' own tree of errors. :func:`targets` gives, by
name, what to call and valid inputs to begin with.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import random
import socket
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import test_codec
from ps_runs import FrameReader, Shards, create_run, make_config, make_table

from cirrus import LogisticRegression, load_arrays
from cirrus.chunks import Block, ChunkInfo, DatasetSummary, decode_block, encode_block
from cirrus.chunks.codec import HEADER_BYTES, StoredBlock
from cirrus.chunks.manifest import Manifest
from cirrus.chunks.touches import TouchCounter
from cirrus.chunks.vocabulary import Vocabulary
from cirrus.client_backend.aws.seats import ServerRecord, ServerRecords
from cirrus.client_backend.load_tasks import BucketResult, ScatterResult, read_scatter_result
from cirrus.client_backend.rows import SegmentFacts
from cirrus.client_backend.search_folder import SearchConfig, SearchFolder, SearchState, Trial
from cirrus.config import RunConfig
from cirrus.errors import CirrusError
from cirrus.frontend.model_files import read_model_files
from cirrus.metrics import MetricPoint, RunEvent, RunState, RunStatus
from cirrus.paramserver import checkpoint, handshake
from cirrus.paramserver import protocol as p
from cirrus.paramserver.codec import decode, decode_header, encode
from cirrus.paramserver.host_records import HostPhase, HostReports, HostStatus, parse_shards
from cirrus.run_folder import (
    ClientClaim,
    ControlRequest,
    MetricsReader,
    RunFolder,
    ShardAddress,
    read_events,
)
from cirrus.storage import open_store
from cirrus.worker_runtime.handler import handler
from cirrus.worker_runtime.map_job import pack_arrays, unpack_arrays

#: A shard that does not end a connection so long after its peer said its last word hangs.
HANG_SECONDS = 10.0
CORPUS = Path(__file__).parent / "corpus"


@dataclasses.dataclass(frozen=True)
class Target:
    """One reader."""

    run: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    is_json: bool = False


# Binary readers.


def _frame(data: bytes) -> None:
    header = decode_header(data[: p.HEADER.size].ljust(p.HEADER.size, b"\0"))
    decode(header.kind, data[p.HEADER.size :])


def _block(data: bytes) -> None:
    """The checksum is made right, since what lies behind it is of interest."""
    if len(data) >= HEADER_BYTES:
        head, body = bytearray(data[: HEADER_BYTES - 4]), data[HEADER_BYTES:]
        struct.pack_into("<I", head, len(head) - 4, len(body))
        data = bytes(head) + struct.pack("<I", zlib.crc32(body, zlib.crc32(head))) + body
    block = decode_block(StoredBlock(data, "fuzzed", 2**20))
    # What was decoded can be relied on: nothing here may fail or read beyond an array. Values may be NaN.
    with np.errstate(all="ignore"):
        block.matvec(np.zeros(block.ids.size, np.float32))
        block.rmatvec(np.zeros(block.n_rows, np.float32))


def _part(data: bytes) -> None:
    """As with blocks: of the arrays the checksums are made right where there is a head that can be read."""
    with contextlib.suppress(Exception):
        data = _with_checksums(data)
    checkpoint.decode_part(data, "fuzzed")


def _with_checksums(data: bytes) -> bytes:
    size = checkpoint._HEAD.size
    _, n_head = checkpoint._HEAD.unpack_from(data)
    head = json.loads(data[size : size + n_head])
    offset = size + n_head
    for table in head["tables"]:
        for array in table["arrays"]:
            n_bytes = 4 * array["shape"][0] * array["shape"][1]
            array["crc32"] = zlib.crc32(data[offset : offset + n_bytes])
            offset += n_bytes
    raw = json.dumps(head).encode()
    return checkpoint._HEAD.pack(checkpoint._MAGIC, len(raw)) + raw + data[size + n_head :]


def _blocks() -> Iterator[Block]:
    rng = np.random.default_rng(0)
    for n_rows, n_columns, density in ((20, 8, 1.0), (40, 1000, 0.01), (3, 5, 0.0)):
        dense = rng.normal(size=(n_rows, n_columns)).astype(np.float32)
        dense[rng.random(dense.shape) >= density] = 0
        starts = np.concatenate([[0], np.cumsum((dense != 0).sum(axis=1))])
        columns = np.nonzero(dense)[1]
        labels = rng.integers(0, 2, n_rows).astype(np.float32)
        yield Block.from_csr(starts, columns, dense[dense != 0], labels)


# A whole shard.


class ShardTarget:
    """A connection of a shard that runs in this process, handshake done, to which the bytes are sent."""

    def __init__(self) -> None:
        config = make_config(
            tables=[make_table(optimizer="ftrl"), make_table("second", width=3)], stop={"epochs": 1000}
        )
        self._shards = Shards(create_run("memory://fuzzed-shard/run", config))
        self._escaped: list[BaseException] = []
        threading.excepthook = self._note
        self._n_runs = 0

    def _note(self, args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None:
            self._escaped.append(args.exc_value)

    def __call__(self, data: bytes) -> None:
        """Send the bytes, hang up, and read until the shard does too."""
        address = self._shards.folder.shard_address(0)
        assert address is not None
        with socket.create_connection((address.host, address.port), HANG_SECONDS) as sock:
            reader = FrameReader(sock)
            challenge = reader.read()
            assert isinstance(challenge, p.Challenge)
            hello = p.Hello(shard=0, generation=address.generation, nonce=handshake.new_nonce())
            proof = handshake.prove(self._shards.token, handshake.WORKER, challenge, hello)
            attach = p.Attach(epoch=0, lease=0, grant=self._n_runs + 1)
            said = encode(hello, 1) + encode(p.Proof(proof=proof), 2) + encode(attach, 3)
            # A shard that has ended the connection already may have reset it.
            with contextlib.suppress(OSError):
                sock.sendall(said + data)
                sock.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                while sock.recv(65536):
                    pass
        self._n_runs += 1
        if self._escaped:
            raise self._escaped.pop()
        if self._shards.shards[0].stopping.is_set():
            # A peer with the token may end a shard, by an END or in a newer generation's name.
            self.close()
            open_store("memory://fuzzed-shard").delete_prefix("run")
            ShardTarget.__init__(self)

    def close(self) -> None:
        """End the shard."""
        self._shards.close()


def shard_seeds() -> tuple[bytes, ...]:
    """Return what a good peer says."""
    return tuple(_shard_seeds())


def _shard_seeds() -> Iterator[bytes]:
    ids = np.array([1, 5, 700], np.uint32)
    for compressed in (False, True):
        many = np.arange(0, 900, 3, dtype=np.uint32)
        values = np.ones(900, np.float32)
        pull = p.Pull(sections=(p.Section(table=0, ids=many), p.Section(table=1, ids=many)))
        push = p.Push(
            epoch=0,
            lease=0,
            position=0,
            step=0,
            sections=(
                p.Section(table=0, ids=ids, values=np.ones(3, np.float32)),
                p.Section(table=1, pull=7, values=values),
            ),
        )
        frames = [encode(pull, 7, compressed=compressed), encode(push, 8, compressed=compressed)]
        yield b"".join(frames)
        yield encode(push, 8, compressed=compressed)
    for message in test_codec.MESSAGES:
        if not isinstance(message, p.End):
            yield encode(message, 9)


# JSON that lies in object stores.


def _in_store(key: str, read: Callable[[str], object]) -> Callable[[bytes], None]:
    """Return a target that puts the bytes under a key of an empty store, and reads that."""

    def run(data: bytes) -> None:
        store = open_store("memory://fuzzed-store")
        for old in store.list():
            store.delete(old)
        store.put(key, data)
        read(store.url)

    return run


def _manifest() -> bytes:
    dataset = load_arrays(np.eye(5, dtype=np.float32), [0, 1, 0, 1, 1], random_state=0)
    return dataset.manifest.to_json()


def _plain(record: Any) -> bytes:
    return json.dumps(dataclasses.asdict(record)).encode()


def _json_targets() -> Iterator[tuple[str, Callable[[bytes], object], bytes]]:
    config = make_config()
    address = ShardAddress(shard=0, generation=1, host="127.0.0.1", port=1)
    claim = ClientClaim(client_id="a", host="b", pid=1, renewed_at=2.0)
    point = MetricPoint(seconds=1.0, epoch=1, updates=2, samples=3, validation_metrics={"accuracy": 0.5})
    event = RunEvent(at=1.0, kind="joined", who="train-1")
    status = RunStatus(state=RunState.RUNNING, workers={"0": 1}, counts={"shard0.steps_applied": 3})
    part = checkpoint.PartInfo(key="part-0.bin", n_bytes=3, crc32=4)
    manifest = checkpoint.CheckpointManifest(version=checkpoint.FORMAT_VERSION, parts=(part,))
    host = HostStatus(instance="i-0", phase=next(iter(HostPhase)))
    yield "manifest", Manifest.from_json, _manifest()
    yield "config", RunConfig.from_json, config.to_json()
    yield (
        "shard address",
        _in_store("shards/0.json", lambda url: RunFolder(url).shard_address(0)),
        _plain(address),
    )
    yield "claim", _in_store("client.json", lambda url: RunFolder(url).claim_holder()), _plain(claim)
    yield "status", _in_store("status.json", lambda url: RunFolder(url).status()), _plain(status)
    yield (
        "control",
        _in_store("control/1.json", lambda url: RunFolder(url).requests()),
        _plain(ControlRequest(action="stop")),
    )
    yield (
        "metrics",
        _in_store("metrics/00000000.jsonl", lambda url: MetricsReader(RunFolder(url)).read()),
        _plain(point),
    )
    yield (
        "events",
        _in_store("events/00000000.jsonl", lambda url: read_events(RunFolder(url))),
        _plain(event),
    )
    yield (
        "checkpoint",
        _in_store("checkpoint.json", lambda url: checkpoint.read_checkpoint(open_store(url))),
        _plain(manifest),
    )
    yield "model", _in_store("model.json", read_model_files), _model()
    yield (
        "search config",
        _in_store("search.json", lambda url: SearchFolder(url).config()),
        _search_config(),
    )
    yield (
        "search state",
        _in_store("state.json", lambda url: SearchFolder(url).state()),
        _plain(SearchState(state=RunState.RUNNING, trials=(Trial(index=0, params={"l1": 1}),))),
    )
    yield (
        "host",
        _in_store("hosts/i-0.json", lambda url: HostReports(open_store(url)).read("i-0", 0)),
        _plain(host),
    )
    seats = ServerRecord(instance="i-0", instance_type="x", capacity=2, launched_at=1.0).book("r", [0])
    assert seats is not None
    yield (
        "seats",
        _in_store("servers/i-0.json", lambda url: ServerRecords(open_store(url)).read("i-0")),
        _plain(seats[0]),
    )
    yield (
        "parsed segment",
        read_scatter_result,
        _plain(
            ScatterResult(
                file=0, number=1, bucket=0, first_line=1, n_lines=2, start=0, n_bytes=3, file_position=4,
                facts=SegmentFacts(n_rows=2),
            )
        ),
    )  # fmt: skip
    yield "event", _event, b'{"role": "train", "run_url": "memory://no", "worker_id": 1, "generation": 2}'


def _search_config() -> bytes:
    return _plain(
        SearchConfig(search_id="s", estimator="LogisticRegression", method="grid", space={"l1": [0, 1]})
    )


def _model() -> bytes:
    """Save a model, and return what describes it."""
    est = LogisticRegression(backend="inline", epochs=1).fit(np.eye(4), [0, 1, 0, 1])
    est.save("memory://fuzzed-model")
    return open_store("memory://fuzzed-model").get("model.json")


def _event(data: bytes) -> None:
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        return
    if isinstance(event, dict) and "run_url" in event:
        # Where it points is for the invoker to say; a bucket would be asked for over the network.
        url = event["run_url"]
        event["run_url"] = f"memory://{url}"[:60] if isinstance(url, str) else url
    handler(event)


def _counter() -> bytes:
    counter = TouchCounter()
    counter.add(np.array([1, 5, 900]), np.array([1, 2, 3]))
    return counter.to_bytes()


def _bucket() -> bytes:
    chunk = ChunkInfo(key="chunks-0/0", crc32=1, block_rows=(2, 3), block_offsets=(0, 5, 9))
    summary = DatasetSummary()
    summary.label_counts = {0.0: 2, 1.0: 3}
    return BucketResult(bucket=0, chunks=[chunk], summary=summary).to_bytes()


def _part_seed() -> bytes:
    arrays = {"weights": np.ones((3, 2), np.float32), "squares": np.zeros((3, 2), np.float32)}
    table = checkpoint.TablePart(name="w", first_row=0, arrays=arrays)
    return checkpoint.encode_part(checkpoint.Part(tables=(table,), extra={"a": 1}))


@functools.cache
def targets() -> dict[str, Target]:
    """Return all targets by name."""
    found = {
        "frame": Target(
            _frame, tuple(encode(m, 1, compressed=c) for m in test_codec.MESSAGES for c in (0, 1))
        ),
        "bucket": Target(BucketResult.from_bytes, (_bucket(),)),
        "block": Target(_block, tuple(map(encode_block, _blocks()))),
        "part": Target(_part, (_part_seed(),)),
        "touches": Target(TouchCounter.from_bytes, (_counter(),)),
        "vocabulary": Target(
            Vocabulary.from_bytes,
            (Vocabulary.of(["a", "bc", "d"]).to_bytes(), Vocabulary.of([4, 70, 2**40]).to_bytes()),
        ),
        "arrays": Target(
            lambda data: unpack_arrays(data, "fuzzed"),
            (pack_arrays({"a": [1]}, {"x": np.arange(5), "y": np.ones((2, 3))}),),
        ),
        "token": Target(_in_store("token", lambda url: RunFolder(url).token()), (b"ab" * 32,)),
        "latest": Target(_in_store("latest", checkpoint.resolve), (b"step-000000000012",)),
        "shards": Target(lambda data: parse_shards(data.decode(errors="replace")), (b"0-3,5", b"7")),
    }
    for name, run, seed in _json_targets():
        found[name] = Target(run, (seed,), is_json=True)
    return found


def attempt(run: Callable[[bytes], object], data: bytes) -> str:
    """Run a target; return what came of it, ``ok`` or the name of an error in Cirrus' tree.

    Raises:
        BaseException: Something that is not in it.
    """
    try:
        run(data)
    except CirrusError as error:
        return type(error).__name__
    return "ok"


# Making other inputs of valid ones.

_ODD_NUMBERS = (0, 1, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
_ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**400, 0.5, -0.0, 1e308, float("inf"),
    float("nan"), "", "x", "\0", "\ud800", "../..", "/", "a" * 300, [], {}, [[]], [None], {"": {}}, [1] * 50,
)  # fmt: skip


def mutated(data: bytes, rng: random.Random, others: tuple[bytes, ...], *, is_json: bool) -> bytes:
    """Return another input, a few changes away."""
    if is_json and rng.random() < 0.7:
        with contextlib.suppress(ValueError, RecursionError):
            return _mutated_json(json.loads(data), rng)
    out = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        _change(out, rng, others)
    return bytes(out)


def _change(out: bytearray, rng: random.Random, others: tuple[bytes, ...]) -> None:
    at = rng.randrange(len(out)) if out else 0
    match rng.randrange(8):
        case 0 if out:
            out[at] ^= 1 << rng.randrange(8)
        case 1 if out:
            out[at] = rng.randrange(256)
        case 2:
            size = rng.choice((1, 2, 4))
            number = rng.choice(_ODD_NUMBERS) & (2 ** (8 * size) - 1)
            out[at - at % size : at - at % size + size] = number.to_bytes(size, "little")
        case 3:
            del out[at : at + rng.randint(1, 24)]
        case 4:
            out[at:at] = rng.randbytes(rng.randint(1, 24))
        case 5:
            piece = out[at : at + rng.randint(1, 64)]
            out[at:at] = piece * rng.randint(1, 8)
        case 6:
            other = rng.choice(others)
            start = rng.randrange(len(other) + 1)
            out[at:] = other[start:]
        case _:
            del out[at:]


def _mutated_json(value: Any, rng: random.Random) -> bytes:
    for _ in range(rng.randint(1, 3)):
        value = _changed(value, rng)
    text = json.dumps(value)
    if rng.random() < 0.02:
        depth = rng.choice((100, 2000, 100_000))
        text = text.replace("1", "[" * depth + "]" * depth, 1)
    return text.encode()


def _changed(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        changed = dict(value)
        if rng.random() < 0.1:
            del changed[key]
        elif rng.random() < 0.05:
            changed[rng.choice(("", "odd", "\0"))] = rng.choice(_ODD_VALUES)
        else:
            changed[key] = _changed(value[key], rng)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        piece = [_changed(value[at], rng)] if rng.random() < 0.8 else [value[at]] * rng.randint(0, 3)
        return [*value[:at], *piece, *value[at + 1 :]]
    return rng.choice(_ODD_VALUES)
