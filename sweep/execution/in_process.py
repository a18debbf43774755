"""In-process executor (`--local`): runs a search without Ray, for debuggers, profilers and fast tests."""

from collections.abc import Callable

from sweep.execution.interrupts import held_back
from sweep.execution.trial import Trial
from sweep.search.records import TrialRecord
from sweep.search.search import Search


def run(search: Search, make_trial: Callable[[TrialRecord], Trial], at_once: Callable[[], int]) -> None:
    """Trains up to `at_once()` trials in turns of one epoch; 1 runs them one after another.

    The next turn goes to the trial with the fewest epochs, so that a resumed search continues in the same order. Ctrl-C
    may interrupt a trial anywhere, but is deferred while the search is called, because that writes the study.
    """
    live: dict[int, Trial] = {}
    try:
        while not search.exhausted:
            with held_back():
                while len(live) < at_once() and (record := search.ask()) is not None:
                    live[record.number] = make_trial(record)
            number = min(live, key=lambda number: (search.records[number].epochs, number), default=None)
            if number is not None:
                result = live[number].step()
                with held_back():
                    if not search.report(number, result):
                        live.pop(number).close()
            elif search.halted:
                return
    finally:
        for trial in live.values():
            trial.close()
