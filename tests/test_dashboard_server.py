"""The dashboard as a server: who is let in, what it reads from folders, and what it does to runs."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cirrus_dashboard import DashboardServer, serve
from cirrus_dashboard.actions import KILL_THREADS
from cirrus_dashboard.security import allowed_hosts
from cirrus_dashboard.sources import FolderSource
from dashboard_runs import make_run, points, write_status
from stand_ins import eventually
from typer.testing import CliRunner

import cirrus
from cirrus.cli.commands import app
from cirrus.client_backend.runs import open_run
from cirrus.client_backend.search_folder import SearchConfig, SearchFolder, SearchState, Trial, TrialStatus
from cirrus.errors import ConfigError, CorruptDataError, RunError
from cirrus.metrics import RunEvent, RunState
from cirrus.run_folder import MAX_NOTE_CHARACTERS, EventsWriter, MetricsWriter, RunFolder, read_events

TOKEN = "not-much-of-a-secret"
PREFIX = f"/t/{TOKEN}/"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[DashboardServer]:
    """A dashboard of one live run."""
    make_run(tmp_path, "a", state=RunState.RUNNING)
    with serve(str(tmp_path), port=0, token=TOKEN) as running:
        yield running


def request(
    server: DashboardServer, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Send one request; headers are named with underscores."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {name.replace("_", "-"): x for name, x in headers.items()})
        reply = connection.getresponse()
        return reply.status, reply.headers, reply.read()
    finally:
        connection.close()


def page_request(server: DashboardServer, output: str, **values: Any) -> dict[str, Any]:
    """Return what a page sends to have an output made anew; values by id, with underscores for hyphens."""
    status, _, raw = request(server, "GET", f"{PREFIX}_dash-dependencies")
    assert status == 200
    (found,) = (x for x in json.loads(raw) if output in x["output"] and x["clientside_function"] is None)
    outputs = [
        dict(zip(("id", "property"), part.split("."), strict=True))
        for part in found["output"].strip(".").split("...")
    ]
    first = found["inputs"][0]

    def filled(parts: list[dict[str, str]]) -> list[dict[str, Any]]:
        return [{**part, "value": values.get(part["id"].replace("-", "_"))} for part in parts]

    return {
        "output": found["output"],
        "outputs": outputs if len(outputs) > 1 else outputs[0],
        "inputs": filled(found["inputs"]),
        "state": filled(found["state"]),
        "changedPropIds": [f"{first['id']}.{first['property']}"],
    }


def kill_request(server: DashboardServer, *targets: str) -> dict[str, Any]:
    """Return what a page sends to end runs."""
    return page_request(server, "killing.data", kill_confirm=1, kill_targets=list(targets))


def post(server: DashboardServer, body: Any) -> tuple[int, bytes]:
    """Send what the dashboard's own page sends."""
    headers = {"Host": "localhost:8050", "Content_Type": "application/json"}
    headers |= {"Origin": "http://localhost:8050", "Sec_Fetch_Site": "same-origin"}
    status, _, raw = request(server, "POST", f"{PREFIX}_dash-update-component", body, **headers)
    return status, raw


class TestWhoIsLetIn:
    """Forged requests."""

    def test_the_page_is_there_for_who_knows_the_token(self, server):
        """The page, its scripts and its styles come from this server alone."""
        status, headers, body = request(server, "GET", PREFIX)
        assert status == 200
        assert b"https://" not in body.replace(b"http://www.w3.org", b"")
        assert headers["Referrer-Policy"] == "no-referrer"
        assert "frame-ancestors" in headers["Content-Security-Policy"]
        assert "Set-Cookie" not in headers
        assert "Access-Control-Allow-Origin" not in headers

    @pytest.mark.parametrize(
        "path",
        [
            "/",
            "/t/",
            "/t/wrong/",
            f"/t/{TOKEN[:-1]}/",
            f"/t/{TOKEN}x/",
            "/_dash-layout",
            "/assets/dashboard.js",
        ]
        + [f"/x{PREFIX}", f"/t//{TOKEN}/", f"/T/{TOKEN}/", "/_dash-update-component", f"/t/{TOKEN}x"],
    )
    def test_everything_else_is_not_found(self, server, path):
        """Without the token in its place there is nothing, and nothing says what would be."""
        for method in ("GET", "POST", "OPTIONS", "DELETE"):
            status, headers, body = request(server, method, path)
            assert (status, body) == (404, b"not found\n")
            assert "Server" not in headers

    def test_the_last_slash_may_be_left_out(self, server):
        """Whoever knows the token is sent to the page; nobody else learns that there is one."""
        for method in ("GET", "HEAD"):
            status, headers, body = request(server, method, f"/t/{TOKEN}?x=1")
            assert (status, headers["Location"], body.strip()) == (302, PREFIX, b"")
            assert headers["Referrer-Policy"] == "no-referrer"
        assert request(server, "POST", f"/t/{TOKEN}", {}, Origin=f"http://127.0.0.1:{server.port}")[0] == 404
        assert request(server, "GET", f"/t/{TOKEN}", Host="evil.example")[0] == 403

    @pytest.mark.parametrize(
        "host", ["evil.example", "evil.example:8050", "", "localhost.evil.example", "[::1"]
    )
    def test_foreign_names_are_refused(self, server, host):
        """A name of somebody else's that resolves to this machine is no way in."""
        assert request(server, "GET", PREFIX, Host=host)[0] in (400, 403)

    @pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9", "LOCALHOST:8050", "[::1]:1"])
    def test_loopback_has_several_names_and_ports(self, server, host):
        """A tunnel may use another port."""
        assert request(server, "GET", PREFIX, Host=host)[0] == 200

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"Origin": "https://evil.example"},
            {"Origin": "null"},
            {"Origin": "http://localhost:1"},
            {"Origin": "http://localhost.evil.example:8050"},
            {"Origin": "file://localhost:8050"},
            {"Origin": "http://localhost:8050", "Sec_Fetch_Site": "cross-site"},
            {"Origin": "http://localhost:8050", "Sec_Fetch_Site": "same-site"},
            {"Origin": "http://localhost:8050", "Content_Type": "text/plain"},
            {"Origin": "http://localhost:8050", "Content_Type": "application/x-www-form-urlencoded"},
        ],
    )
    def test_a_page_elsewhere_cannot_kill(self, server, tmp_path, headers):
        """Even with the token, a POST must come from a page of this very origin, and be JSON."""
        body = kill_request(server, "a")
        sent = {"Host": "localhost:8050", "Content_Type": "application/json", **headers}
        status, _, _ = request(server, "POST", f"{PREFIX}_dash-update-component", body, **sent)
        assert status in (403, 415)
        assert RunFolder(f"{tmp_path}/runs/a").requests() == []

    def test_the_own_page_can_kill(self, server, tmp_path):
        """The same request from the dashboard's own page leaves a request in the run folder."""
        folder = RunFolder(f"{tmp_path}/runs/a")
        eventually(lambda: server.source.snapshot.records.get("a") is not None)
        status, raw = post(server, kill_request(server, "a", "no-such-run"))
        assert status == 200, raw
        assert json.loads(raw)["response"]["killing"]["data"] == {"a": True}
        eventually(lambda: [x.action for _, x in folder.requests()] == ["kill"])
        write_status(folder, RunState.KILLED)

    @pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
    def test_other_methods_are_refused(self, server, method):
        """Pages read and post, no more."""
        assert request(server, method, PREFIX)[0] == 405

    def test_nonsense_is_a_bad_request(self, server):
        """What no page would ask for gets an error that says so, and ends nothing."""
        status, raw = post(server, page_request(server, "delta.data", x="moon", tick=1))
        assert status == 400, raw
        assert request(server, "GET", PREFIX)[0] == 200

    @pytest.mark.parametrize(
        "changes",
        [
            None,
            {"output": 1},
            {"output": "no-such.data"},
            {"output": "cursors.data"},
            {"inputs": {}},
            {"inputs": [1]},
            {"state": [{"id": "kill-targets"}]},
            {"outputs": [None]},
            {"outputs": "x"},
            {"changedPropIds": 1},
        ],
    )
    def test_malformed_questions_are_bad_requests(self, server, caplog, changes):
        """A body that no page sends is refused by its shape, and nothing fails in answering it."""
        body = {} if changes is None else kill_request(server, "a") | changes
        status, raw = post(server, body)
        assert status == 400, raw
        assert not caplog.records
        assert post(server, [])[0] == 400

    def test_a_long_body_is_refused(self, server):
        """A body beyond what any page sends is refused before it is read."""
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        connection.putrequest("POST", f"{PREFIX}_dash-update-component")
        connection.putheader("Content-Length", str(10**9))
        connection.endheaders()
        assert connection.getresponse().status == 413
        connection.close()

    def test_names_to_be_asked_by(self):
        """Loopback by default; all addresses need a name; a name that is none is refused."""
        assert allowed_hosts("127.0.0.1") == {"localhost", "127.0.0.1", "::1"}
        assert "gpu1.lab" in allowed_hosts("0.0.0.0", ["gpu1.lab:8050"])
        assert "10.0.0.5" in allowed_hosts("10.0.0.5")
        for bind, extra in (("0.0.0.0", []), ("::", []), ("127.0.0.1", ["[::1"])):
            with pytest.raises(ConfigError, match="allow_host"):
                allowed_hosts(bind, extra)

    def test_a_taken_port_is_an_error_that_names_it(self, server, tmp_path):
        """Nothing is left behind, and the message says what to do."""
        with pytest.raises(ConfigError, match=rf"port: .*{server.port}.*0 takes one"):
            serve(str(tmp_path), port=server.port)

    def test_a_token_is_new_each_time(self, tmp_path):
        """Two dashboards have different secrets, each of 24 random bytes."""
        with serve(str(tmp_path), port=0) as first, serve(str(tmp_path), port=0) as second:
            assert first.url.split("/")[4] != second.url.split("/")[4]
            assert len(first.url.split("/")[4]) == 32
            assert first.url in first._repr_html_()


class TestFolders:
    """What is read from run folders."""

    def test_a_run_grows_and_ends(self, tmp_path):
        """Points that shard 0 appends appear, each once; an ended run keeps its curve."""
        folder = make_run(tmp_path, "a", (0.7, 0.6), state=RunState.RUNNING, learning_rate=0.5)
        source = FolderSource(str(tmp_path))
        run = source.poll().records["a"]
        assert (run.state, len(run.columns), run.hyperparameters["learning_rate"]) == ("running", 2, 0.5)
        assert source.poll().version == source.snapshot.version
        writer = MetricsWriter(folder)
        for point in points((0.7, 0.6, 0.4)):
            writer.append(point)
        writer.flush()
        write_status(folder, RunState.FINISHED)
        grown = source.poll().records["a"]
        assert grown.state == "finished"
        assert grown.version > run.version
        assert grown.columns.last("train_loss") == 0.4
        version = source.snapshot.version
        assert source.poll().version == version

    def test_runs_come_and_go(self, tmp_path):
        """A new run appears, a removed one disappears, a broken one is shown as broken; the others go on."""
        make_run(tmp_path, "a")
        source = FolderSource(str(tmp_path))
        assert list(source.poll().records) == ["a"]
        make_run(tmp_path, "b")
        broken = make_run(tmp_path, "c")
        broken.store.put("config.json", b"{")
        found = source.poll().records
        assert sorted(found) == ["a", "b", "c"]
        assert found["c"].state == "broken"
        assert "config.json" in str(found["c"].problem)
        RunFolder(f"{tmp_path}/runs/a").remove()
        assert sorted(source.poll().records) == ["b", "c"]

    def test_damaged_metrics_are_told(self, tmp_path):
        """A curve that cannot be read is a problem of that run, and its state is still shown."""
        folder = make_run(tmp_path, "a", state=RunState.RUNNING)
        folder.store.put("metrics/00000000.jsonl", b"not json\n")
        run = FolderSource(str(tmp_path)).poll().records["a"]
        assert run.state == "running"
        assert "not JSON" in str(run.problem)

    def test_an_empty_home_has_no_runs_and_no_problem(self, tmp_path):
        """Before the first run there is nothing to show, and nothing is made."""
        found = FolderSource(str(tmp_path / "home")).poll()
        assert (dict(found.records), found.problem) == ({}, None)

    def test_a_trial_is_one_line_with_one_curve(self, tmp_path):
        """The runs of a trial are its rungs; trials that wait are shown, too, and each as its search says."""
        make_run(tmp_path, "a", (0.7, 0.6), search="search-1", trial=0)
        make_run(tmp_path, "b", (0.5, 0.4), search="search-1", trial=0)
        make_run(tmp_path, "c", search="gone", trial=3)
        folder = SearchFolder(f"{tmp_path}/searches/search-1")
        config = SearchConfig(search_id="search-1", estimator="LogisticRegression", method="grid")
        folder.create(dataclasses.replace(config, created_at=1e9))
        trials = (
            Trial(index=0, params={"l1": 0.5}, status=TrialStatus.PRUNED, runs=("a", "b")),
            Trial(index=1, params={"l1": 0.7}),
        )
        folder.write_state(SearchState(state=RunState.FINISHED, trials=trials), None)
        found = FolderSource(str(tmp_path)).poll().records
        assert sorted(found) == ["gone:3", "search-1:0", "search-1:1"]
        first, waiting = found["search-1:0"], found["search-1:1"]
        assert (first.state, first.runs, first.hyperparameters["l1"]) == ("pruned", ("a", "b"), 0.5)
        assert first.columns["seconds"].tolist() == [1.0, 2.0, 3.0, 4.0]
        assert first.begun == "20010909-014640"
        assert first.status is not None
        assert first.status.cost == 0.5
        assert (waiting.state, waiting.hyperparameters["l1"]) == ("queued", 0.7)
        assert found["gone:3"].state == "finished"

    def test_notes_are_kept_with_the_run(self, tmp_path):
        """A note outlives the dashboard, and is not longer than it may be."""
        make_run(tmp_path, "a")
        with FolderSource(str(tmp_path), poll_seconds=0.02) as source:
            eventually(lambda: "a" in source.snapshot.records)
            source.set_note("a", "the good one")
            eventually(lambda: source.snapshot.records["a"].note == "the good one")
            with pytest.raises(ConfigError, match="note"):
                source.set_note("a", "x" * (MAX_NOTE_CHARACTERS + 1))
        assert FolderSource(str(tmp_path)).poll().records["a"].note == "the good one"

    def test_resume_goes_on_with_interrupted_runs_alone(self, tmp_path):
        """What finished is not begun again."""
        make_run(tmp_path, "a")
        make_run(tmp_path, "b", state=RunState.INTERRUPTED)
        asked: list[tuple[str, str]] = []

        def resume(root: str, run_id: str) -> str:
            asked.append((root, run_id))
            return "error: its data is gone"

        source = FolderSource(str(tmp_path), resume=resume)
        source.poll()
        with pytest.raises(RunError, match="nothing to go on with"):
            source.resume("a")
        source.resume("b")
        eventually(lambda: source.poll().records["b"].problem == "error: its data is gone")
        assert asked == [(str(tmp_path), "b")]

    @pytest.mark.timeout(240)
    def test_a_killed_trial_goes_on_though_nobody_drives_its_search(self, tmp_path):
        """The search is resumed in a process of its own, and its driver is asked for the trial."""
        rows = np.random.default_rng(0).normal(size=(600, 5)).astype(np.float32)
        data = cirrus.load_arrays(rows, (rows[:, 0] > 0).astype(int), tmp_path / "rows")
        backend = cirrus.LocalBackend(root=tmp_path / "home")
        estimator = cirrus.LogisticRegression(
            n_workers=1, epochs=200, tol=None, batch_size=10, random_state=0, backend=backend
        )
        search = cirrus.GridSearch(estimator, {"l1": [0]}, search_id="sweep")
        with search.start(data):
            # A shard and a worker have to start as processes: of a busy machine that asks much.
            trial = eventually(
                lambda: (
                    (trial := search.status.trials[0]) and (trial.updates or trial.status.ended) and trial
                ),
                60,
            )
            assert not trial.status.ended, trial.error
            search.kill(0)
        with FolderSource(str(backend.root), poll_seconds=0.1) as source:
            eventually(lambda: "sweep:0" in source.snapshot.records)
            assert source.snapshot.records["sweep:0"].state == "killed"
            source.resume("sweep:0")
            eventually(lambda: source.snapshot.records["sweep:0"].state == "finished", 150)
            assert source.snapshot.records["sweep:0"].runs == search.status.trials[0].runs
        run = open_run(str(backend.root), search.status.trials[0].runs[0])
        assert run.status.counts["shard0.steps_applied"] == 200 * 60

    def test_killing_an_abandoned_run_ends_it(self, tmp_path):
        """A run whose client and shards are gone is declared dead: it is not only asked to be."""
        folder = make_run(tmp_path, "a", state=RunState.RUNNING)
        holder = folder.claim_holder()
        assert holder is not None
        folder.claim(dataclasses.replace(holder, released=True))
        status = folder.status()
        assert status is not None
        folder.write_status(dataclasses.replace(status, heartbeat_at=time.time() - 60))
        with FolderSource(str(tmp_path), poll_seconds=0.02) as source:
            eventually(lambda: "a" in source.snapshot.records)
            assert source.snapshot.records["a"].state == "interrupted"
            source.kill("a")
            eventually(lambda: source.snapshot.records["a"].state == "killed")

    def test_a_kill_that_fails_is_told_and_can_be_tried_again(self, tmp_path):
        """The run's line says why; the next attempt begins without that, and other kills are carried out."""
        make_run(tmp_path, "a", state=RunState.RUNNING)
        make_run(tmp_path, "b", state=RunState.RUNNING)
        asked: list[str] = []
        source = FolderSource(str(tmp_path), poll_seconds=0.02)

        def kill_run(run_id: str) -> None:
            asked.append(run_id)
            if asked == ["a"]:
                raise RunError("it did not end in time")
            if len(asked) == 2:
                raise ValueError("nobody thought of this")

        source._overview.kill_run = kill_run
        with source:
            eventually(lambda: {"a", "b"} <= source.snapshot.records.keys())
            source.kill("a")
            eventually(lambda: "could not be ended: it did not" in str(source.snapshot.records["a"].problem))
            source.kill("a")
            eventually(lambda: "could not be ended: ValueError" in str(source.snapshot.records["a"].problem))
            source.kill("a")
            eventually(lambda: asked == ["a"] * 3)
            eventually(lambda: source.snapshot.records["a"].problem is None)
            for _ in range(KILL_THREADS + 1):
                source.kill("b")
            eventually(lambda: asked == ["a"] * 3 + ["b"] * (KILL_THREADS + 1))

    def test_kill_all_ends_searches_as_a_whole(self, tmp_path):
        """A trial that the page does not know of yet does not begin in the room that the others leave."""
        rows = np.random.default_rng(0).normal(size=(600, 5)).astype(np.float32)
        backend = cirrus.InlineBackend(root=tmp_path)
        estimator = cirrus.LogisticRegression(n_workers=1, epochs=100_000, tol=None, backend=backend)
        search = cirrus.GridSearch(estimator, {"l1": [0, 1, 2]}, search_id="sweep", max_concurrent=1)
        with search.start(rows, rows[:, 0] > 0), serve(str(tmp_path), port=0, token=TOKEN) as server:
            # The page ends what it knows to be live.
            eventually(
                lambda: len(records := server.source.snapshot.records) == 3 and records["sweep:0"].is_live
            )
            body = page_request(
                server, "killing.data", kill_confirm=1, kill_targets=["sweep:0"], kill_every=True
            )
            assert post(server, body)[0] == 200
            assert search._driver.wait(60)
            assert search.status.state is RunState.KILLED
            assert [len(trial.runs) for trial in search.status.trials] == [1, 0, 0]

    def test_no_error_ends_the_reading(self, tmp_path):
        """What nobody thought of is told on the page, and reading goes on when it is over."""
        make_run(tmp_path, "a")
        source = FolderSource(str(tmp_path), poll_seconds=0.02)
        runs = source._overview.runs

        def failing() -> Any:
            raise ValueError("nobody thought of this")

        source._overview.runs = failing
        with source:
            eventually(lambda: "ValueError: nobody thought of this" in str(source.snapshot.problem))
            source._overview.runs = runs
            eventually(lambda: "a" in source.snapshot.records)
            assert source.snapshot.problem is None

    def test_one_run_does_not_keep_others_from_being_read(self, tmp_path):
        """Whatever goes wrong with one folder is said of that run alone."""
        make_run(tmp_path, "a")
        make_run(tmp_path, "b")
        source = FolderSource(str(tmp_path))
        columns = source._overview.columns

        def failing(run_id: str, cursor: Any) -> Any:
            if run_id == "b":
                raise ValueError("nobody thought of this")
            return columns(run_id, cursor)

        source._overview.columns = failing
        found = source.poll().records
        assert (len(found["a"].columns), found["a"].problem) == (2, None)
        assert found["b"].problem == "cannot be read: ValueError: nobody thought of this"

    def test_answers_go_before_reading(self, server, tmp_path, monkeypatch):
        """While a page is answered, no more runs are read; each request is such an answer."""
        monkeypatch.setattr("cirrus_dashboard.sources.GIVE_WAY_SECONDS", 60.0)
        source = FolderSource(str(tmp_path), poll_seconds=0.02)
        with source:
            with source.answering():
                eventually(lambda: "a" in source.snapshot.records)  # as the listing says
                assert len(source.snapshot.records["a"].columns) == 0
            eventually(lambda: len(source.snapshot.records["a"].columns) == 2)
        begun: list[str] = []

        @contextlib.contextmanager
        def answering() -> Iterator[None]:
            begun.append("an answer")
            yield
            begun.append("its end")

        server.source.answering = answering
        assert request(server, "GET", PREFIX)[0] == 200
        assert begun == ["an answer", "its end"]

    def test_standing_back_is_no_work(self, tmp_path, monkeypatch):
        """A reader that stood back for a page does not pause for as long again."""
        monkeypatch.setattr("cirrus_dashboard.sources.GIVE_WAY_SECONDS", 0.5)
        make_run(tmp_path, "a", state=RunState.RUNNING)
        source = FolderSource(str(tmp_path), poll_seconds=0.01)
        runs, give_way = source._overview.runs, source._precedence.give_way
        begun: list[float] = []
        stood_back: list[float] = []

        def noted_runs() -> Any:
            begun.append(time.monotonic())
            return runs()

        def noted_give_way(most_seconds: float) -> bool:
            is_free = give_way(most_seconds)
            stood_back.append(time.monotonic())
            return is_free

        source._overview.runs, source._precedence.give_way = noted_runs, noted_give_way
        with source, source.answering():
            eventually(lambda: len(begun) > 4)
        pauses = [after - before for before, after in zip(stood_back, begun[1:], strict=False)]
        assert min(pauses) < 0.25

    def test_reading_gives_way_for_a_while_only(self, tmp_path, monkeypatch):
        """Pages that ask all the time do not keep the curves from being read."""
        monkeypatch.setattr("cirrus_dashboard.sources.GIVE_WAY_SECONDS", 0.01)
        make_run(tmp_path, "a")
        source = FolderSource(str(tmp_path))
        with source.answering():
            assert len(source.poll().records["a"].columns) == 2

    def test_damaged_events_do_not_hide_the_run(self, server, tmp_path):
        """What is known of a run is shown, with what is wrong about the rest."""
        eventually(lambda: "a" in server.source.snapshot.records)
        RunFolder(f"{tmp_path}/runs/a").store.put("events/00000000.jsonl", b"{]\n")
        for output in ("detail.children", "panel-timeline.children"):
            status, raw = post(server, page_request(server, output, selected_run="a", tab="timeline"))
            assert status == 200, raw
            told = json.dumps(json.loads(raw))  # some JSON writers escape slashes
            assert "events cannot be read: events/00000000.jsonl is not JSON" in told
        assert (
            b"Hyperparameters" in post(server, page_request(server, "detail.children", selected_run="a"))[1]
        )

    def test_events_are_read_back(self, tmp_path):
        """What happened is told in its order, of all runs of a trial; a damaged line is an error."""
        folder = make_run(tmp_path, "a")
        writer = EventsWriter(folder)
        events = [RunEvent(at=float(n), kind="joined", who="train-0", generation=n) for n in range(3)]
        for event in events:
            writer.append(event)
            writer.flush()
        source = FolderSource(str(tmp_path))
        source.poll()
        assert source.events("a") == events
        assert source.events("b") == []
        folder.store.put("events/00000001.jsonl", b"{]\n")
        with pytest.raises(CorruptDataError, match="events/00000001"):
            read_events(folder)


NOT_INSTALLED = "needs Cirrus to be installed: the dashboard is found through an entry point"


def test_a_search_serves_its_dashboard(tmp_path):
    """`serve_dashboard` shows the trials of the search that it is called of."""
    if not entry_points(group="cirrus.dashboard"):
        pytest.skip(NOT_INSTALLED)
    rows = np.random.default_rng(0).normal(size=(200, 3))
    estimator = cirrus.LogisticRegression(epochs=1, backend=cirrus.InlineBackend(root=tmp_path))
    search = cirrus.GridSearch(estimator, {"l1": [0, 1]}).fit(rows, rows[:, 0] > 0)
    with search.serve_dashboard(port=0) as server:
        names = {f"{search.search_id_}:{trial}" for trial in range(2)}
        eventually(lambda: server.source.snapshot.records.keys() == names)


def test_the_command_prints_its_address_and_ends(tmp_path):
    """`cirrus dashboard` says where it is, in one line, and ends in order; the runs do not notice."""
    if not entry_points(group="cirrus.dashboard"):
        pytest.skip(NOT_INSTALLED)
    make_run(tmp_path, "a", state=RunState.RUNNING)
    command = [sys.executable, "-m", "cirrus", "dashboard", str(tmp_path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("http://localhost:")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    status = RunFolder(f"{tmp_path}/runs/a").status()
    assert status is not None
    assert status.state is RunState.RUNNING


def test_the_command_looks_at_its_folder(server, tmp_path):
    """A file is refused; a folder that is not there may come with the first run, and that is said."""
    if not entry_points(group="cirrus.dashboard"):
        pytest.skip(NOT_INSTALLED)
    (tmp_path / "file").write_text("rows")
    found = CliRunner().invoke(app, ["dashboard", str(tmp_path / "file"), "--port", str(server.port)])
    assert (found.exit_code, found.stdout) == (1, "")
    assert f"{tmp_path / 'file'} is a file" in found.stderr
    # The port is taken, so that the command ends by itself.
    found = CliRunner().invoke(app, ["dashboard", str(tmp_path / "none"), "--port", str(server.port)])
    assert (found.exit_code, found.stdout) == (1, "")
    assert f"{tmp_path / 'none'} is not there yet" in found.stderr
