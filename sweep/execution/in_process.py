"""Runs a search in this process, without Ray: for a debugger, a profiler and fast tests."""

from collections.abc import Callable

from sweep.execution.interrupts import held_back
from sweep.execution.trial import Trial
from sweep.search.search import Search, TrialRecord


def run(search: Search, make_trial: Callable[[TrialRecord], Trial], at_once: int) -> None:
    """`at_once` trials take turns, an epoch each; 1 runs them one after another.

    The turn is always that of the trial with the fewest epochs: an order that a resumed search finds again. A trial
    may be interrupted anywhere, the search only between its answers.
    """
    live: dict[int, Trial] = {}
    try:
        while not search.exhausted:
            with held_back():
                while len(live) < at_once and (record := search.ask()) is not None:
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
