"""Keeps a sweep's files and its TensorBoard run up to date as trials end."""

from model.system.malloc import collector_paused
from sweep.config import SweepConfig
from sweep.config.workplace import Workplace
from sweep.search.records import TrialRecord
from sweep.search.search import Search
from sweep.tensorboard.sweep_writer import SweepWriter
from sweep.tensorboard.trial_pictures import last_picture
from sweep.tensorboard.trial_writer import end_session
from sweep.wording.faults import Fault


class Reporter:
    """Listener of the search that completes the files of each trial when it ends, and writes the results at the end."""

    def __init__(self, config: SweepConfig, workplace: Workplace) -> None:
        self._config, self._workplace = config, workplace
        self._writer = SweepWriter(workplace.logs("_sweep"), config.search.space)
        self._ended = 0
        self._best: float | None = None

    def started(self, record: TrialRecord) -> None:
        pass

    def reported(self, record: TrialRecord) -> None:
        pass

    def released(self, record: TrialRecord) -> None:
        pass

    def ended(self, record: TrialRecord) -> None:
        """Completes the trial's event file and removes its checkpoints. Idempotent: a resumed sweep calls it again for
        trials that ended before, in case the earlier run was killed in between."""
        logs = self._workplace.logs(record.name)
        if logs.exists():
            picture = last_picture(self._config, self._workplace, record)
            end_session(logs, record.state in ("completed", "stopped"), picture)
        for checkpoint in self._workplace.files(record.name).glob("epoch_*.pt"):
            checkpoint.unlink()
        self._ended += 1
        if record.error_rate is not None:
            self._best = min(record.error_rate, 1.0 if self._best is None else self._best)
        if self._best is not None:
            self._writer.best(self._ended, self._best)

    @collector_paused()  # it imports SciPy, Matplotlib and Plotly
    def finish(self, search: Search) -> tuple[TrialRecord | None, list[str], list[Fault]]:
        """Writes the leaderboard, the winner and the report, see `Results.write`."""
        # Imported here, because its libraries take two seconds, which would delay the start of a sweep.
        from sweep.verdict.results import Results

        return Results(self._config, self._workplace, search, self._writer, self._ended).write()
