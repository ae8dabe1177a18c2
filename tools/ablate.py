#!/usr/bin/env python3
"""Repeats the tables and figures of the Guided Anchoring paper, and ScopeNet's tables.

  ablate.py --table 4 5 --dataset shapes --seeds 0 1 --jobs 2
  ablate.py --table scope1 scope-beyond --dataset shapes --seeds 0 1 2
  ablate.py --figure 3 4 5 6 --dataset shapes

Runs what is missing, each run a command of its own that is printed; writes table_<name>.md and table_<name>.json after
every run, and figure_<name>.png. Killed at any moment, it goes on with the runs that were under way: from their
beginning, so that the table is the same as without the interruption, or with --continue from their last checkpoints.
"""

import argparse
import importlib
import os
import sys
from pathlib import Path

from ga_scope.ablation import figures
from ga_scope.ablation.queue import ordered_runs, work_off
from ga_scope.ablation.report import as_dict, as_json, as_markdown
from ga_scope.ablation.runs import DATASETS, ROOT, RunFailed, Suite, write_atomically
from ga_scope.ablation.tables import GA_RPN, RPN, tables
from ga_scope.checkpoint import CheckpointError
from ga_scope.config import ConfigError
from ga_scope.data import load_dataset
from ga_scope.data.coco import DatasetError
from ga_scope.modeling.guided_anchoring import FixedShapes
from ga_scope.models import per_level
from ga_scope.train import ENGINES, choose_engine


def write_table(suite, name, table, seeds):
    content = as_dict(suite, table, seeds)
    folder = suite.output / suite.dataset
    write_atomically(folder / f"table_{name}.json", as_json(content))
    write_atomically(folder / f"table_{name}.md", as_markdown(content))
    return folder / f"table_{name}.md"


def run_missing(suite, rows, seeds, jobs, done=lambda: None):
    """Runs what has no result yet of the rows, and what that needs."""
    todo = [item for item in ordered_runs(rows, seeds) if suite.result(*item) is None]
    work_off(suite, todo, jobs, done)


def run_tables(suite, chosen, seeds, only=None, jobs=1, report_only=False):
    """The tables ``chosen`` {name: table}, as far as their rows are in ``only``."""

    def write():
        return [write_table(suite, name, table, seeds) for name, table in chosen.items()]

    if not report_only:
        rows = [row for table in chosen.values() for row in table.rows if not only or row.label in only]
        run_missing(suite, rows, seeds, jobs, write)
    for path in write():
        print(f"{path.read_text()}\n-> {path}", flush=True)


def predictor_of(suite, run, seed):
    """A trained run's :class:`Predictor`."""
    package = f"ga_scope.integrations.{suite.engine}"
    weights = suite.folder(run, seed) / "model_final.pth"
    opts = [*suite.opts, *(part for key, value in run.overrides.items() for part in (key, str(value)))]
    cfg = importlib.import_module(f"{package}.run").setup(suite.config(run), [*opts, "MODEL.WEIGHTS", str(weights)])
    return importlib.import_module(f"{package}.predictor").Predictor(cfg), cfg


def draw_figure(suite, name, seed, images, jobs):
    """Figure 3, 4, 5 or 6 of the first seed's RPN and GA-RPN, which are trained if they are not there."""
    rows = [row for row in tables()["1"].rows if row.run in (RPN, GA_RPN)]
    run_missing(suite, rows, [seed], jobs)
    rpn, cfg = predictor_of(suite, RPN, seed)
    guided, _ = predictor_of(suite, GA_RPN, seed)
    records = load_dataset(DATASETS[suite.dataset][2])[0][:images]
    with_objects = [r for r in records if sum(not a["iscrowd"] for a in r["annotations"]) >= 2]
    path = suite.output / suite.dataset / f"figure_{name}.png"
    if name == "3":
        overlaps = {
            "RPN": figures.proposal_overlaps(rpn, records),
            "GA-RPN": figures.proposal_overlaps(guided, records),
        }
        figures.draw_overlaps(path, overlaps, len(records))
    elif name == "4":
        figures.draw_anchor_maps(path, guided, with_objects[:3])
    elif name == "5":
        figures.draw_proposals(path, {"RPN": rpn, "GA-RPN": guided}, with_objects[:4])
    else:
        anchors = cfg.MODEL.ANCHOR_GENERATOR
        levels = len(cfg.MODEL.RPN.IN_FEATURES)
        fixed = FixedShapes.of(*(per_level(anchors, key, levels) for key in ("SIZES", "ASPECT_RATIOS")))
        sliding = fixed.level_sides.flatten(0, 1).numpy()
        figures.draw_distributions(path, figures.anchor_statistics(guided, records), sliding)
    print(f"-> {path}", flush=True)


def main():
    known = tables()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--table",
        nargs="+",
        action="extend",
        choices=[*known],
        default=[],
        help="of Guided Anchoring, hyper: its section 4.3; scope1 to 3: of ScopeNet",
    )
    parser.add_argument(
        "--figure", nargs="+", action="extend", choices=list("3456"), default=[], help="of Guided Anchoring"
    )
    parser.add_argument("--images", type=int, default=150, help="for a figure, of the test set (default: 150)")
    parser.add_argument("--dataset", choices=DATASETS, default="shapes")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--rows", nargs="+", action="extend", metavar="LABEL", help="only these rows, by their labels")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, each with its share of the cores")
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
    suite = Suite(args.dataset, output, choose_engine(args.engine), tuple(args.opts), args.continue_runs)
    chosen = {name: known[name] for name in args.table}
    labels = [row.label for table in chosen.values() for row in table.rows]
    unknown = set(args.rows or ()) - set(labels)
    if unknown:
        raise ConfigError(f"--rows: expected of {', '.join(map(repr, labels))}; got {sorted(unknown)}")
    if chosen:
        run_tables(suite, chosen, args.seeds, args.rows, args.jobs, args.report)
    for name in args.figure:
        draw_figure(suite, name, args.seeds[0], args.images, args.jobs)


if __name__ == "__main__":
    os.chdir(ROOT)
    try:
        main()
    except (ConfigError, DatasetError, CheckpointError, RunFailed) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from here")
