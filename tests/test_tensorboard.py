import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams import plugin_data_pb2

from model.config import TrialConfig
from model.training.scores import Scores
from sweep.config import Parameter
from sweep.tensorboard.event_file import EventFile
from sweep.tensorboard.sweep_writer import SweepWriter, comparison_link
from sweep.tensorboard.trial_writer import TrialWriter, end_session
from sweep.tensorboard.writer import Writer


def accumulated(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()


def test_all_that_was_logged_before_sigkill_is_on_disk(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from sweep.tensorboard.trial_writer import TrialWriter
writer = TrialWriter(Path({str(tmp_path)!r}))
for step in range(1000):
    writer.log(step, {{"train/loss": step}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    points = accumulated(tmp_path).Scalars("train/loss")
    assert [(point.step, point.value) for point in points] == [(step, step) for step in range(1000)]


def test_rewinding_leaves_no_trace_and_one_file_per_run(tmp_path: Path) -> None:
    writer = TrialWriter(tmp_path)
    writer.log(1, {"train/loss": 1.0})
    writer.epoch(1, Scores(loss=1, error_rate=1, cer=1), Scores(loss=2, error_rate=1, cer=1), 1.0)
    positions = writer.positions
    writer.log(2, {"train/loss": 9.0})
    writer.epoch(2, Scores(loss=9, error_rate=1, cer=1), Scores(loss=9, error_rate=1, cer=1), 1.0)
    writer.close()
    again = TrialWriter(tmp_path)
    again.rewind(positions)
    again.log(2, {"train/loss": 2.0})
    again.epoch(2, Scores(loss=3, error_rate=1, cer=1), Scores(loss=4, error_rate=1, cer=1), 1.0)
    again.close()
    assert [(p.step, p.value) for p in accumulated(tmp_path).Scalars("train/loss")] == [(1, 1.0), (2, 2.0)]
    assert [(p.step, p.value) for p in accumulated(tmp_path).Scalars("epoch/loss")] == [(1, 2.0), (2, 4.0)]
    assert [(p.step, p.value) for p in accumulated(tmp_path / "train").Scalars("epoch/loss")] == [(1, 1.0), (2, 3.0)]
    assert len(list(tmp_path.rglob("events.out.*"))) == 2


def test_a_record_that_does_not_fit_on_the_disk_is_taken_back_and_the_error_raised(tmp_path: Path) -> None:
    import resource

    code = f"""
import resource, signal, sys
from pathlib import Path
from sweep.tensorboard.trial_writer import TrialWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then a write past the limit fails with EFBIG, as on a full disk
writer = TrialWriter(Path({str(tmp_path)!r}))
resource.setrlimit(resource.RLIMIT_FSIZE, (20011, resource.RLIM_INFINITY))
step = 0
try:
    while True:
        writer.log(step, {{"train/loss": step}})
        step += 1
except OSError:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    writer.log(step, {{"train/loss": -1.0}})
    print(step)
"""
    assert resource.RLIMIT_FSIZE is not None
    written = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    points = accumulated(tmp_path).Scalars("train/loss")
    assert [point.value for point in points] == [*range(written), -1.0]
    assert written > 100


def test_two_processes_may_append_whole_records_to_one_file(tmp_path: Path) -> None:
    first = Writer(tmp_path)
    pid = os.fork()
    if pid == 0:
        second = Writer(tmp_path)
        for step in range(500):
            second.add_scalar("b", step, step)
        os._exit(0)
    for step in range(500):
        first.add_scalar("a", step, step)
    os.waitpid(pid, 0)
    for tag in "ab":
        assert [point.value for point in accumulated(tmp_path).Scalars(tag)] == list(range(500))
    assert len(list(tmp_path.iterdir())) == 1


def test_an_event_file_begins_with_its_version(tmp_path: Path) -> None:
    file = EventFile(tmp_path)
    file.cut(0)
    file.close()
    (event,) = EventFileLoader(str(file.path)).Load()
    assert event.file_version == "brain.Event:2"


def hparams(folder: Path, tag: str) -> list[plugin_data_pb2.HParamsPluginData]:
    found = []
    for event in EventFileLoader(str(next(folder.glob("events.*")))).Load():
        for value in event.summary.value:
            if value.tag == f"_hparams_/{tag}":
                found.append(plugin_data_pb2.HParamsPluginData.FromString(value.metadata.plugin_data.content))
    return found


def test_a_trials_hyperparameters_are_one_session_with_one_end(tmp_path: Path) -> None:
    writer = TrialWriter(tmp_path)
    writer.begin("0001_lr=0.1", {"optimizer.lr": 0.1, "schedule.name": "step"}, TrialConfig(), "text: 1\n")
    writer.close()
    end_session(tmp_path, success=False)
    (start,) = hparams(tmp_path, "session_start_info")
    assert start.session_start_info.hparams["optimizer.lr"].number_value == 0.1
    assert start.session_start_info.hparams["schedule.name"].string_value == "step"
    (end,) = hparams(tmp_path, "session_end_info")
    assert end.session_end_info.status == 2  # STATUS_FAILURE
    assert "graph" not in "".join(accumulated(tmp_path).Tags()["tensors"])
    assert accumulated(tmp_path).Tags()["graph"] is True


def test_columns_have_the_searched_domains(tmp_path: Path) -> None:
    space = {
        "optimizer.lr": Parameter(loguniform=(1e-4, 1e-2)),
        "schedule.name": Parameter.model_validate(
            {
                "choice": {
                    "cosine": {"schedule.final": {"uniform": [0, 0.1]}},
                    "linear": {"schedule.final": {"uniform": [0.05, 0.5]}},
                }
            }
        ),
    }
    SweepWriter(tmp_path, space).close()
    (experiment,) = hparams(tmp_path, "experiment")
    columns = {info.name: info for info in experiment.experiment.hparam_infos}
    assert list(columns) == ["optimizer.lr", "schedule.name", "schedule.final"]
    assert columns["optimizer.lr"].domain_interval.max_value == 1e-2
    assert [v.string_value for v in columns["schedule.name"].domain_discrete.values] == ["cosine", "linear"]
    assert columns["schedule.final"].domain_interval.min_value == 0
    assert columns["schedule.final"].domain_interval.max_value == 0.5
    metrics = [info.name.tag for info in experiment.experiment.metric_infos]
    assert metrics == ["epoch/error_rate", "best/error_rate", "epoch/cer", "epoch/loss"]


def test_pictures_come_back_as_they_were_drawn(tmp_path: Path) -> None:
    from io import BytesIO

    from PIL import Image

    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    writer = TrialWriter(tmp_path)
    writer.image("valid/badcase", picture, 3)
    writer.close()
    (event,) = accumulated(tmp_path).Images("valid/badcase")
    assert event.step == 3
    assert np.array_equal(np.asarray(Image.open(BytesIO(event.encoded_image_string))), picture)


@pytest.mark.parametrize("color_by", ["schedule", None])
def test_the_link_pins_the_unsmoothed_error_rate(color_by: str | None) -> None:
    from urllib.parse import parse_qs, urlsplit

    query = parse_qs(urlsplit(comparison_link("http://localhost:6006", color_by)).query)
    assert query["pinnedCards"] == ['[{"plugin":"scalars","tag":"epoch/error_rate"}]']
    assert query["smoothing"] == ["0"]
    assert query["runFilter"] == ["^[^/]*$"]
    assert ("runColorGroup" in query) is bool(color_by)
