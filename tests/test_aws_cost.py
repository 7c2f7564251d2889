"""What AWS costs: the price table, the model, and how the backend hands prices to a run."""

from __future__ import annotations

import dataclasses
import json
import logging
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from aws_services import Answer, answering, use_services
from test_aws_deployment import make_deployment

from cirrus.client_backend.aws import cost
from cirrus.client_backend.aws.backend import AWSBackend
from cirrus.client_backend.aws.prices import PriceTable, read_prices
from cirrus.client_backend.aws.rates import Rates
from cirrus.client_backend.local import LocalBackend
from cirrus.errors import ConfigError

CRITEO_ROWS = 45_840_617


@pytest.fixture(scope="module")
def table() -> PriceTable:
    """The table that comes with Cirrus."""
    return read_prices()


def test_the_table_is_dated_and_whole(table: PriceTable) -> None:
    """Every region prices both architectures, and the servers that a deployment has by default."""
    assert table.dated >= "2026"
    assert "price list" in table.source
    for region in table.regions.values():
        assert set(region.lambda_gb_second) == {"arm64", "x86_64"}
        assert region.lambda_gb_second["arm64"] < region.lambda_gb_second["x86_64"]
        assert {"c8gn.large", "c6in.large"} <= set(region.instances)
        for instance in region.instances.values():
            assert 0.03 < instance.dollars_per_hour / instance.vcpus < 0.08  # no slip of a digit


def test_an_instance_type_without_a_price_here_is_reckoned_at_another_regions(
    table: PriceTable, caplog: pytest.LogCaptureFixture
) -> None:
    """Its price elsewhere is nearer than none, with a warning; one that is priced nowhere is an error."""
    with caplog.at_level(logging.WARNING):
        assert table.instance("eu-central-1", "c7gn.large") is table.instance("us-east-1", "c7gn.large")
    assert "c7gn.large in eu-central-1" in caplog.text
    with pytest.raises(ConfigError, match=r"there is no price for x1\.huge"):
        table.instance("eu-central-1", "x1.huge")


def test_the_model_by_hand(table: PriceTable) -> None:
    """100 functions of 1769 MB for an hour beside one c7gn.large, reckoned with a pencil."""
    prices = table.region("us-east-1")
    found = cost.model_cost(
        prices,
        table.instance("us-east-1", "c7gn.large"),
        architecture="arm64",
        seconds=3600.0,
        n_workers=100,
        n_servers=1,
        disk_gb=16,
        memory_mb=1769,
        generation_seconds=240.0,
        chunk_reads=1_000_000,
        stored_bytes=1e11,
        cross_zone_bytes=1e9,
    )
    assert found.workers == pytest.approx(100 * 3600 * 1769 / 1024 * 0.0000133334)
    assert found.invocations == pytest.approx(100 * 15 * 0.0000002)
    assert found.servers == pytest.approx(0.1248 + 16 * 0.08 / 730)
    assert found.storage_requests == pytest.approx(0.4 + 12_000 * 0.000005 + 10_000 * 0.0000004)
    assert found.storage == pytest.approx(100 * 0.023 / 730)
    assert found.cross_zone == pytest.approx(0.02)
    assert found.total == pytest.approx(sum(dataclasses.astuple(found)))


def test_a_region_without_prices_says_so(table: PriceTable, caplog: pytest.LogCaptureFixture) -> None:
    """Costs are then reckoned at another region's prices, with a warning that says how to give one's own."""
    with caplog.at_level(logging.WARNING):
        assert table.region("mars-north-1") is table.region("us-east-1")
    assert "mars-north-1" in caplog.text
    assert "prices=" in caplog.text


def test_a_table_can_be_replaced(tmp_path: Path) -> None:
    """A file of one's own takes the place of the table; a wrong one is named."""
    path = tmp_path / "prices.json"
    raw = dataclasses.asdict(read_prices())
    raw["regions"]["us-east-1"]["lambda_gb_second"]["arm64"] = 1.0
    path.write_text(json.dumps(raw))
    backend = AWSBackend(make_deployment(), prices=path)
    assert backend.worker_prices(1024).dollars_per_second == 1.0
    del raw["regions"]["us-east-1"]
    for text in (json.dumps(raw), "{", '{"dated": 1}'):
        path.write_text(text)
        with pytest.raises(ConfigError, match="prices"):
            read_prices(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_prices(tmp_path / "nothing")


def test_a_run_gets_the_backends_prices() -> None:
    """Servers by the hour, workers by their time; a size with more shards takes more servers."""
    backend = AWSBackend(make_deployment())
    assert (backend.shards_per_server, backend.n_servers(2), backend.n_servers(3)) == (2, 1, 2)
    one, two = backend.dollars_per_hour(100, 2), backend.dollars_per_hour(1, 3)
    assert two - one == pytest.approx(0.0725 + 16 * 0.08 / 730)
    prices = backend.worker_prices(1769)
    assert prices.dollars_per_second == pytest.approx(1769 / 1024 * 0.0000133334)
    assert prices.dollars_per_invocation == 0.0000002
    hour = {"seconds": 3600.0, "n_workers": 1, "n_shards": 2, "memory_mb": 1769}
    warm = backend.model_cost(**hour, startup_seconds=0.0).total
    assert warm == pytest.approx(one + 3600 * prices.dollars_per_second, rel=1e-3)
    assert backend.model_cost(**hour).total - warm == pytest.approx(one * 90 / 3600)
    more = backend.model_cost(**hour, startup_seconds=0.0, stored_bytes=1e12, cross_zone_bytes=1e10).total
    assert more - warm == pytest.approx(1000 * 0.023 / 730 + 0.2)
    assert LocalBackend().worker_prices(1769).dollars_per_second == 0.0


def test_a_trial_pays_for_its_seats() -> None:
    """Twenty trials of a shard count ten servers of two seats; a run by itself counts a whole one.

    What shard 0 counts by its config is what is put right at the end.
    """
    backend = AWSBackend(make_deployment())
    trial, control = backend.for_many_runs(), cost.control_dollars_per_hour(read_prices().region("us-east-1"))
    server = 0.0725 + 16 * 0.08 / 730
    assert 20 * (trial.dollars_per_hour(1, 1) - control) == pytest.approx(10 * server)
    assert backend.dollars_per_hour(1, 1) - control == pytest.approx(server)
    hour = {"seconds": 3600.0, "n_workers": 1, "n_shards": 1, "memory_mb": 1769, "startup_seconds": 0.0}
    assert trial.model_cost(**hour).servers == pytest.approx(server / 2)
    rates = Rates(read_prices(), make_deployment(), "c7g.large", spot=False)
    assert rates.counted_servers(trial.dollars_per_hour(1, 1)) == pytest.approx(0.5)
    assert rates.counted_servers(backend.dollars_per_hour(1, 3)) == pytest.approx(2.0)
    assert rates.counted_servers(0.0) == 0.0


def test_the_documents_say_what_the_model_says() -> None:
    """Each row of the table about Criteo's rows is what the model gives today, to its last digit."""
    text = (Path(__file__).parents[1] / "docs/aws.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (\d+) \| \$(.+) \| \$(.+) \| \$(.+) \| \$(.+) \|$", text, re.MULTILINE)
    assert len(rows) == 2
    backend = AWSBackend(make_deployment(instance_type="c8gn.large"))
    for n_workers, seconds, *dollars in rows:
        lasts = CRITEO_ROWS * 3 / (100_000 * int(n_workers))
        found = backend.model_cost(
            seconds=lasts,
            n_workers=int(n_workers),
            n_shards=2,
            memory_mb=1769,
            chunk_reads=3000,
        )
        functions, requests = found.workers + found.invocations, found.storage_requests
        assert int(seconds) == round(lasts)
        assert dollars == [f"{x:.3f}" for x in (functions, found.servers, requests, found.total)]


def test_spot_servers_cost_what_they_cost_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """The price is asked for; where there is none, that of on demand counts."""
    item = b"<item><spotPrice>0.02</spotPrice></item>"
    for found, expected in ((item, 0.02), (b"", 0.0725)):
        body = b"<R><spotPriceHistorySet>%s</spotPriceHistorySet></R>" % found
        with answering(lambda _, body=body: Answer(body=body)) as url:
            use_services(monkeypatch, url)
            backend = AWSBackend(make_deployment(spot=True))
            control = cost.control_dollars_per_hour(read_prices().region("us-east-1"))
            hourly = backend.dollars_per_hour(1, 1) - control - 16 * 0.08 / 730
            assert hourly == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"generation_seconds": 0.0}, "generation_seconds"),
        ({"generation_seconds": 901.0}, "generation_seconds"),
        ({"shards_per_server": 0}, "shards_per_server"),
        ({"shards_per_server": 101}, "shards_per_server"),
        ({"instance_type": "x1.huge"}, "prices"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], field: str) -> None:
    """What cannot work is refused, with the parameter's name."""
    with pytest.raises(ConfigError, match=field):
        AWSBackend(make_deployment(), **options).dollars_per_hour(1, 1)


def test_a_backend_can_be_copied_to_other_processes() -> None:
    """scikit-learn clones and pickles estimators with their parameters."""
    backend = AWSBackend(make_deployment(), generation_seconds=100.0, spot=False, shards_per_server=4)
    copy = pickle.loads(pickle.dumps(backend))
    assert (copy.root, copy.generation_seconds, copy.shards_per_server) == ("s3://cirrus-testing", 100.0, 4)
    assert copy.deployment == backend.deployment
