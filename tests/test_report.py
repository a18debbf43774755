"""The verdict's statistics against figures worked out by hand, and the page of a real sweep."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.request import urlopen
from wsgiref.simple_server import make_server

import numpy as np
import optuna_dashboard
import pytest
from markupsafe import escape

from model.data.alphabet import Alphabet
from sweep.config import Parameter, load
from sweep.config.workplace import Workplace
from sweep.report import main
from sweep.search.records import TrialRecord
from sweep.search.search import Search
from sweep.verdict import leaderboard as leaderboard_table
from sweep.verdict import over_rate
from sweep.verdict import page as page_module
from sweep.verdict.comparison import Comparison
from sweep.verdict.misreadings import confusions
from sweep.verdict.page import Page
from sweep.verdict.pictures import error_over_learning_rate
from sweep.verdict.significance import SeedsAndImages, holm, interval, p_value
from sweep.verdict.verdict import Reading, Verdict, _compared
from sweep.wording.formatting import probability
from tests.board import serve
from tests.conftest import QUICKSTART
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


def test_p_values_of_many_comparisons_are_corrected_as_holm_says() -> None:
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def seeds_like(means: Sequence[float], images: int) -> np.ndarray:
    """bool (S, N) with exactly these means, each seed's errors on images of its own choice."""
    draw = np.random.default_rng(1)
    rows = [draw.permutation(np.arange(images) < round(mean * images)) for mean in means]
    return np.stack(rows)


def test_a_p_value_that_a_float_rounds_to_zero_is_not_told_as_zero() -> None:
    best, other = np.zeros(4000, dtype=bool), np.ones(4000, dtype=bool)
    assert p_value(best, other) == 0
    assert probability(p_value(best, other)) == probability(p_value(best, other), "≤") == "< 1e-300"
    assert (probability(0.034), probability(0.034, "≥")) == ("0.034", "≥ 0.034")


def test_an_interval_over_seeds_is_students_when_the_images_are_many() -> None:
    wrong = seeds_like([0.10, 0.12, 0.14], 1_000_000)
    low, high = SeedsAndImages([wrong]).interval(wrong)
    # 0.12 ± t(2 degrees, 97.5 %) · 0.02 / √3
    assert (low, high) == pytest.approx((0.12 - 4.303 * 0.02 / 3**0.5, 0.12 + 4.303 * 0.02 / 3**0.5), abs=1e-3)


def test_seeds_that_agree_leave_the_images_uncertainty() -> None:
    wrong = np.tile(np.arange(1000) < 100, (3, 1))
    low, high = SeedsAndImages([wrong]).interval(wrong)
    assert (low, high) == pytest.approx((0.1 - 1.96 * 0.0095, 0.1 + 1.96 * 0.0095), abs=2e-4)


def test_configs_that_differ_less_than_their_seeds_are_not_told_apart() -> None:
    good, same, bad = (
        seeds_like(means, 4000) for means in ([0.02, 0.03, 0.04], [0.025, 0.03, 0.045], [0.2, 0.21, 0.22])
    )
    compared = SeedsAndImages([good, same, bad])
    assert compared.p_value(good, same) > 0.5
    assert compared.p_value(good, bad) < 1e-4
    assert compared.p_value(good, bad) == compared.p_value(bad, good)
    assert compared.p_value(good, good) == 1


def test_of_equal_configs_five_in_a_hundred_differ_significantly() -> None:
    draw = np.random.default_rng(0)

    def config() -> np.ndarray:
        return np.stack([draw.random(500) < draw.normal(0.2, 0.03) for _ in range(3)])

    pairs = [(config(), config()) for _ in range(400)]
    significant = sum(SeedsAndImages(pair).p_value(*pair) < 0.05 for pair in pairs)
    assert 4 <= significant <= 32  # 20 expected; both parts count the noise of a single reading, so rather fewer


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
    settings |= {"confirm": "{top: 2, seeds: 2}", "data__test_images": 400, "training__epochs": 6}
    sweep = LocalSweep(folder / "printed.txt", *arguments_in(folder, "r", **settings))
    assert sweep.wait()[0] == 0, sweep.output.read_text()
    return folder / "r"


def verdict(root: Path) -> Verdict:
    config = load(root / "sweep.yaml")
    workplace = Workplace(root, Path(str(config.data.cache)), threads=1, gpus=0)
    return Verdict(config, workplace, Search(config, root / "study.db"))


def page(root: Path) -> Page:
    found = verdict(root)
    return Page(found.config, found.workplace, found)


def test_the_page_names_every_trial_and_asks_nothing_of_the_network(root: Path) -> None:
    html = (root / "report.html").read_text()
    assert len(html) < 6e6
    own = html.replace(re.findall(r"<script>.*?</script>", html, re.DOTALL)[0], "")  # Plotly's code names addresses
    assert "http://" not in own
    assert "https://" not in own
    for row in leaderboard(root):
        assert own.count(row["trial"]) > 2
    for sentence in verdict(root).sentences:
        assert f"<p>{sentence}</p>" in own.replace("&#39;", "'")
    for title in (
        "Confirmed",
        "Learning curves",
        "What matters",
        "When each trial ran",
        "Confused characters",
        "McNemar",
    ):
        assert title in own
    assert own.count("data:image/png;base64,") == len(page(root).worst()) > 0


def test_a_large_sweep_is_shown_by_its_best_trials_and_counted_whole(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (leaderboard_table, page_module):
        monkeypatch.setattr(module, "SHOWN", 2)
    made = page(root)
    html = made.write(tmp_path / "report.html").read_text()
    every, sentence = made.verdict.ranked, leaderboard_table.left_out(len(made.verdict.ranked))
    assert len(every) > 2
    assert sentence == f"The best 2 of {len(every)} trials; leaderboard.csv has all."
    assert f"{sentence} Intervals, p\nand the plots of single trials cover these alone." in html
    assert [row["name"] for row in made.rows()] == [record.name for record in every[:2]]
    counted = dict(made.facts())["trials"]
    assert sum(int(part.split()[0]) for part in counted.split(", ")) == len(every)
    assert made.wall > 0
    text = leaderboard_table.as_markdown(*leaderboard_table.table(every, made.config.search.space))
    assert text.endswith(f"\n\n{sentence}")
    assert text.count("\n| ") == 3  # the line beneath the header, and two trials


def test_the_verdict_names_a_few_of_many_equals_and_counts_the_rest() -> None:
    records = [TrialRecord(number, f"{number:04d}_lr=1", {}, seconds=number + 1.0) for number in range(40)]
    wrong = np.zeros(1, bool)
    readings = [Reading(record, wrong, wrong, 0.5 if record.number else None) for record in records]
    (sentence,) = _compared(readings, "on these images")
    assert sentence.startswith("It can't be told apart from 0001, 0002,")
    assert "0012 and 27 more on these images" in sentence


def test_the_readings_that_are_compared_are_those_that_were_scored(root: Path) -> None:
    rows = {row["trial"]: row for row in leaderboard(root)}
    readings = page(root).readings
    assert len(readings) == 6 + 4
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


def test_the_report_says_what_early_stopping_saved_and_how_well_its_rungs_foretold_the_end(tmp_path: Path) -> None:
    stopping = {"name": "asha", "grace_epochs": 2, "reduction_factor": 2}
    settings = {"search.trials": 9, "search.early_stopping": stopping, "data.cache": str(tmp_path), "confirm": None}
    config = load(QUICKSTART, settings)
    search = Search(config, tmp_path / "study.db")
    while (record := search.ask()) is not None:
        error, epoch, goes_on = (10 - record.number) / 20, 0, True  # each better than all before it, but the last two
        error += 0.9 * (record.number > 6)
        while goes_on:
            epoch += 1
            scores = {"error_rate": error, "cer": error, "loss": error}
            state = "completed" if epoch == search.epochs else "running"
            told = {"state": state, "epochs": epoch, "seconds": 5.0 * epoch, "best_epoch": epoch}
            goes_on = search.report(record.number, {**told, "scores": scores, "rung_score": error})
    (tmp_path / "sweep.log").touch()
    workplace = Workplace(tmp_path, tmp_path, threads=1, gpus=0)
    facts = dict(Page(config, workplace, Verdict(config, workplace, search)).facts())
    assert facts["trials"] == "7 completed, 2 stopped"
    assert facts["early stopping"] == f"asha saved {2 * 5 * (config.training.epochs - 2)} seconds of training"
    for epoch in (2, 4):
        assert facts[f"after epoch {epoch}"] == (
            "Spearman's ρ of the averaged weights' loss with the error in the end: 1.00, over 7 completed trials"
        )


def test_top_is_a_log_directory_of_the_best_five(root: Path) -> None:
    best = [f"{row['rank']}_{row['trial']}" for row in leaderboard(root)[:5]]
    with serve(root / "top") as board:
        assert sorted(board.runs()) == sorted([*best, *(f"{name}/train" for name in best)])


def test_the_study_opens_in_optunas_dashboard(root: Path) -> None:
    dashboard = optuna_dashboard.wsgi(f"sqlite:///{root / 'study.db'}")
    with make_server("127.0.0.1", 0, dashboard) as server:
        Thread(target=server.serve_forever, daemon=True).start()

        def get(route: str) -> Any:
            with urlopen(f"http://127.0.0.1:{server.server_port}/api/{route}") as answer:
                return json.load(answer)

        (study,) = get("studies")["study_summaries"]
        trials = get(f"studies/{study['study_id']}")["trials"]
        server.shutdown()
    assert study["study_name"] == "sweep"
    assert [(trial["number"], trial["state"]) for trial in trials] == [(number, "Complete") for number in range(10)]
    best = min(float(row["error_rate"]) for row in leaderboard(root))
    assert min(float(trial["values"][0]) for trial in trials) == pytest.approx(best)


@pytest.mark.slow
def test_two_sweeps_are_compared_on_the_same_images(
    root: Path, arguments_in: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = LocalSweep(
        tmp_path / "printed.txt",
        *arguments_in(
            tmp_path, "other", search__trials=1, data__valid_images=300, search__early_stopping="none",
            search__space="{optimizer.lr: {grid: [1e-6]}}", search__searcher="grid",
        ),
    )  # fmt: skip
    assert other.wait()[0] == 0, other.output.read_text()
    assert main([str(root), str(tmp_path / "other")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert "On the same images the winner of r reads better (p = " in printed[2]
    page = (root / "compared-with-other.html").read_text()
    assert printed[-1].endswith("compared-with-other.html")
    for text in (leaderboard(root)[0]["trial"], "0000_lr=1.0e-06", "optimizer.lr", "confirm.seeds", *printed[:2]):
        assert text in page
    assert 'class="plotly-graph-div"' in page


def test_sweeps_over_other_images_are_not_compared_image_by_image(root: Path) -> None:
    mine = verdict(root)
    other = verdict(root)
    other.config = mine.config.with_values({"data.seed": 7})
    assert "judged on different images" in Comparison(mine, other).sentences[-1]


def test_what_is_no_sweep_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nowhere")]) == 2
    message = capsys.readouterr().err
    assert "FOLDER: " in message
    assert "nowhere" in message
    assert "sweep.yaml" in message


def test_the_best_is_the_config_whose_replicates_read_the_test_set_best(root: Path) -> None:
    rows = leaderboard(root)
    replicates = [row for row in rows if row["replicate_of"]]
    assert [row["replicate_of"] != "" for row in sorted(rows, key=lambda row: row["trial"])] == [False] * 6 + [True] * 4
    means: dict[str, float] = {}
    for name in {row["replicate_of"] for row in replicates}:
        errors = [float(row["test_error_rate"]) for row in replicates if row["replicate_of"] == name]
        assert len(errors) == 2
        means[name] = sum(errors) / 2
    confirmed = verdict(root).confirmed
    assert [config.record.name for config in confirmed] == sorted(means, key=lambda name: means[name])
    for config in confirmed:
        assert config.error == pytest.approx(means[config.record.name])
        assert config.interval[0] < config.error < config.interval[1]
        assert f"{config.record.name} " in " ".join(verdict(root).sentences) or config is not confirmed[0]
    best = rows[0]["replicate_of"] or rows[0]["trial"]
    assert best == confirmed[0].record.name
    runs = [row for row in rows if best in (row["trial"], row["replicate_of"])]
    assert float(rows[0]["error_rate"]) == min(float(row["error_rate"]) for row in runs)
    winner = load(root / "best.yaml")
    assert winner.training.seed == int(re.findall(r"_seed=(\d+)", rows[0]["trial"] + "_seed=0")[0])


def test_replicates_share_their_configs_row_in_hparams(root: Path) -> None:
    with serve(root / "tensorboard") as board:
        groups = board.sessions()
    assert len(groups) == 6
    sessions = {session["name"]: group["name"] for group in groups for session in group["sessions"]}
    assert sessions == {row["trial"]: row["replicate_of"] or row["trial"] for row in leaderboard(root)}


SCRIPTS = {  # four characters that stand for the sweep's own, or more
    "markup": "<>&'",
    "right to left": "אבגד",
    "spaces and marks": "a/ \u0301",
    "a large alphabet": "".join(chr(0x4E00 + place) for place in range(3000)),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_page_shows_misread_texts_and_confusions_in_any_script(root: Path, tmp_path: Path, script: str) -> None:
    found, characters = verdict(root), SCRIPTS[script]
    found.alphabet = Alphabet(characters)
    made = Page(found.config, found.workplace, found)
    html = made.write(tmp_path / "report.html").read_text()
    body = html[html.rindex("<body>") :]
    assert body.count("<bdi") == body.count("</bdi>") == len(made.worst()) * (1 + 5) > 0
    for item in made.worst():
        assert f"<bdi>{escape(item['true'])}</bdi>" in body
    confused = made.confused()
    assert confused in body
    assert ("how often" in confused) is (len(characters) > 40)
    assert ('"z":[' in confused) is (len(characters) <= 40)
    assert len(confused) < 50_000


@pytest.mark.parametrize("stuck", [{0, 2}, {0, 1, 2}, set[int]()])
def test_the_report_names_the_trials_that_never_left_the_plateau(tmp_path: Path, stuck: set[int]) -> None:
    settings = {"search.trials": 3, "search.early_stopping": "none", "data.cache": str(tmp_path), "confirm": None}
    config = load(QUICKSTART, settings)
    search = Search(config, tmp_path / "study.db")
    while (record := search.ask()) is not None:
        error, blank = (1.0, 0.97) if record.number in stuck else (0.2, 0.0)
        told = {"state": "completed", "epochs": 6, "best_epoch": 6, "seconds": 1.0, "blank_share": blank}
        search.report(record.number, {**told, "scores": {"error_rate": error, "cer": error, "loss": 2.5 * error}})
    workplace = Workplace(tmp_path, tmp_path, threads=1, gpus=0)
    found = Verdict(config, workplace, search)
    shown = [*found.sentences, *Page(config, workplace, found).warnings()]
    names = {2: "0000, 0002", 3: "All trials", 0: None}[len(stuck)]
    assert [text for text in shown if "plateau" in text] == [text for text in shown if text.startswith(str(names))]
    assert sum("plateau" in text for text in shown) == bool(stuck)
    assert any("reads best" in text for text in shown)


def test_the_report_and_tensorboard_plot_the_same_errors_over_rates_in_the_same_colors(root: Path) -> None:
    found = verdict(root)
    config, records = found.config, found.scored
    points = over_rate.points(records, config)
    assert sum(map(len, points.values())) == len(records)
    assert {point.error for group in points.values() for point in group if point.record.error_rate == 0} <= {1 / 600}
    html, picture = page(root)._over_rate(), error_over_learning_rate(records, config).astype(int)
    colors = over_rate.colors(records, config)
    assert len(set(colors.values())) == len(points) > 1
    for name, group in points.items():
        assert f'"name":"{name}"' in html
        assert colors[name] in html
        for point in group:
            assert point.record.name in html
        shade = 0.8 * np.array([int(colors[name][place : place + 2], 16) for place in (1, 3, 5)]) + 0.2 * 255
        assert (abs(picture - shade).max(axis=-1) < 8).sum() > 20
