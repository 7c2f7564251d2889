"""The process that runs the shards of many runs: what it says, one whole line a shard."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from cirrus.errors import ConfigError
from cirrus.paramserver.pack import Pack

N_SHARDS = 200


def test_each_shard_is_reported_in_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """However many end at the same moment: whoever waits for one hears of it."""
    pack = Pack()
    gate = threading.Barrier(16)

    def end(numbers: range) -> None:
        gate.wait()
        for number in numbers:
            pack.obey({"id": number, "run_url": "memory://there-is-none", "shard": 0, "generation": 1})

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(end, [range(k, N_SHARDS, 16) for k in range(16)]))
    pack.close()
    reports = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(report["id"] for report in reports) == list(range(N_SHARDS))
    assert {report["type"] for report in reports} == {"NotFoundError"}


@pytest.mark.parametrize("order", [{}, {"id": "x"}, {"id": 1, "run_url": "memory://x", "shard": None}])
def test_what_is_no_order_is_refused(order: dict[str, object]) -> None:
    """It is named, and nothing is run."""
    with pytest.raises(ConfigError, match="order"):
        Pack().obey(order)


def test_ending_what_has_ended_does_nothing() -> None:
    """An order may come too late."""
    Pack().obey({"id": 7, "end": "stop"})
