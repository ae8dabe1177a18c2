#!/usr/bin/env python3
"""Looks at datasets before a training: opens every image, checks every annotation.

  check_data.py --config-file configs/shapes/ga_rpn_R_18_FPN.yaml
  check_data.py --config-file configs/... --dataset my_train --json report.json

Counts, classes, sizes, the worst entries, and how many objects the levels and anchors of the configuration can reach.
The exit code is 1 if an image cannot be used, or if annotations had to be left out or mended.
"""

import os
import sys
from pathlib import Path

from ga_scope import cli
from ga_scope.data.check import check_datasets
from ga_scope.engines import get_engine
from ga_scope.evaluation import write_json


def main(argv=None):
    parser = cli.argument_parser(__doc__)
    parser.add_argument("--dataset", nargs="+", default=[], metavar="NAME", help="default: all of the configuration's")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the same in numbers")
    args = cli.parse(parser, argv)
    engine = get_engine(args.engine)
    cfg = engine.setup(args.config_file, args.opts)
    names = args.dataset or list(dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]))
    reports = check_datasets(cfg, [engine.find_dataset(name, False) for name in names], args.workers)
    print("\n\n".join(report.as_text() for report in reports))
    if args.json:
        write_json(args.json, [vars(report) | {"clean": report.clean} for report in reports], indent=2)
    return 0 if all(report.clean for report in reports) else 1


if __name__ == "__main__":
    cli.end_well(lambda: sys.exit(main()))
