"""The live line: what it says, how often, and where."""

from __future__ import annotations

import io

import pytest

from cirrus.errors import ConfigError
from cirrus.frontend.progress import LiveLine, Progress, RateMeter, clock_time, short_number, status_line
from cirrus.metrics import RunState, RunStatus


def status(seconds: float, **fields) -> RunStatus:
    """Return a running status with 1,000 samples and 10 updates a second."""
    values = {
        "state": RunState.RUNNING,
        "seconds": seconds,
        "samples": int(seconds * 1000),
        "updates": int(seconds * 10),
        "samples_per_epoch": 10_000,
        "epochs": 3,
        "n_workers": 2,
        "train_loss": 0.4321,
    }
    return RunStatus(**{**values, **fields})


def test_line_says_progress_loss_speed_workers_time_and_cost():
    """One line has everything that a person watches."""
    meter = RateMeter()
    meter.add(status(4.0))
    meter.add(status(5.0))
    line = status_line(status(5.0, validation_loss=0.5, cost=0.25), meter)
    assert line == (
        "epoch 1/3  50%  loss 0.4321  validation 0.5000  "
        "1,000 samples/s  10 updates/s  2 workers  0:05  $0.25"
    )


def test_line_says_how_a_run_ended():
    """The last line names the end, its reason and the epochs done."""
    line = status_line(status(9, state=RunState.FINISHED, stop_reason="tol", epoch=1), RateMeter())
    assert line.startswith("finished (tol) after 1 epoch  loss 0.4321")


def test_line_of_a_run_without_updates_says_starting():
    """Before the first update there is nothing to show but that."""
    line = status_line(RunStatus(state=RunState.STARTING), RateMeter())
    assert line.startswith("starting  0 samples/s")
    waiting = RunStatus(state=RunState.STARTING, detail="launching a server")
    assert status_line(waiting, RateMeter()).startswith("starting: launching a server  ")


def test_rates_are_of_the_last_moments():
    """A rate is taken over the last three seconds, not since the start."""
    meter = RateMeter()
    for second in range(10):
        meter.add(status(float(second), samples=100 * second if second < 5 else 400 + 1000 * (second - 4)))
    assert meter.samples_per_second == pytest.approx(1000)


def test_rates_survive_a_status_that_is_seen_twice():
    """Seeing the same status again changes nothing, and no status at all is a rate of 0."""
    meter = RateMeter()
    assert meter.samples_per_second == 0
    meter.add(status(2.0))
    meter.add(status(2.0))
    assert meter.samples_per_second == pytest.approx(1000)


def test_log_files_get_a_line_now_and_then():
    """Where output is not a terminal, lines come every five seconds, after epochs, and once at the end."""
    out = io.StringIO()
    now = [0.0]
    with LiveLine(out, clock=lambda: now[0]) as line:
        for tick in range(41):
            now[0] = tick * 0.25
            line.show(status(now[0] + 0.1, epoch=1 if now[0] >= 7 else 0))
        for _ in range(2):
            line.show(status(10.5, state=RunState.FINISHED, stop_reason="epochs", epoch=3))
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[-1].startswith("finished (epochs) after 3 epochs")


def test_the_loss_of_a_shard_is_told_once():
    """A run that goes back, or gets no further, for a shard that was killed says so on a line that stays."""
    out = io.StringIO()
    with LiveLine(out, clock=lambda: 0.0) as line:
        line.show(status(11.0, epoch=81, epochs=500))
        line.show(status(12.0, epoch=16, epochs=500, updates=20, samples=2000))
        line.show(status(13.0, epoch=17, epochs=500, updates=30, samples=3000))
        for seconds in (14.0, 15.0):
            line.show(status(seconds, epoch=17, epochs=500, behind_shards=(1,)))
        line.show(status(16.0, epoch=18, epochs=500))
    lines = out.getvalue().splitlines()
    assert lines[:-1] == [
        "shard 0 was lost at epoch 82: training goes on from what it had saved, at epoch 17",
        "shard 1 was lost at epoch 18: the steps that it had not saved are done again",
    ]


def test_rates_after_a_run_went_back_are_not_negative():
    """What shard 0 lost is no rate: it is taken from what comes after."""
    meter = RateMeter()
    meter.add(status(9.0))
    meter.add(status(10.0))
    meter.add(status(11.0, samples=2000, updates=20))
    assert meter.samples_per_second >= 0
    meter.add(status(12.0, samples=3000, updates=30))
    assert meter.samples_per_second == pytest.approx(1000)


def test_progress_takes_none_true_or_a_function():
    """Anything else is refused by name."""
    with Progress(None) as progress:
        assert progress.listener is None
    seen: list[RunStatus] = []
    with Progress(seen.append) as progress:
        assert progress.listener is not None
        progress.listener(status(1.0))
    assert len(seen) == 1
    with pytest.raises(ConfigError, match="progress"):
        Progress("yes")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (999.4, "999"), (9_999, "9,999"), (12_345, "12 k"), (1_234_567, "1.23 M")]
)
def test_numbers_are_short(value, text):
    """Rates have about three figures."""
    assert short_number(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.9, "0:00"), (75, "1:15"), (3_675, "1:01:15")])
def test_times_are_minutes_and_seconds(seconds, text):
    """Times read like a clock."""
    assert clock_time(seconds) == text
