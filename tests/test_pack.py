"""The process that runs the shards of many runs: what it says, one whole line a shard."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from cirrus.errors import ConfigError
from cirrus.paramserver.pack import Pack

N_SHARDS = 200


def test_each_shard_is_reported_in_a_line_of_its_own() -> None:
    """However many end at the same moment: whoever waits for one hears of it."""
    out = io.StringIO()
    pack = Pack(out)
    gate = threading.Barrier(16)

    def end(numbers: range) -> None:
        gate.wait()
        for number in numbers:
            pack.obey({"id": number, "run_url": "memory://there-is-none", "shard": 0, "generation": 1})

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(end, [range(k, N_SHARDS, 16) for k in range(16)]))
    pack.close()
    reports = [json.loads(line) for line in out.getvalue().splitlines()]
    assert sorted(report["id"] for report in reports) == list(range(N_SHARDS))
    assert {report["type"] for report in reports} == {"NotFoundError"}


@pytest.mark.parametrize("order", [{}, {"id": "x"}, {"id": 1, "run_url": "memory://x", "shard": None}])
def test_what_is_no_order_is_refused(order: dict[str, object]) -> None:
    """It is named, and nothing is run."""
    with pytest.raises(ConfigError, match="order"):
        Pack(io.StringIO()).obey(order)


def test_ending_what_has_ended_does_nothing() -> None:
    """An order may come too late."""
    said = io.StringIO()
    Pack(said).obey({"id": 7, "end": "stop"})
    assert said.getvalue() == ""


def test_only_reports_are_on_standard_output() -> None:
    """What a library prints in the midst of one would have somebody wait for ever: it goes to the log."""
    script = """
import os
from cirrus.paramserver.pack import Pack, own_output
pack = Pack(own_output())
print("a library was here", end="", flush=True)
os.write(1, b"and here")
pack.ready()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, timeout=60)
    assert done.stdout == b'{"ready": true}\n'
    assert done.stderr == b"a library was hereand here"
