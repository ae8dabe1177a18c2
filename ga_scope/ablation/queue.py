"""What has to be run, in which order, and several runs side by side."""

import statistics
import time
from collections.abc import Callable

from .runs import Run, Suite
from .table import Row

POLL_SECONDS = 0.1

Item = tuple[Run, int]  # a run and its seed


def ordered_runs(rows: list[Row], seeds: list[int]) -> list[Item]:
    """The runs of all rows for every seed, each once, what a run needs before it."""
    order = []

    def visit(run, seed):
        for needed in run.needs():
            visit(needed, seed)
        if (run, seed) not in order:
            order.append((run, seed))

    for seed in seeds:
        for row in rows:
            for run in row.runs():
                visit(run, seed)
    return order


def work_off(suite: Suite, todo: list[Item], jobs: int, done: Callable[[], None]):
    """Executes what is in ``todo``, at most ``jobs`` at a time; calls ``done`` after each.

    A run starts when those that it needs are done; a measurement of speed has the machine to itself.

    Raises:
        RunFailed: the runs beside the one that failed are ended.
    """
    waiting, running, seconds = list(todo), [], {}
    try:
        while waiting or running:
            item = _startable(suite, waiting, [started.run for started in running], jobs)
            if item:
                waiting.remove(item)
                left = _minutes_left(seconds, [item, *waiting, *((s.run, s.seed) for s in running)], jobs)
                print(f"[{len(todo) - len(waiting)}/{len(todo)}{left}] {suite.typed(*item)}", flush=True)
                running.append(suite.start(*item, jobs))
                continue
            time.sleep(POLL_SECONDS)
            for started in [s for s in running if s.ended()]:
                running.remove(started)
                seconds.setdefault(started.run, []).append(suite.finish(started)["seconds"])
                done()
    finally:
        for started in running:
            started.kill()


def _startable(suite: Suite, waiting: list[Item], running: list[Run], jobs: int) -> Item | None:
    """The first of the waiting that may start now."""
    if len(running) == jobs or any(run.kind == "speed" for run in running):
        return None
    for run, seed in waiting:
        if run.kind == "speed" and running:
            continue
        if all(suite.result(needed, seed) for needed in run.needs()):
            return run, seed
    return None


def _minutes_left(seconds: dict[Run, list[float]], ahead: list[Item], jobs: int) -> str:
    """From the runs that are done: the same run's with another seed, else those of its kind; '' before any is."""
    total = 0.0
    for run, _ in ahead:
        alike = seconds.get(run) or [t for other, times in seconds.items() if other.kind == run.kind for t in times]
        if not alike:
            alike = [t for times in seconds.values() for t in times]
        if not alike:
            return ""
        total += statistics.mean(alike)
    return f", about {total / jobs / 60:.0f} min left"
