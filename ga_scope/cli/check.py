"""``check``: what a training would find out late."""

import os
import time
from pathlib import Path

import torch

from ..config import class_key, flat, get
from ..config.files import find_config
from ..data.check import check_datasets
from ..engines import Engine, get_engine
from ..engines.checkpoint import META, Checkpointer
from ..evaluation import write_json
from .common import argument_parser, parse

HELP = """Looks at a configuration, its data and its weights before hours of training.

Every key is checked; every image of DATASETS.TRAIN and TEST is opened, every annotation checked: counts, classes,
sizes, the worst entries, and how many objects the levels and anchors of the configuration can reach. Then the model is
built, MODEL.WEIGHTS, if given, must fit it (a backbone's: a training must be able to start from it), and two images go
through it. With --dataset only those data are looked at.

Examples:
  ga-scope check --config mine.yaml
  ga-scope check --config mine.yaml --dataset mine_train --json data.json
  ga-scope check --config mine.yaml MODEL.WEIGHTS output/mine/model_final.pth

Exit status: 0; 1 if an image cannot be used, or if annotations had to be left out or mended, or after one line that
says what is wrong.
"""


def main(argv=None, prog=None) -> int:
    """0, or 1 where an image cannot be used or annotations had to be left out or mended."""
    parser = argument_parser(HELP, prog)
    parser.add_argument("--dataset", nargs="+", default=[], metavar="NAME", help="default: all of the configuration's")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the data in numbers")
    args = parse(parser, argv)
    engine = get_engine(args.engine)
    path = find_config(args.config_file)
    cfg = engine.setup(path, args.opts)
    print(f"{path}: {len(flat(cfg))} keys, of {engine.name}: {cfg.MODEL.META_ARCHITECTURE} on {cfg.MODEL.DEVICE}")
    names = args.dataset or list(dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]))
    reports = check_datasets(cfg, [engine.find_dataset(name, False) for name in names], args.workers)
    print("\n\n".join(report.as_text() for report in reports))
    if args.json:
        write_json(args.json, [vars(report) | {"clean": report.clean} for report in reports], indent=2)
    if not args.dataset:
        engine.training_records(cfg)  # the same classes everywhere, and something to learn
        check_model(engine, cfg)
    return 0 if all(report.clean for report in reports) else 1


def check_model(engine: Engine, cfg):
    """Builds the model, loads what weights there are, and times two images, or one where there is one."""
    model = engine.build(cfg).eval()
    if cfg.MODEL.WEIGHTS:
        content = Checkpointer(cfg, model, engine.named_state).load(cfg.MODEL.WEIGHTS, strict=False)
        if META in content:  # of a training: a whole model
            model, classes = engine.load(cfg)
            key = class_key(cfg)
            named = f", of {', '.join(classes)}" if classes and key and len(classes) == get(cfg, key) else ""
            print(f"{cfg.MODEL.WEIGHTS}: fits the model{named}")
        else:
            print(f"{cfg.MODEL.WEIGHTS}: a training can start from it")
    count = sum(p.numel() for p in model.parameters())
    line = f"model: {count / 1e6:.1f} million parameters"
    datasets = engine.test_sets(cfg)
    if datasets:
        records = [datasets[0][i] for i in range(min(2, len(datasets[0])))]
        began = time.perf_counter()
        found = sum(1 for _ in engine.predict(cfg, model, records))
        line += f"; {found} images in {time.perf_counter() - began:.1f} s ({torch.get_num_threads()} threads)"
    print(line)
