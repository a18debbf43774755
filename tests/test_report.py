"""The verdict's statistics against figures worked out by hand, and the page of a real sweep."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sweep.config import Parameter, load
from sweep.page import Page, confusions
from sweep.report import main
from sweep.searcher import Search
from sweep.significance import interval, p_value
from sweep.trial import Workplace
from tests.processes import LocalSweep
from tests.results import leaderboard


def test_an_error_rates_interval_is_wilsons() -> None:
    # (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n) with z = 1.96
    assert interval(10, 100) == pytest.approx((0.0552, 0.1744), abs=1e-4)
    assert interval(0, 2000) == pytest.approx((0, 0.00192), abs=1e-5)


def test_two_recognisers_are_compared_on_the_images_that_they_read_differently() -> None:
    first = np.array([True] * 1 + [False] * 9 + [True] * 50 + [False] * 40)
    second = np.array([False] * 1 + [True] * 9 + [True] * 50 + [False] * 40)
    assert p_value(first, second) == pytest.approx(2 * (1 + 10) / 2**10)  # 1 against 9 of 10 fair coins, both tails
    assert p_value(second, first) == p_value(first, second)
    assert p_value(first, first) == 1


def test_confused_characters_are_those_at_one_place() -> None:
    assert confusions("AB0", "ABO") == [("0", "O")]
    assert confusions("1234", "134") == [("2", "lost")]
    assert confusions("12", "12") == []


@pytest.mark.parametrize(
    ("distribution", "value", "wider"),
    [
        ({"loguniform": [1e-4, 1e-2]}, 9.9e-3, "{loguniform: [0.0001, 0.1]}"),
        ({"loguniform": [1e-4, 1e-2]}, 1.05e-4, "{loguniform: [1e-05, 0.01]}"),
        ({"uniform": [0.0, 1.0]}, 0.96, "{uniform: [0, 2]}"),
        ({"uniform": [0.0, 1.0]}, 0.94, None),
        ({"loguniform": [1e-4, 1e-2]}, 1e-3, None),
    ],
)
def test_a_winner_at_the_edge_of_its_range_is_flagged_with_a_wider_one(
    distribution: dict[str, Any], value: float, wider: str | None
) -> None:
    found = Page._edge("optimizer.lr", Parameter.model_validate(distribution), value)
    assert [wider in sentence for sentence in found if wider] == ([True] if wider else [])
    assert bool(found) is bool(wider)


@pytest.fixture(scope="module")
def root(arguments_in: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    settings = {"search__trials": 6, "search__early_stopping": "none", "data__valid_images": 300}
    sweep = LocalSweep(folder / "printed.txt", *arguments_in(folder, "r", **settings))
    assert sweep.wait()[0] == 0, sweep.output.read_text()
    return folder / "r"


def page(root: Path) -> Page:
    config = load(root / "sweep.yaml")
    workplace = Workplace(root, Path(str(config.data.path)), threads=1, gpus=0)
    return Page(config, workplace, Search(config, root / "study.db").ranked())


def test_the_page_names_every_trial_and_asks_nothing_of_the_network(root: Path) -> None:
    html = (root / "report.html").read_text()
    assert len(html) < 6e6
    own = html.replace(re.findall(r"<script>.*?</script>", html, re.DOTALL)[0], "")  # Plotly's code names addresses
    assert "http://" not in own
    assert "https://" not in own
    for row in leaderboard(root):
        assert own.count(row["trial"]) > 2
    assert f"{leaderboard(root)[0]['trial']} reads best" in own
    for title in ("Learning curves", "What matters", "When each trial ran", "Confused characters", "McNemar"):
        assert title in own
    assert own.count("data:image/png;base64,") == len(page(root).worst()) > 0


def test_the_readings_that_are_compared_are_those_that_were_scored(root: Path) -> None:
    rows = {row["trial"]: row for row in leaderboard(root)}
    readings = page(root).readings
    assert len(readings) == 6
    for reading in readings:
        assert reading.wrong.mean() == pytest.approx(float(rows[reading.record.name]["error_rate"]))
    worst = page(root).worst()
    assert [item["count"] for item in worst] == sorted((item["count"] for item in worst), reverse=True)
    for item in worst:
        assert all((text != item["true"]) is wrong for text, wrong in item["readings"])


def test_the_command_writes_the_same_page_again(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (root / "report.html").read_bytes()
    (root / "report.html").unlink()
    assert main([str(root)]) == 0
    assert capsys.readouterr().out.strip().endswith("report.html")
    assert (root / "report.html").read_bytes() == before


def test_what_is_no_sweep_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nowhere")]) == 2
    message = capsys.readouterr().err
    assert "nowhere" in message
    assert "sweep.yaml" in message
