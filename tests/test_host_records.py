"""What the machines that host shards report."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cirrus.errors import ConfigError, CorruptDataError
from cirrus.paramserver.host_records import (
    HostPhase,
    HostReports,
    HostStatus,
    format_shards,
    parse_shards,
)
from cirrus.storage import drop_memory_store, open_store


@pytest.fixture
def store():
    """Return an empty store."""
    name = uuid.uuid4().hex
    yield open_store(f"memory://{name}")
    drop_memory_store(name)


def test_reports_are_read_back(store):
    """What an instance reports, clients read, for each booking that the run had anywhere."""
    reports = HostReports(store)
    assert reports.read("i-0a", 1) is None
    setting_up = HostStatus(instance="i-0a", phase=HostPhase.INSTALLING)
    reports.write(setting_up)
    assert reports.read("i-0a", 1) == setting_up
    first = HostStatus(instance="i-0a", phase=HostPhase.SERVING, shards=(0, 1), booking=1, at=3.5)
    later = HostStatus(instance="i-0a", phase=HostPhase.ENDED, shards=(2,), booking=2, at=4.5)
    second = HostStatus(instance="i-0b", phase=HostPhase.FAILED, error="no disk", error_type="OSError")
    reports.write(first)
    reports.write(later)
    reports.write(second)
    assert reports.read("i-0a", 1) == first
    assert reports.read("i-0a", 2) == later
    assert reports.read("i-0b", 7) == second
    assert not first.phase.is_last
    assert second.phase.is_last


@pytest.mark.parametrize("raw", [b"", b"[]", b'{"instance": 1}', b'{"instance": "i-0a", "phase": "asleep"}'])
def test_damaged_records_are_named(store, raw):
    """A record that cannot be read is an error that names its key."""
    store.put("hosts/i-0a.json", raw)
    with pytest.raises(CorruptDataError, match=r"hosts/i-0a\.json"):
        HostReports(store).read("i-0a", 0)


@given(st.sets(st.integers(0, 9999), min_size=1, max_size=50))
def test_shards_survive_their_text(shards):
    """The text of a tag names the shards that it was made from."""
    ascending = tuple(sorted(shards))
    assert parse_shards(format_shards(ascending)) == ascending


@pytest.mark.parametrize("text", ["", "a", "3-1", "-1", "1-", "0--2", "0-99999", "1,,2", "one"])
def test_other_texts_name_no_shards(text):
    """What is written otherwise is refused, and so is a range too long to hold."""
    with pytest.raises(ConfigError, match="names no shards"):
        parse_shards(text)
