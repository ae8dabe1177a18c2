"""Tables and figures from runs: those that are missing are run first."""

from collections.abc import Callable
from pathlib import Path

from ..api import Detector
from ..evaluation.report import write_text
from . import figures
from .queue import ordered_runs, work_off
from .report import as_dict, as_json, as_markdown
from .runs import DATASETS, Suite
from .table import Row, Table
from .tables import GA_RPN, RPN, tables


def write_table(suite: Suite, name: str, table: Table, seeds: list[int]) -> Path:
    content = as_dict(suite, table, seeds)
    folder = suite.output / suite.dataset
    write_text(folder / f"table_{name}.json", as_json(content))
    return write_text(folder / f"table_{name}.md", as_markdown(content))


def run_missing(suite: Suite, rows: list[Row], seeds: list[int], jobs: int, done: Callable = lambda: None):
    """Runs what has no result yet of the rows, and what that needs."""
    todo = [item for item in ordered_runs(rows, seeds) if suite.result(*item) is None]
    work_off(suite, todo, jobs, done)


def run_tables(
    suite: Suite, chosen: dict[str, Table], seeds: list[int], only=None, jobs: int = 1, report_only: bool = False
):
    """The tables ``chosen`` {name: table}, as far as their rows are in ``only``; prints them."""

    def write():
        return [write_table(suite, name, table, seeds) for name, table in chosen.items()]

    if not report_only:
        rows = [row for table in chosen.values() for row in table.rows if not only or row.label in only]
        run_missing(suite, rows, seeds, jobs, write)
    for path in write():
        print(f"{path.read_text()}\n-> {path}", flush=True)


def draw_figure(suite: Suite, name: str, seed: int, images: int, jobs: int):
    """Figure 3, 4, 5 or 6 of the first seed's RPN and GA-RPN, which are trained if they are not there."""
    rows = [row for row in tables()["1"].rows if row.run in (RPN, GA_RPN)]
    run_missing(suite, rows, [seed], jobs)
    rpn, guided = (
        Detector(
            suite.config(run),
            suite.folder(run, seed) / "model_final.pth",
            [*suite.opts, *(part for key, value in run.overrides.items() for part in (key, str(value)))],
            suite.engine,
        )
        for run in (RPN, GA_RPN)
    )
    dataset = guided.engine.dataset(DATASETS[suite.dataset][2], guided.cfg).first(images)
    path = suite.output / suite.dataset / f"figure_{name}.png"
    figures.draw(name, path, rpn, guided, dataset)
    print(f"-> {path}", flush=True)
