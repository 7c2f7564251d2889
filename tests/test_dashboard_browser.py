"""The dashboard in a browser, beside a search that is running."""

from __future__ import annotations

import http.server
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cirrus_dashboard import DashboardServer, serve
from dashboard_runs import make_run
from playwright.sync_api import Browser, Page, expect, sync_playwright
from stand_ins import eventually

import cirrus
from cirrus.client_backend.local import LocalCommands, shard_command, worker_command
from cirrus.client_backend.search_folder import TrialStatus

#: What browsers are called, here and there.
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
#: What is drawn of the same curves beside their loss.
CHARTS = ("chart-rate", "chart-loss-cost", "chart-cost-time")
DESKTOP = {"width": 1440, "height": 1000}
PHONE = {"width": 390, "height": 844}
#: A page asks every two seconds, and a run takes some to start; machines that test are busy.
PATIENCE_MILLISECONDS = 60_000

#: Training must not take the processor from the browser that watches it.
POLITE = LocalCommands(
    shard=lambda *arguments: ["nice", "-n", "15", *shard_command(*arguments)],
    worker=lambda url: ["nice", "-n", "19", *worker_command(url)],
)

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser with nothing in it; where there is none, tests say so and are left out."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"needs a browser ({', '.join(BROWSERS)}): apt-get install chromium")
    expect.set_options(timeout=PATIENCE_MILLISECONDS)
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=found, headless=True, args=list(FLAGS))
        yield running
        running.close()


@pytest.fixture
def screenshots(tmp_path: Path) -> Path:
    """Where screenshots go: the folder that CIRRUS_SCREENSHOTS names, else a temporary one."""
    folder = Path(os.environ.get("CIRRUS_SCREENSHOTS") or tmp_path / "screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def open_page(browser: Browser, server: DashboardServer, **options: Any) -> tuple[Page, list[str]]:
    """Open the dashboard; return the page, and what goes wrong in it or is loaded from elsewhere."""
    page = browser.new_page(**{"viewport": DESKTOP, **options})
    page.set_default_timeout(PATIENCE_MILLISECONDS)
    problems: list[str] = []
    own = server.url.split("/t/")[0]
    page.on("pageerror", lambda error: problems.append(f"error: {error}"))
    page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
    page.on(
        "request", lambda x: None if x.url.startswith((own, "data:", "blob:")) else problems.append(x.url)
    )
    page.goto(server.url)
    return page, problems


def traces(page: Page, chart: str = "chart-loss") -> list[dict[str, Any]]:
    """Return name, number of points and end of each curve of a chart."""
    found: list[dict[str, Any]] = page.evaluate(
        """chart => (document.querySelector(`#${chart} .js-plotly-plot`)?.data || [])
           .map(t => ({id: t.meta, points: t.x.length, end: t.x[t.x.length - 1]}))""",
        chart,
    )
    return found


def wait_for_traces(page: Page, count: int) -> None:
    """Wait until so many curves are drawn."""
    page.wait_for_function(
        "n => (document.querySelector('#chart-loss .js-plotly-plot')?.data || []).length === n", arg=count
    )


def row(page: Page, run_id: str) -> Any:
    """Return a run's line in the table."""
    return page.locator(f".ag-center-cols-container [row-id='{run_id}']")


def tick(page: Page, run_id: str) -> None:
    """Tick a run."""
    box_of(page, run_id).click()


def box_of(page: Page, run_id: str) -> Any:
    """Return where a run is ticked."""
    return page.locator(f".ag-pinned-left-cols-container [row-id='{run_id}'] input[type=checkbox]").first


@pytest.fixture
def search(tmp_path: Path) -> Iterator[cirrus.GridSearch]:
    """Three trials, two at a time, that would go on for ever."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(4_000, 20)).astype(np.float32)
    y = (X[:, 0] + 0.5 * rng.normal(size=len(X)) > 0).astype(int)
    estimator = cirrus.LogisticRegression(
        n_workers=1,
        epochs=1_000_000,
        tol=None,
        backend=cirrus.LocalBackend(root=tmp_path / "home", dollars_per_hour=0.4, commands=POLITE),
    )
    running = cirrus.GridSearch(estimator, {"learning_rate": [0.01, 0.1, 0.5]}, max_concurrent=2, refit=False)
    running.start(X, y)
    with running:
        yield running


def test_a_search_is_watched_and_ended(browser, search, tmp_path, screenshots):
    """Curves appear and grow; a zoom survives; best N; a click tells; kill ends one, kill all the others.

    A reload, and another dashboard, show the same history.
    """
    root = str(tmp_path / "home")
    with serve(root, port=0) as server:
        page, problems = open_page(browser, server)
        wait_for_traces(page, 2)
        first, second = (trace["id"] for trace in traces(page))
        name = page.locator(f".ag-pinned-left-cols-container [row-id='{first}'] [col-id=name]")
        expect(name).to_contain_text(f"{search.search_id_.removeprefix('search-')} #")
        buttons = page.locator("#chart-loss .modebar-btn")
        titles = buttons.evaluate_all("found => found.map(button => button.dataset.title)")
        assert titles == ["Download plot as a PNG", "Zoom", "Pan", "Autoscale", "Reset axes"]
        before = {trace["id"]: trace["end"] for trace in traces(page)}
        page.wait_for_function(
            """([id, end]) => document.querySelector('#chart-loss .js-plotly-plot').data
               .some(t => t.meta === id && t.x[t.x.length - 1] > end)""",
            arg=[first, before[first]],
        )
        assert all(trace["points"] <= 300 for trace in traces(page))
        for chart in CHARTS:
            assert {trace["id"] for trace in traces(page, chart)} == {first, second}

        zoom_in_and_wait(page)
        page.get_by_text("best", exact=True).click()
        page.locator("#count").fill("1")
        page.locator("#count").press("Enter")
        wait_for_traces(page, 1)
        page.get_by_text("all", exact=True).click()
        wait_for_traces(page, 2)

        click_curve(page, second)
        expect(page.locator("#detail")).to_contain_text("learning_rate")
        expect(page.locator("#detail")).to_contain_text("worker 0 joined")
        page.screenshot(path=screenshots / "live.png")

        kill_one(page, second)
        eventually(lambda: trial_status(search, second) is TrialStatus.KILLED, 30)
        assert trial_status(search, first) is TrialStatus.RUNNING
        expect(row(page, second).locator("[col-id=state]")).to_have_text("killed")
        # Its place is free for the one that waited.
        wait_for_traces(page, 3)

        page.click("#kill-all")
        page.click("#kill-confirm")
        eventually(lambda: all(trial.status is TrialStatus.KILLED for trial in search.status.trials), 30)
        expect(page.locator("#kill-all")).to_be_disabled()
        expect(page.locator("#kill-selected")).to_be_disabled()
        page.reload()
        wait_for_traces(page, 3)
        expect(page.locator(".state-killed")).to_have_count(3)
        page.screenshot(path=screenshots / "killed.png")
        assert problems == []
        expect(page.locator("#away")).to_be_empty()
    expect(page.locator("#away")).to_contain_text("does not answer")
    page.close()
    with serve(root, port=0) as server:
        page, _ = open_page(browser, server)
        wait_for_traces(page, 3)
        expect(page.locator("#kill-all")).to_be_disabled()
        page.close()


def trial_status(search: cirrus.GridSearch, key: str) -> TrialStatus:
    """Return the status of a trial, by its name in the dashboard."""
    return search.status.trials[int(key.rpartition(":")[2])].status


def zoom_in_and_wait(page: Page) -> None:
    """Drag over the chart; the range stays while curves go on growing."""
    box = page.locator("#chart-loss .nsewdrag").bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] * 0.2, box["y"] + box["height"] * 0.3
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + box["width"] * 0.3, y + box["height"] * 0.5, steps=5)
    page.mouse.up()
    reading = "() => document.querySelector('#chart-loss .js-plotly-plot').layout.xaxis.range.map(Number)"
    zoomed = page.evaluate(reading)
    page.wait_for_function(
        """end => document.querySelector('#chart-loss .js-plotly-plot').data
           .some(t => t.x[t.x.length - 1] > end)""",
        arg=max(trace["end"] for trace in traces(page)),
    )
    assert page.evaluate(reading) == pytest.approx(zoomed)
    page.mouse.dblclick(x, y)


def click_curve(page: Page, run_id: str) -> None:
    """Click the middle of a curve."""
    place = page.evaluate(
        """id => {
            const chart = document.querySelector('#chart-loss .js-plotly-plot');
            const layout = chart._fullLayout, trace = chart.data.find(t => t.meta === id);
            const box = chart.querySelector('.nsewdrag').getBoundingClientRect();
            const i = Math.floor(trace.x.length / 2);
            return [box.x + layout.xaxis.d2p(trace.x[i]), box.y + layout.yaxis.d2p(trace.y[i])];
        }""",
        run_id,
    )
    page.mouse.move(*place)
    page.wait_for_selector("#chart-loss .hoverlayer .hovertext")
    page.mouse.click(*place)
    expect(page.locator("#detail h2")).to_contain_text("Trial")


def kill_one(page: Page, run_id: str) -> None:
    """Tick a run and kill it; the question can be declined."""
    button = page.locator("#kill-selected")
    expect(button).to_be_disabled()
    tick(page, run_id)
    expect(button).to_be_enabled()
    page.click("#kill-selected")
    expect(page.locator("#kill-dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#kill-dialog")).not_to_be_visible()
    expect(row(page, run_id).locator("[col-id=state]")).to_have_text("running")
    page.click("#kill-selected")
    page.click("#kill-confirm")
    expect(page.locator("#toast")).to_contain_text("ending 1 run")


@pytest.fixture
def ended(tmp_path: Path) -> Iterator[DashboardServer]:
    """A dashboard of twelve runs that ended."""
    for n in range(12):
        losses = 0.7 - 0.2 * (1 - np.exp(-np.arange(1, 400) * (n + 1) / 600))
        rate = 0.0101538 * 2**n
        make_run(tmp_path, f"run-{n:02d}", losses, learning_rate=rate, optimizer=("ftrl", "adam")[n % 2])
    with serve(str(tmp_path), port=0) as server:
        yield server


def test_every_panel_draws(browser, ended, screenshots):
    """Colours, coordinates, importance, comparison, notes, hiding and CSV; tabs by keyboard."""
    page, problems = open_page(browser, ended)
    wait_for_traces(page, 12)
    expect(page.locator("#legend")).to_contain_text("learning_rate (log)")
    rate = row(page, "run-03").locator("[col-id='p:learning_rate']")
    expect(rate).to_have_text("0.08123")
    assert rate.bounding_box()["width"] < 180
    row(page, "run-03").locator("[col-id=show] input").click()
    wait_for_traces(page, 11)
    page.get_by_role("button", name="Show all").click()
    wait_for_traces(page, 12)

    tick(page, "run-03")
    expect(page.locator("#detail h2")).to_have_text("run-03")
    page.fill("#note-text", "the third")
    page.click("#note-save")
    expect(page.locator("#toast")).to_have_text("note kept")
    tick(page, "run-04")

    page.locator("#tab input").first.focus()
    for name, text in (("parallel", "One line a run"), ("importance", "forest"), ("compare", "run-04")):
        page.keyboard.press("ArrowRight")
        expect(page.locator(f"#panel-{name}")).to_contain_text(text)
        page.screenshot(path=screenshots / f"{name}.png")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#panel-timeline")).to_contain_text("Nothing is known")
    page.keyboard.press("ArrowRight")

    with page.expect_download() as download:
        page.get_by_role("button", name="Runs as CSV").click()
    assert "the third" in Path(download.value.path()).read_text()
    page.reload()
    wait_for_traces(page, 12)
    assert problems == []
    page.close()


def test_a_tick_outlives_new_rows(browser, ended):
    """What is ticked stays so, and is known, though rows come in at that very moment."""
    page, problems = open_page(browser, ended)
    wait_for_traces(page, 12)
    for run_id in ("run-03", "run-04"):
        box_of(page, run_id).evaluate(
            """box => {
                const grid = window.dash_ag_grid.getApi("grid");
                box.click();
                const rows = [];
                grid.forEachNode((node) => rows.push({...node.data, state: node.data.state + "!"}));
                grid.setGridOption("rowData", rows);
            }"""
        )
        expect(row(page, run_id).locator("[col-id=state]")).to_contain_text("!")
        expect(box_of(page, run_id)).to_be_checked()
    page.locator("#tab").get_by_text("Compare").click()
    expect(page.locator("#panel-compare")).to_contain_text("run-03")
    expect(page.locator("#panel-compare")).to_contain_text("run-04")
    page.locator("#tab").get_by_text("Runs").click()
    tick(page, "run-03")
    expect(box_of(page, "run-03")).not_to_be_checked()
    expect(box_of(page, "run-04")).to_be_checked()
    assert problems == []
    page.close()


def test_charts_are_drawn_as_one_likes(browser, ended):
    """Logarithmic axes, groups with bands, a run that is pinned among the best."""
    page, problems = open_page(browser, ended)
    wait_for_traces(page, 12)
    chart = "document.querySelector('#chart-loss .js-plotly-plot')"
    axes = f"() => ['xaxis', 'yaxis'].map(axis => {chart}.layout[axis].type)"
    assert page.evaluate(axes) == ["linear", "linear"]
    page.get_by_text("log loss").click()
    page.wait_for_function(f"() => ({axes})().join() === 'linear,log'")
    page.get_by_text("log x").click()
    page.wait_for_function(f"() => ({axes})().join() === 'log,log'")

    row(page, "run-00").locator("[col-id=pin] input").click()
    page.get_by_text("best", exact=True).click()
    page.locator("#count").fill("2")
    page.locator("#count").press("Enter")
    wait_for_traces(page, 3)
    assert {trace["id"] for trace in traces(page)} == {"run-00", "run-10", "run-11"}
    page.get_by_text("all", exact=True).click()
    wait_for_traces(page, 12)

    page.click("#group-by")
    page.get_by_role("option", name="optimizer").click()
    wait_for_traces(page, 6)  # of each group two edges and a mean
    names = page.evaluate(f"() => {chart}.data.map(trace => trace.name).filter(Boolean)")
    assert names == ["optimizer = adam (6)", "optimizer = ftrl (6)"]
    assert problems == []
    page.close()


def test_it_can_be_read_on_a_phone(browser, ended, screenshots):
    """On a narrow screen nothing is wider than the screen, and everything is there."""
    page, problems = open_page(browser, ended, viewport=PHONE, is_mobile=True, has_touch=True)
    wait_for_traces(page, 12)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    expect(row(page, "run-11").locator("[col-id=state]")).to_have_text("finished")
    page.screenshot(path=screenshots / "phone.png")
    assert problems == []
    page.close()


def test_one_run_is_enough(browser):
    """A single run has a curve, and its table no columns for hyperparameters."""
    with tempfile.TemporaryDirectory() as folder:
        make_run(Path(folder), "alone", dollars=0.0)
        with serve(folder, port=0) as server:
            page, problems = open_page(browser, server)
            wait_for_traces(page, 1)
            for chart in ("#chart-loss-cost", "#chart-cost-time"):
                expect(page.locator(chart)).to_contain_text("Nothing costs on this backend.")
            assert page.locator(".ag-header [col-id^='p:']").count() == 0
            assert problems == []
            page.close()


def test_it_shows_inline_in_a_notebook(browser, ended):
    """What a notebook is given to show is the living page, though it comes from another port."""
    cell = f"<!doctype html><body>{ended._repr_html_()}</body>".encode()

    class Notebook(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(cell)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Notebook) as notebook:
        threading.Thread(target=notebook.serve_forever, daemon=True).start()
        page = browser.new_page(viewport=DESKTOP)
        page.goto(f"http://localhost:{notebook.server_port}/")
        frame = page.frame_locator("iframe")
        expect(frame.locator(".ag-center-cols-container .ag-row").first).to_be_visible()
        expect(frame.locator("#chart-loss .scatterlayer .trace")).to_have_count(12)
        page.close()
        notebook.shutdown()
