#!/usr/bin/env python3
"""Repeats the tables and figures of the Guided Anchoring paper, and ScopeNet's tables.

  ablate.py --table 4 5 --dataset shapes --seeds 0 1 --jobs 2
  ablate.py --table scope1 scope-beyond --dataset shapes --seeds 0 1 2
  ablate.py --table real-proposals real-detectors --dataset real --seeds 0 1 2
  ablate.py --figure 3 4 5 6 --dataset shapes

Runs what is missing, each run a command of its own that is printed; writes table_<name>.md and table_<name>.json after
every run, and figure_<name>.png. Killed at any moment, it goes on with the runs that were under way: from their
beginning, so that the table is the same as without the interruption, or with --continue from their last checkpoints.
"""

import argparse
import os
from pathlib import Path

from ga_scope import cli
from ga_scope.ablation.real_tables import real_tables
from ga_scope.ablation.repeat import draw_figure, run_tables
from ga_scope.ablation.runs import DATASETS, ROOT, Suite
from ga_scope.ablation.tables import tables
from ga_scope.engines import ENGINES, resolved
from ga_scope.errors import ConfigError


def main():
    known = tables() | real_tables()
    parser = cli.plain_parser(__doc__)
    parser.add_argument(
        "--table",
        nargs="+",
        action="extend",
        choices=[*known],
        default=[],
        help="of Guided Anchoring, hyper: its section 4.3; scope1 to 3: of ScopeNet; real-...: on photos",
    )
    parser.add_argument(
        "--figure", nargs="+", action="extend", choices=list("3456"), default=[], help="of Guided Anchoring"
    )
    parser.add_argument("--images", type=int, default=150, help="for a figure, of the test set (default: 150)")
    parser.add_argument("--dataset", choices=[*DATASETS, "real"], default="shapes", help="real: bccd and neu_det")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--rows", nargs="+", action="extend", metavar="LABEL", help="only these rows, by their labels")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, each with its share of the cores")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes of a run, one for each GPU")
    parser.add_argument("--engine", choices=ENGINES, default="auto")
    parser.add_argument("--output", type=Path, default=Path("output/ablations"))
    parser.add_argument("--continue", dest="continue_runs", action="store_true", help="interrupted training goes on")
    parser.add_argument("--report", action="store_true", help="run nothing, write the tables from what is there")
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="for every training, after --engine: SOLVER.MAX_ITER 100",
    )
    args = parser.parse_args()
    if not args.table and not args.figure:
        parser.error("expected --table or --figure")
    if args.jobs < 1:
        parser.error(f"--jobs: expected at least 1, got {args.jobs}")
    # Commands are printed, run and compared as from the repository's root.
    output = Path(os.path.relpath(args.output.resolve(), ROOT)) if args.output.is_relative_to(ROOT) else args.output
    chosen = {name: known[name] for name in args.table}
    labels = [row.label for table in chosen.values() for row in table.rows]
    unknown = set(args.rows or ()) - set(labels)
    if unknown:
        raise ConfigError(f"--rows: expected of {', '.join(map(repr, labels))}; got {sorted(unknown)}")
    for dataset in ("bccd", "neu_det") if args.dataset == "real" else (args.dataset,):
        suite = Suite(dataset, output, resolved(args.engine), tuple(args.opts), args.continue_runs, args.num_gpus)
        if chosen:
            run_tables(suite, chosen, args.seeds, args.rows, args.jobs, args.report)
        for name in args.figure:
            draw_figure(suite, name, args.seeds[0], args.images, args.jobs)


if __name__ == "__main__":
    os.chdir(ROOT)
    cli.end_well(main)
