"""A finished sweep as a person sees it: TensorBoard's pages and the report in a real browser."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from model.network.crnn import CRNN
from sweep.config import read_trial
from tests.board import Board, serve
from tests.browser import chromium, visit
from tests.processes import LocalSweep, wait_for
from tests.results import curves, leaderboard, pictures, printed_link

pytestmark = pytest.mark.browser

# After some seconds each reads a different share: the curves lie apart.
POINTS = """[{optimizer.lr: 2e-2, schedule.name: onecycle}, {optimizer.lr: 1e-2, schedule.name: constant},
    {optimizer.lr: 2e-3, schedule.name: constant}, {optimizer.lr: 6e-3, schedule.name: constant}]"""

Open = Callable[[str], AbstractContextManager[Page]]
Last = dict[tuple[str, str], float]  # (run, tag) → its last value


@pytest.fixture(scope="module")
def root(arguments_in: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    settings = {
        "search__trials": 4,
        "search__points": POINTS,
        "search__early_stopping": "none",
        "data__train_images": 960,
        "data__valid_images": 100,
        "training__epochs": 6,
        "network__dropout": 0,
    }
    sweep = LocalSweep(folder / "printed.txt", *arguments_in(folder, "tiny", **settings))
    assert sweep.wait()[0] == 0, sweep.output.read_text()
    return folder / "tiny"


@pytest.fixture(scope="module")
def board(root: Path) -> Iterator[Board]:
    with serve(root / "tensorboard") as board:
        board.wait_for_all_of(root)
        wait_for(lambda: all(row["sessions"][0]["status"] == "STATUS_SUCCESS" for row in board.sessions()))
        yield board


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def look_at(browser: Browser, request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens an address; the test's picture stays where SCREENSHOTS says."""
    folder = Path(os.environ.get("SCREENSHOTS", tmp_path))
    name = request.node.name.removeprefix("test_")
    return lambda address: visit(browser, address, folder / f"{name}.png")


@pytest.fixture(scope="module")
def names(root: Path) -> list[str]:
    return sorted(row["trial"] for row in leaderboard(root))


@pytest.fixture(scope="module")
def last(root: Path) -> Last:
    return {key: points[-1][1] for key, points in curves(root).items()}


def table(rows: Locator) -> list[list[str]]:
    """The words in each row's cells that hold any."""
    return [[cell.strip() for cell in row.split("\t") if cell.strip()] for row in rows.all_inner_texts()]


def colors_of_runs(page: Page) -> dict[str, tuple[int, ...]]:
    """As the list of runs shows them."""
    rows = page.locator("runs-data-table tb-data-table-content-row")
    swatches = rows.locator(".run-color-swatch").evaluate_all("all => all.map(one => one.style.backgroundColor)")
    colors = [tuple(map(int, re.findall(r"\d+", swatch))) for swatch in swatches]
    return {name: color for (name,), color in zip(table(rows), colors, strict=True)}


def seen(part: Locator) -> Image.Image:
    """A part of the page as it is on the screen."""
    return Image.open(BytesIO(part.screenshot())).convert("RGB")


def assert_drawn_in(chart: Locator, colors: set[tuple[int, ...]]) -> None:
    """Each colour covers more than some stray pixels of the chart, at the latest when it has been drawn."""

    def drawn() -> set[tuple[int, ...]]:
        pixels = np.asarray(seen(chart), int)
        return {color for color in colors if (abs(pixels - color).max(axis=-1) < 20).sum() > 50}

    wait_for(lambda: drawn() == colors)


def test_the_printed_link_lists_every_trial_and_draws_its_validation_curve(
    root: Path, board: Board, look_at: Open, names: list[str], last: Last
) -> None:
    with look_at(board.address + printed_link(root)) as page:
        expect(page.locator("runs-data-table tb-data-table-content-row")).to_have_count(5)
        colors = colors_of_runs(page)
        assert list(colors) == ["_sweep", *names]
        assert len(set(colors.values())) == 3  # a schedule's trials share one

        card = page.locator("metrics-pinned-view scalar-card")
        rows = card.locator("tb-data-table-content-row")
        expect(rows).to_have_count(4)
        for name, row in zip(names, table(rows), strict=True):
            assert row[0] == name
            assert float(row[1]) == pytest.approx(last[name, "epoch/error_rate"], abs=1e-4)
        assert_drawn_in(card.locator("canvas"), {colors[name] for name in names})


def test_validation_and_training_curves_stand_in_one_chart(
    root: Path, board: Board, look_at: Open, names: list[str], last: Last
) -> None:
    pin = quote('[{"plugin":"scalars","tag":"epoch/error_rate"}]')
    runs = sorted(run for name in names for run in (name, f"{name}/train"))
    with look_at(f"{board.address}/?smoothing=0&pinnedCards={pin}#timeseries") as page:
        card = page.locator("metrics-pinned-view scalar-card")
        rows = card.locator("tb-data-table-content-row")
        expect(rows).to_have_count(8)
        found = {row[0]: float(row[1]) for row in table(rows)}
        assert sorted(found) == runs
        assert found == pytest.approx({run: last[run, "epoch/error_rate"] for run in runs}, abs=1e-4)

        best = leaderboard(root)[0]["trial"]
        page.get_by_role("textbox", name="Filter runs (regex)").press_sequentially(f"^{best[:4]}")
        expect(rows).to_have_count(2)
        colors = colors_of_runs(page)
        assert list(colors) == [best, f"{best}/train"]
        assert len(set(colors.values())) == 2
        assert_drawn_in(card.locator("canvas"), set(colors.values()))


def test_badcases_of_every_trial_are_drawn(root: Path, board: Board, look_at: Open, names: list[str]) -> None:
    logged = pictures(root)
    with look_at(f"{board.address}/#images") as page:
        page.locator("tf-category-paginated-view button.heading").filter(has_text="valid").click()
        for tag in ("train/badcase", "valid/badcase"):
            for name in names:
                picture = page.locator("tf-image-loader").filter(has_text=name).filter(has_text=tag)
                picture.scroll_into_view_if_needed()  # only then is it loaded
                image = picture.locator("img")
                expect(image).to_be_visible()
                image.evaluate("image => image.decode()")
                written = Image.open(BytesIO(logged[name, tag][-1][1])).convert("RGB")
                assert image.evaluate("image => [image.naturalWidth, image.naturalHeight]") == list(written.size)
                # A picture cut short has its size and is half drawn. Coarsely seen, how it was shrunk does not matter.
                shown, meant = (
                    np.asarray(one.resize((40, 30), Image.Resampling.BOX), int) for one in (seen(image), written)
                )
                assert abs(shown - meant).mean() < 4, (name, tag)


def test_the_graph_shows_the_network_and_opens_to_its_layers(
    root: Path, board: Board, look_at: Open, names: list[str]
) -> None:
    layers = CRNN(read_trial(root / "trials" / names[0] / "config.yaml")).named_children()
    with look_at(f"{board.address}/#graphs") as page:
        scene = page.locator("tf-graph-scene svg#svg")
        for name in ("input", "CRNN", "output"):
            expect(scene.locator(f'g.node[data-name="{name}"]')).to_be_visible()
        assert scene.locator("path.edgeline").count() >= 2
        scene.locator('g.node[data-name="CRNN"]').dblclick()
        for name, layer in layers:
            label = f"{type(layer).__name__}[{name}]"
            expect(scene.locator(f'g.node[data-name="CRNN/{label}"]')).to_be_in_viewport()  # once it has moved there


METRICS = ["epoch/error_rate", "best/error_rate", "epoch/cer", "epoch/loss"]
COLUMNS = ["optimizer.lr", "schedule.name", *METRICS]


def test_the_hparams_table_has_a_row_for_each_trial_with_the_leaderboards_numbers(
    root: Path, board: Board, look_at: Open, last: Last
) -> None:
    with look_at(f"{board.address}/#hparams") as page:
        grid = page.locator("tf-hparams-table-view vaadin-grid").first
        # Its rows are placeholders into which the cells are put.
        read = """grid => [...grid.shadowRoot.querySelectorAll("thead tr, tbody#items tr")]
            .filter(row => !row.hidden)
            .map(row => [...row.querySelectorAll("slot")].map(slot => slot.assignedNodes()[0].textContent.trim()))
            .filter(row => row[0])"""
        wait_for(lambda: len(grid.evaluate(read)) == 5)
        header, *rows = grid.evaluate(read)
        assert header == ["Trial ID", "Show Metrics", *COLUMNS]
        shown = {row[0]: dict(zip(header, row, strict=False)) for row in rows}
        assert len(shown) == 4
        for trial in leaderboard(root):
            row = shown[trial["trial"]]
            assert row["schedule.name"] == trial["schedule.name"]
            # it shows five digits
            assert float(row["optimizer.lr"]) == pytest.approx(float(trial["optimizer.lr"]), rel=1e-4)
            assert float(row["best/error_rate"]) == pytest.approx(float(trial["error_rate"]), rel=1e-4)
            for tag in METRICS:
                assert float(row[tag]) == pytest.approx(last[trial["trial"], tag], rel=1e-4)


def test_the_parallel_coordinates_draw_a_line_for_each_trial_through_every_column(board: Board, look_at: Open) -> None:
    with look_at(f"{board.address}/#hparams") as page:
        page.get_by_role("tab", name="Parallel Coordinates View").click()
        plot = page.locator("tf-hparams-parallel-coords-plot svg#svg")
        expect(plot.locator(".axis-title")).to_have_text(COLUMNS)
        lines = plot.locator(".foreground path")
        expect(lines).to_have_count(4)
        paths = lines.evaluate_all("all => all.map(line => line.getAttribute('d'))")
        assert len(set(paths)) == 4
        for path in paths:
            corners = re.findall(r"[ML]([\d.]+),([\d.]+)", path)
            assert len(corners) == len(COLUMNS), path
        for line in lines.all():
            expect(line).to_be_visible()


# What a plot of the report consists of, by its title: so many of these.
PLOTS = {
    "Learning curves": (".scatterlayer .trace .js-line", 4),
    "Error over learning rate": (".scatterlayer .trace .point", 4),
    "The winners' learning rates": (".scatterlayer .trace .js-line", 4),
    "What matters": (".barlayer .point", 2),
    "All values at once": (".scatterlayer .trace .js-line", 4),
    "What each schedule costs and gains": ("tr", 1 + 2),
    "When each trial ran": (".barlayer .point", 4),
    "Confused characters": (".heatmaplayer image", 1),
}


def test_the_report_draws_every_plot_and_image_from_its_one_file(root: Path, look_at: Open) -> None:
    with look_at((root / "report.html").as_uri()) as page:
        expect(page.locator(".verdict")).to_contain_text(f"{leaderboard(root)[0]['trial']} reads best")
        board = page.locator("table").first.locator("tr").filter(has=page.locator("td"))
        assert [row[:3] for row in table(board)] == [[r["rank"], r["trial"], r["state"]] for r in leaderboard(root)]

        expect(page.locator(".plotly-graph-div")).to_have_count(len(PLOTS) - 1)  # one is a table
        for title, (mark, count) in PLOTS.items():
            plot = page.locator("section").filter(has=page.get_by_role("heading", name=title, exact=True))
            expect(plot.locator("table" if mark == "tr" else ".main-svg").first).to_be_visible()
            expect(plot.locator(mark)).to_have_count(count)

        images = page.locator(".worst img")
        assert images.count() > 0
        for image in images.all():
            image.evaluate("image => image.decode()")
            assert image.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [64, 32]


PAPER = 718  # pixels of an A4 page between its margins


def test_the_report_prints_dark_on_white_with_nothing_cut_off(root: Path, browser: Browser, tmp_path: Path) -> None:
    address = (root / "report.html").as_uri()
    with visit(browser, address, Path(os.environ.get("SCREENSHOTS", tmp_path)) / "the_report_prints.png") as page:
        expect(page.locator(".main-svg").first).to_be_visible()
        page.emulate_media(media="print", color_scheme="dark")
        page.set_viewport_size({"width": PAPER, "height": 1000})
        right = "all => Math.max(...all.map(one => one.getBoundingClientRect().right))"
        for part in (".main-svg", "table", "pre", ".worst figure", ".verdict"):
            assert page.locator(part).count()
            wait_for(lambda part=part: page.locator(part).evaluate_all(right) <= PAPER)
        assert page.evaluate("document.documentElement.scrollWidth") <= PAPER
        pixels = np.asarray(seen(page.locator("body")).convert("L"))
        assert (pixels > 250).mean() > 0.5
        words = page.locator(".verdict p").first
        assert np.asarray(seen(words).convert("L")).min() < 80
        page.emulate_media(media="screen")
        page.set_viewport_size({"width": 1400, "height": 900})
        wait_for(lambda: page.locator(".main-svg").evaluate_all(right) > 1000)


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        ("console.error('broken')", "console: broken"),
        ("throw new Error('broken')", "uncaught: broken"),
        ("fetch('http://elsewhere.invalid/')", "asked elsewhere: http://elsewhere.invalid/"),
        ("new WebSocket('ws://elsewhere.invalid/')", "opened a socket: ws://elsewhere.invalid/"),
        ("document.write('<p class=warning-message>down</p>')", "banner: down"),
    ],
)
def test_a_page_that_does_what_none_may_is_noticed(
    browser: Browser, tmp_path: Path, script: str, complaint: str
) -> None:
    address = tmp_path / "page.html"
    address.write_text(f"<script>{script}</script>")
    with (
        pytest.raises(AssertionError, match=re.escape(complaint)),
        visit(browser, address.as_uri(), tmp_path / "page.png") as page,
    ):
        page.wait_for_load_state("networkidle")
