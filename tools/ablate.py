#!/usr/bin/env python3
"""Repeats the Guided Anchoring paper's tables: ablate.py --table 4 --dataset shapes --seeds 0 1

Runs what is missing, one run at a time, each a command of its own that is printed; writes table_<name>.md and
table_<name>.json after every run. Killed at any moment, it goes on with the run that was under way: from its
beginning, so that the table is the same as without the interruption, or with --continue from its last checkpoint.
"""

import argparse
import os
import sys
import time
from pathlib import Path

from ga_scope.ablation.report import as_dict, as_json, as_markdown
from ga_scope.ablation.runs import DATASETS, ROOT, RunFailed, Suite, write_atomically
from ga_scope.ablation.tables import tables
from ga_scope.config import ConfigError
from ga_scope.train import ENGINES, choose_engine


def ordered_runs(rows, seeds):
    """(run, seed) of all rows, what is needed first; each once."""
    order = []

    def visit(run, seed):
        for needed in run.needs():
            visit(needed, seed)
        if (run, seed) not in order:
            order.append((run, seed))

    for seed in seeds:
        for row in rows:
            for run in filter(None, (row.run, row.also)):
                visit(run, seed)
    return order


def write_table(suite, name, table, seeds):
    content = as_dict(suite, table, seeds)
    folder = suite.output / suite.dataset
    write_atomically(folder / f"table_{name}.json", as_json(content))
    write_atomically(folder / f"table_{name}.md", as_markdown(content))
    return folder / f"table_{name}.md"


def run_table(suite, name, table, seeds, only, report_only):
    rows = [row for row in table.rows if not only or row.label in only]
    todo = [item for item in ordered_runs(rows, seeds) if suite.result(*item) is None]
    durations = []
    for i, (run, seed) in enumerate([] if report_only else todo):
        left = f", about {sum(durations) / len(durations) * (len(todo) - i) / 60:.0f} min left" if durations else ""
        print(f"[{i + 1}/{len(todo)}{left}] python {' '.join(suite.command(run, seed))}", flush=True)
        began = time.time()
        suite.execute(run, seed)
        durations.append(time.time() - began)
        write_table(suite, name, table, seeds)
    path = write_table(suite, name, table, seeds)
    print(f"{path.read_text()}\n-> {path}", flush=True)


def main():
    known = tables()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--table", nargs="+", choices=[*known], required=True, help="of the paper; hyper: section 4.3's"
    )
    parser.add_argument("--dataset", choices=DATASETS, default="shapes")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--rows", nargs="+", metavar="LABEL", help="only these rows, by their labels")
    parser.add_argument("--engine", choices=ENGINES, default="auto")
    parser.add_argument("--output", type=Path, default=Path("output/ablations"))
    parser.add_argument("--continue", dest="continue_runs", action="store_true", help="interrupted training goes on")
    parser.add_argument("--report", action="store_true", help="run nothing, write the tables from what is there")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="for every training, as SOLVER.MAX_ITER 100"
    )
    args = parser.parse_args()
    # Commands are printed, run and compared as from the repository's root.
    output = Path(os.path.relpath(args.output.resolve(), ROOT)) if args.output.is_relative_to(ROOT) else args.output
    suite = Suite(args.dataset, output, choose_engine(args.engine), tuple(args.opts), args.continue_runs)
    for name in args.table:
        table = known[name]
        unknown = set(args.rows or ()) - {row.label for row in table.rows}
        if unknown:
            labels = ", ".join(repr(row.label) for row in table.rows)
            raise ConfigError(f"--rows: table {name} has {labels}; got {sorted(unknown)}")
        run_table(suite, name, table, args.seeds, args.rows, args.report)


if __name__ == "__main__":
    os.chdir(ROOT)
    try:
        main()
    except (ConfigError, RunFailed) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from here")
