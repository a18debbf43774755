"""Runs a search in this process, without Ray: for a debugger, a profiler and fast tests."""

from collections.abc import Callable

from sweep.searcher import Search, TrialRecord
from sweep.trial import Trial


def run(search: Search, make_trial: Callable[[TrialRecord], Trial], at_once: int) -> None:
    """`at_once` trials take turns, an epoch each; 1 runs them one after another."""
    live: dict[int, Trial] = {}
    try:
        while True:
            while len(live) < at_once and (record := search.ask()) is not None:
                live[record.number] = make_trial(record)
            if not live:
                return
            for number, trial in list(live.items()):
                if not search.report(number, trial.step()):
                    trial.close()
                    del live[number]
    finally:
        for trial in live.values():
            trial.close()
