"""study.db held, damaged, emptied, deleted or linked by others, and folders whose names mean something in a URL."""

import math
import os
import re
import shutil
import signal
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState

from sweep.config import ConfigError, SweepConfig, load
from sweep.machine import file_systems
from sweep.report import main as report
from sweep.run import main
from sweep.search import study_file, study_tables
from sweep.search.records import TrialRecord
from sweep.search.search import Search
from tests.conftest import QUICKSTART
from tests.processes import FORKS, UNCONFIRMED, LocalSweep, resume_local, saved, wait_for
from tests.results import leaderboard

ONE = {"search__trials": 1, "training__epochs": 1, "search__early_stopping": "none"}


@pytest.fixture(scope="module")
def ended(arguments_in: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep of one trial, to be copied."""
    folder = tmp_path_factory.mktemp("ended")
    sweep = LocalSweep(folder / "printed.txt", *arguments_in(folder, "r", **ONE))
    assert sweep.wait()[0] == 0, sweep.output.read_text()
    return folder / "r"


@pytest.fixture
def root(ended: Path, tmp_path: Path) -> Path:
    shutil.copytree(ended, tmp_path / "r", symlinks=True)
    return tmp_path / "r"


def config(**settings: Any) -> SweepConfig:
    return load(QUICKSTART, UNCONFIRMED | {key.replace("__", "."): value for key, value in settings.items()})


@contextmanager
def held(path: Path, *statements: str, seconds: float) -> Iterator[None]:
    """Another connection that keeps its transaction open for a while."""
    connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    for statement in statements:
        connection.execute(statement).fetchall()
    release = threading.Timer(seconds, connection.close)
    release.start()
    try:
        yield
    finally:
        release.cancel()
        release.join()
        connection.close()


HOLDS = {
    "writer": ["BEGIN IMMEDIATE"],
    "exclusive": ["BEGIN EXCLUSIVE"],
    "reader": ["BEGIN", "SELECT * FROM trials"],
}


@pytest.mark.parametrize("hold", HOLDS)
def test_a_study_that_another_program_holds_is_waited_for_and_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hold: str
) -> None:
    monkeypatch.setattr(study_file, "_QUIET", 0.2)
    told: list[str] = []
    search = Search(config(), tmp_path / "study.db", tell=told.append)
    first = search.ask()
    assert first is not None
    for seconds in (1.5, 0.5):
        with held(tmp_path / "study.db", *HOLDS[hold], seconds=seconds):
            assert search.ask() is not None
    assert told == [f"waiting for another program that holds {tmp_path / 'study.db'}"]
    search.interrupt()
    assert Search(config(), tmp_path / "study.db").records == search.records


@pytest.mark.slow
def test_sqlites_own_patience_of_five_seconds_is_not_the_sweeps(tmp_path: Path) -> None:
    search = Search(config(), tmp_path / "study.db")
    with held(tmp_path / "study.db", "BEGIN IMMEDIATE", seconds=7):
        assert search.ask() is not None


@pytest.mark.slow
@pytest.mark.parametrize("hold", HOLDS)
def test_a_study_that_stays_held_halts_the_sweep_and_it_goes_on_later(
    arguments: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    hold: str,
) -> None:
    monkeypatch.setattr(study_file, "_PATIENCE", 0.5)
    monkeypatch.setattr(study_file, "_READERS_PATIENCE", 0.5)
    root = tmp_path / "r"
    release = threading.Event()

    def hold_it() -> None:
        wait_for(lambda: saved(root, 1, "0000*"))
        with held(root / "study.db", *HOLDS[hold], seconds=100):
            release.wait(60)

    holder = threading.Thread(target=hold_it)
    holder.start()
    code = main([*arguments("r", search__trials=2, training__epochs=8), "--local"])
    release.set()
    holder.join()
    printed = capsys.readouterr().out
    assert code == 130, printed
    assert "another program holds it" in printed
    assert "to go on: " in printed
    assert "Traceback" not in printed
    assert leaderboard(root)
    code, printed = resume_local(root).wait()
    assert code == 0, printed
    assert len(leaderboard(root)) == 2


def test_ctrl_c_ends_the_waiting(tmp_path: Path) -> None:
    search = Search(config(), tmp_path / "study.db")
    press = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    with held(tmp_path / "study.db", "BEGIN EXCLUSIVE", seconds=30):
        press.start()
        with pytest.raises(KeyboardInterrupt):
            search.ask()


def zeroed(data: bytes) -> bytes:
    return data[: 3 * 4096] + bytes(4096) + data[4 * 4096 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "30 %": lambda data: data[: len(data) * 3 // 10],
    "50 %": lambda data: data[: len(data) // 2],
    "99 %": lambda data: data[: len(data) * 99 // 100],
    "noise": lambda data: os.urandom(len(data)),
    "a page": zeroed,
    "emptied": lambda data: b"",
    "text": lambda data: b"trial,state\n",
}


def contents(root: Path) -> dict[str, bytes]:
    files = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def assert_refused(root: Path, capsys: pytest.CaptureFixture[str], *named: str) -> None:
    """By --resume and by the report, in a sentence, with everything as it was."""
    before = contents(root)
    for command in (lambda: main(["--resume", str(root), "--local"]), lambda: report([str(root)])):
        code = command()
        captured = capsys.readouterr()
        assert code == 2, captured
        assert all(part in captured.err for part in named), captured.err
        assert "Traceback" not in captured.err
        assert len(captured.err.strip().splitlines()) == 1
    assert contents(root) == before


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_emptied_study_is_refused(root: Path, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    data = (root / "study.db").read_bytes()
    (root / "study.db").write_bytes(DAMAGES[damage](data))
    assert_refused(root, capsys, "study.db", "is empty" if damage == "emptied" else "is damaged")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("DROP TABLE trial_user_attributes", "trial_user_attributes"),
        ("DELETE FROM studies", "is damaged"),
        ("DELETE FROM trial_user_attributes", "record"),
        ("UPDATE alembic_version SET version_num = 'v99.0.0.a'", "optuna"),
        ("""UPDATE trial_user_attributes SET value_json = '{"number": 0, "name": "../../x", "values": {}}'""", "name"),
        ("""UPDATE trial_user_attributes SET value_json = '{"number": 7, "name": "0007", "values": {}}'""", "trial 7"),
        ("""UPDATE trial_user_attributes SET value_json = '[1, 2]'""", "is damaged"),
        (
            """UPDATE trial_user_attributes SET value_json =
            '{"number": 0, "name": "0000", "values": {"optimizer.lr": "fast"}}'""",
            "optimizer.lr",
        ),
        *((f"UPDATE trial_user_attributes SET value_json = replace(value_json, 'ERROR', '{what}')", "error_rate")
          for what in ('error_rate": 7', 'error_rate": NaN', 'error_rate": "text"', 'error_rate": -0.5')),
    ],
)  # fmt: skip
def test_a_study_that_no_sweep_has_written_is_refused(
    root: Path, capsys: pytest.CaptureFixture[str], change: str, named: str
) -> None:
    (row,) = leaderboard(root)
    with closing(sqlite3.connect(root / "study.db")) as connection, connection:
        connection.execute(change.replace("'ERROR'", f"'error_rate\": {float(row['error_rate'])}'"))
    assert_refused(root, capsys, "study.db", named)


def test_a_key_that_a_newer_version_has_added_to_the_records_is_passed_over(root: Path) -> None:
    with closing(sqlite3.connect(root / "study.db")) as connection, connection:
        connection.execute("""UPDATE trial_user_attributes SET value_json = replace(value_json, '{"number"',
            '{"mood": "good", "number"')""")
    assert report([str(root)]) == 0


def test_a_deleted_study_is_not_made_anew_while_there_are_trials(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "study.db").unlink()
    assert main(["--resume", str(root), "--local"]) == 2
    assert "study.db: there is no such file" in capsys.readouterr().err
    assert not (root / "study.db").exists()


def test_a_kill_while_the_tables_of_the_study_are_made_leaves_all_of_them_or_none(tmp_path: Path) -> None:
    """Optuna makes the unique index of the studies after their table: a resume without it would add a second study."""
    file = tmp_path / "study.db"
    on_disk: set[int] = set()

    def look(*_: Any) -> None:
        if not file.exists():
            on_disk.add(0)
            return
        with closing(sqlite3.connect(file)) as connection:
            on_disk.add(connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])

    sqlalchemy.event.listen(sqlalchemy.Engine, "after_cursor_execute", look)
    try:
        Search(config(), file)
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "after_cursor_execute", look)
    assert min(on_disk) == 0
    assert len(on_disk) == 2


@pytest.mark.parametrize("how", ["deleted", "emptied", "replaced"])
def test_a_study_that_goes_while_the_sweep_runs_halts_it(
    local: Callable[..., LocalSweep], tmp_path: Path, how: str
) -> None:
    root = tmp_path / "r"
    sweep = local("r", training__epochs=300, search__early_stopping="none")
    wait_for(lambda: saved(root, 2, "0000*"))
    if how == "emptied":
        os.truncate(root / "study.db", 0)
    else:
        (root / "study.db").unlink()
        if how == "replaced":
            (root / "study.db").write_bytes(b"")
    code, printed = sweep.wait(60)
    sweep.kill()
    assert code == 130, printed
    assert "study.db" in printed
    assert "Traceback" not in printed
    assert "to go on: " in printed
    assert (root / "best.pt").exists()
    code, printed = resume_local(root).wait()
    assert code == 2, printed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["50%20off", "what?x=1", "a#b", "c:d", "file:x?mode=memory&uri=true", "%41"])
def test_a_folders_name_is_no_address(arguments: Callable[..., list[str]], tmp_path: Path, name: str) -> None:
    outputs = tmp_path / name
    sweep = LocalSweep(tmp_path / "printed.txt", *arguments("r", **ONE), "--output-dir", str(outputs))
    code, printed = sweep.wait()
    assert code == 0, printed
    assert (outputs / "r" / "study.db").stat().st_size > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "printed.txt"])
    assert [path.name for path in outputs.iterdir()] == ["r"]
    assert report([str(outputs / "r")]) == 0
    code, printed = resume_local(outputs / "r", "--trials", "2").wait()
    assert code == 0, printed
    assert len(leaderboard(outputs / "r")) == 2


def test_a_report_writes_nothing_but_its_page(root: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.db"
    shutil.move(root / "study.db", foreign)
    (root / "study.db").symlink_to(foreign)
    before = contents(root) | {"foreign": foreign.read_bytes()}
    (root / "report.html").unlink()
    assert report([str(root)]) == 0
    assert contents(root) | {"foreign": foreign.read_bytes()} == before


def test_a_link_to_another_programs_database_gets_no_tables(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = tmp_path / "bookmarks.db"
    with closing(sqlite3.connect(foreign)) as connection, connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    before = foreign.read_bytes()
    (root / "study.db").unlink()
    (root / "study.db").symlink_to(foreign)
    assert_refused(root, capsys, "study.db", "is damaged")
    assert foreign.read_bytes() == before


def test_a_report_is_made_while_the_sweep_writes(root: Path) -> None:
    with held(root / "study.db", "BEGIN IMMEDIATE", seconds=60):
        assert report([str(root)]) == 0


def write_half_a_transaction(database: Path) -> None:
    connection = sqlite3.connect(database)
    connection.execute("PRAGMA cache_size = 1")  # so that changed pages are written before the end
    connection.execute("UPDATE trial_user_attributes SET value_json = value_json || ' '")
    connection.execute("CREATE TABLE filler AS SELECT a.*, hex(randomblob(4000)) FROM trial_user_attributes a, trials")
    connection.execute("INSERT INTO filler SELECT * FROM filler")
    connection.execute("INSERT INTO filler SELECT * FROM filler")
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_report_reads_past_what_a_killed_sweep_left_half_written(root: Path) -> None:
    before = Search(load(root / "sweep.yaml"), root / "study.db", read_only=True).records
    writer = FORKS.Process(target=write_half_a_transaction, args=(root / "study.db",))
    writer.start()
    writer.join()
    journal = root / "study.db-journal"
    assert journal.exists()
    half = (root / "study.db").read_bytes()
    assert report([str(root)]) == 0
    assert journal.exists()
    assert (root / "study.db").read_bytes() == half
    assert Search(load(root / "sweep.yaml"), root / "study.db", read_only=True).records == before
    code, printed = resume_local(root).wait()
    assert code == 0, printed
    assert not journal.exists()


def tables(path: Path) -> dict[str, list[Any]]:
    """All rows of the tables in which Optuna keeps trials; of the time of a trial's end only its format."""
    names = ("trials", "trial_params", "trial_values", "trial_intermediate_values")
    with closing(sqlite3.connect(path)) as file:
        file.create_function("shape", 1, lambda text: text and re.sub(r"\d", "0", text))
        rows = {
            name: file.execute(f"SELECT * FROM {name}").fetchall()
            for name in (*names, "trial_user_attributes", "trial_system_attributes")
        }
        ends = file.execute("SELECT shape(datetime_complete) FROM trials").fetchall()
    rows["trials"] = [(*row[:-1], *end) for row, end in zip(rows["trials"], ends, strict=True)]
    return rows


def test_trials_are_written_as_optuna_itself_writes_them(tmp_path: Path) -> None:
    choices: tuple[Any, ...] = ("constant", None, 3)
    distributions = {
        "lr": optuna.distributions.FloatDistribution(1e-4, 0.03, log=True),
        "schedule": optuna.distributions.CategoricalDistribution(choices),
        "layers": optuna.distributions.IntDistribution(1, 4),
    }
    ends = [
        (TrialState.COMPLETE, 0.25), (TrialState.COMPLETE, math.inf), (TrialState.PRUNED, None), (TrialState.FAIL, None)
    ]  # fmt: skip
    ours, optunas = (RDBStorage(f"sqlite:///{tmp_path / name}") for name in ("ours.db", "optunas.db"))
    study = [storage.create_new_study([StudyDirection.MINIMIZE], "sweep") for storage in (ours, optunas)]
    for number, end in enumerate([*ends, None]):
        new = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params={"lr": 0.01 / 3, "schedule": choices[number % 3], "layers": 1 + number % 4},
            distributions=distributions,
            user_attrs={"record": {"number": number, "note": "ünïcode"}},
            system_attrs={"tpe:relative_params:0": "{}"},
        )
        values = {1: 0.5, 2: math.inf, 3: -math.inf, 4: math.nan, 5: 1e-17}
        trial = study_tables.add(ours, study[0], number, new)
        study_tables.change(ours, trial, {"record": {"number": number}, "new": None}, values, end)

        trial = optunas.create_new_trial(study[1], new)
        for step, value in values.items():
            optunas.set_trial_intermediate_value(trial, step, value)
        for key, told in {"record": {"number": number}, "new": None}.items():
            optunas.set_trial_user_attr(trial, key, told)
        if end is not None:
            optunas.set_trial_state_values(trial, end[0], None if end[1] is None else [end[1]])
    assert tables(tmp_path / "ours.db") == tables(tmp_path / "optunas.db")
    times = [(trial.datetime_start, trial.datetime_complete) for trial in ours.get_all_trials(study[0])]
    for moment in (*(start for start, _ in times), *(end for _, end in times[:-1])):
        assert moment is not None
        assert abs(datetime.now() - moment) < timedelta(minutes=5)


def test_each_decision_of_the_search_is_one_write(tmp_path: Path) -> None:
    def writes() -> int:  # SQLite counts its transactions in the file's header
        return int.from_bytes((tmp_path / "study.db").read_bytes()[24:28], "big")

    stopping = {"name": "asha", "grace_epochs": 1, "reduction_factor": 2}
    search = Search(config(search__early_stopping=stopping, training__epochs=2), tmp_path / "study.db")
    for error, epochs in ((0.1, 2), (0.9, 1)):  # the second is stopped at the rung
        before = writes()
        record = search.ask()
        assert record is not None
        assert writes() == before + 1
        for epoch in range(1, epochs + 1):
            scores = {"error_rate": error, "cer": error, "loss": error}
            told = {"state": "running" if epoch < 2 else "completed", "epochs": epoch, "best_epoch": epoch}
            goes_on = search.report(record.number, told | {"scores": scores, "rung_score": error})
            assert goes_on == (epoch < epochs)
            assert writes() == before + 1 + epoch
    assert [record.state for record in search.finished] == ["completed", "stopped"]
    assert Search(config(search__early_stopping=stopping, training__epochs=2), tmp_path / "study.db").finished == (
        search.finished
    )


def test_a_decision_that_cannot_be_written_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_file, "_PATIENCE", 0.1)
    search = Search(config(**ONE), tmp_path / "study.db")
    record = search.ask()
    assert record is not None
    told = {"state": "completed", "epochs": 1, "best_epoch": 1, "scores": {"error_rate": 0.1}}
    with held(tmp_path / "study.db", *HOLDS["exclusive"], seconds=30), pytest.raises(study_file.StudyError):
        search.report(record.number, told)
    assert search.records[record.number] == record
    assert search.finished == []
    search.report(record.number, told)
    assert [ended.state for ended in search.finished] == ["completed"]
    assert Search(config(**ONE), tmp_path / "study.db").finished == search.finished


def test_trials_that_failed_are_run_again_if_that_is_wanted(tmp_path: Path) -> None:
    settings = {"search__trials": 2, "search__max_failures": 0}
    search = Search(config(**settings), tmp_path / "study.db")
    for outcome in ("failed", "diverged"):
        record = search.ask()
        assert record is not None
        search.report(record.number, {"state": outcome, "error": outcome, "out_of_memory": False})
    assert search.exit_code == 1
    assert Search(config(**settings), tmp_path / "study.db").ask() is None
    again = Search(config(**settings), tmp_path / "study.db", retry_failed=True)
    record = again.ask()
    assert record is not None
    assert (record.number, record.name, record.state, record.error) == (0, search.records[0].name, "running", None)
    # Killed here, it is not forgotten.
    later = Search(config(**settings), tmp_path / "study.db")
    assert later.ask() == record
    scores = {"error_rate": 0.5, "cer": 0.5, "loss": 0.5}
    later.report(0, {"state": "completed", "epochs": 1, "scores": scores, "best_epoch": 1})
    assert later.exhausted
    assert [record.state for record in later.records.values()] == ["completed", "diverged"]
    assert later.exit_code == 0


def test_a_changed_config_is_refused_unless_a_resume_can_honour_it(tmp_path: Path) -> None:
    Search(config(), tmp_path / "study.db").ask()
    changeable = {"search__trials": 30, "search__max_concurrent": 3, "search__max_failures": 5, "data__cache": "x"}
    Search(config(**changeable, resources__cpus=1), tmp_path / "study.db")
    for key, value in {
        "training.epochs": 9,
        "data.valid_images": 77,
        "captcha.characters": "01",
        "network.encoder.size": 32,
        "search.metric": "loss",
        "search.early_stopping": "none",
        "search.space": {"optimizer.lr": {"loguniform": [1e-3, 1e-2]}},
        "search.seed": 4,
    }.items():
        for read_only in (False, True):
            with pytest.raises(ConfigError) as refused:
                Search(config(**{key.replace(".", "__"): value}), tmp_path / "study.db", read_only=read_only)
            assert f"sweep.yaml: {key} must be as in the sweep's beginning" in str(refused.value)


def test_a_sweep_on_a_network_file_system_works_on_a_copy_of_its_study(
    root: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it doesn't wait for another program that holds the study, and the study has all of it in the end."""
    disk = tmp_path_factory.mktemp("disk")
    (tmp_path / "mounts").write_text(f"/dev/disk / ext4 rw 0 0\nserver:/runs {root.parent} nfs4 rw 0 0\n")
    monkeypatch.setattr(file_systems, "MOUNTS", tmp_path / "mounts")
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    monkeypatch.setattr(study_file, "_PATIENCE", 1.0)
    with held(root / "study.db", "BEGIN EXCLUSIVE", seconds=600):
        assert main(["--local", "--quiet", "--resume", str(root), "--trials", "2"]) == 0
    assert len(leaderboard(root)) == 2
    assert report([str(root)]) == 0
    assert list(disk.glob("crnn-sweep*")) == []


def test_each_decision_is_in_the_study_before_anybody_hears_of_it_also_if_a_copy_is_worked_on(tmp_path: Path) -> None:
    database, seen = tmp_path / "study.db", list[str]()

    class Listener:
        def __getattr__(self, event: str) -> Callable[[TrialRecord], None]:
            def heard(record: TrialRecord) -> None:
                kept = Search(config(), database, read_only=True)
                assert kept.records[record.number] == record
                seen.append(event)
                if event == "ended":
                    assert kept.finished == [record]

            return heard

    search = Search(config(), database, (Listener(),), working=tmp_path / "working.db")
    for _ in range(2):
        record = search.ask()
        assert record is not None
        search.fail(record.number, "it broke")
    assert seen == ["started", "released", "started", "ended"]
    (tmp_path / "working.db").unlink()
    again = Search(config(), database, working=tmp_path / "another.db")
    assert again.records == search.records
    assert (again.ask() or record).number == 1


def test_what_a_killed_sweep_left_beside_its_study_is_taken_into_the_copy(root: Path, tmp_path: Path) -> None:
    """As a sweep leaves it that was killed on this file system before it worked on a copy."""
    before = study_file.snapshot(root / "study.db")
    connection = sqlite3.connect(root / "study.db", isolation_level=None)
    connection.execute("PRAGMA cache_size = 1")  # writes pages to the file before the end of the transaction
    connection.execute("BEGIN")
    connection.execute("DELETE FROM trial_user_attributes")
    connection.execute("CREATE TABLE much AS SELECT zeroblob(3000000)")
    for name in ("study.db", "study.db-journal"):
        shutil.copy(root / name, tmp_path / name)
    connection.close()
    for name in ("study.db", "study.db-journal"):
        shutil.copy(tmp_path / name, root / name)
    search = Search(load(root / "sweep.yaml"), root / "study.db", working=tmp_path / "working.db")
    assert [record.state for record in search.records.values()] == ["completed"]
    assert not (root / "study.db-journal").exists()
    assert study_file.snapshot(root / "study.db") == before


MOUNTED = """\
/dev/vda / ext4 rw,relatime 0 0
proc /proc proc rw 0 0
server:/home /home nfs4 rw,vers=4.2 0 0
/dev/vdb /home/me/disk xfs rw 0 0
10.0.0.1@tcp:/scratch /scratch lustre rw,flock 0 0
//box/share /mnt/my\\040share cifs rw 0 0
server:/old /covered nfs rw 0 0
tmpfs /covered tmpfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind", "network"),
    [
        ("/data/runs", "ext4", False),
        ("/home/me/runs", "nfs4", True),
        ("/home/me/disk/runs", "xfs", False),
        ("/homes/runs", "ext4", False),
        ("/scratch", "lustre", True),
        ("/mnt/my share/x", "cifs", True),
        ("/covered/x", "tmpfs", False),
    ],
)
def test_network_file_systems_are_told_from_disks(
    path: str, kind: str, network: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert file_systems.file_system(Path("/proc/self/x")) == "proc"
    (tmp_path / "mounts").write_text(MOUNTED)
    monkeypatch.setattr(file_systems, "MOUNTS", tmp_path / "mounts")
    assert file_systems.file_system(Path(path)) == kind
    assert file_systems.is_on_network(Path(path)) == network
    monkeypatch.setattr(file_systems, "MOUNTS", tmp_path / "none")
    assert not file_systems.is_on_network(Path(path))
