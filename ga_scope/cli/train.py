"""``train`` and ``evaluate``: a configuration, from images to weights and metrics."""

import argparse

import torch

from ..config.files import find_config
from ..engines import Engine, get_engine, processes
from ..evaluation import report
from .common import add_processes, argument_parser, parse

TRAIN = """Trains a model of a detectron2-style configuration and evaluates it on DATASETS.TEST.

OUTPUT_DIR gets the configuration (config.yaml), checkpoints (model_final.pth is the last), the log of the training
(training.jsonl, and TensorBoard's), the detections (coco_instances_results.json) and the metrics (metrics.json). An
interrupted run leaves a checkpoint; --resume goes on from it. KEY VALUE pairs at the end override the configuration;
`ga-scope explain KEY` says what a key means.

Examples:
  ga-scope train --config COCO-Detection/ga_faster_rcnn_R_50_FPN_1x OUTPUT_DIR output/ga_faster
  ga-scope train --config mine.yaml SOLVER.IMS_PER_BATCH 4 SOLVER.BASE_LR 0.005
  ga-scope train --config mine.yaml --resume
  ga-scope train --config mine.yaml MODEL.WEIGHTS pretrained.pth    start from these weights

Exit status: 0, or 1 after one line that says what is wrong.
"""

EVALUATE = """Evaluates MODEL.WEIGHTS on DATASETS.TEST.

Average recall of proposals, average precision and recall of boxes (COCO's, and AP of every class), anchors per image.
OUTPUT_DIR gets the detections (coco_instances_results.json) and the metrics (metrics.json).

Examples:
  ga-scope evaluate --config mine.yaml MODEL.WEIGHTS output/mine/model_final.pth
  ga-scope evaluate --config COCO-Detection/ga_rpn_R_50_FPN_1x MODEL.WEIGHTS ga_rpn.pth OUTPUT_DIR output/check

Exit status: 0, or 1 after one line that says what is wrong.
"""


def train_net(argv=None) -> dict:
    """``train_net.py``: trains, or with ``--eval-only`` evaluates; the metrics per dataset."""
    parser = argument_parser(TRAIN)
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS on DATASETS.TEST")
    return _run(_training_arguments(parser), argv)


def train(argv=None, prog=None) -> dict:
    """``ga-scope train``; the metrics per dataset."""
    parser = argument_parser(TRAIN, prog)
    parser.set_defaults(eval_only=False)
    return _run(_training_arguments(parser), argv)


def evaluate(argv=None, prog=None) -> dict:
    """``ga-scope evaluate``; the metrics per dataset."""
    parser = argument_parser(EVALUATE, prog)
    parser.set_defaults(eval_only=True, resume=False)
    add_processes(parser)
    return _run(parser, argv)


def _training_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint in OUTPUT_DIR")
    add_processes(parser)
    return parser


def _run(parser, argv) -> dict:
    args = parse(parser, argv)
    args.config_file = str(find_config(args.config_file))
    return get_engine(args.engine).launch(_train_net, args)


def _train_net(args) -> dict:
    engine = get_engine(args.engine)
    cfg = engine.setup(args.config_file, args.opts)
    first = processes.rank() == 0
    if first:
        announce(engine, cfg.MODEL.DEVICE, args.config_file)
    engine.begin(cfg, args.config_file, args.eval_only)
    if args.eval_only:
        model, classes = engine.load(cfg)
        metrics = engine.evaluate(cfg, model, classes)
    else:
        metrics = engine.train(cfg, args.resume)
    if first:
        report(metrics, cfg.OUTPUT_DIR)
    return metrics


def announce(engine: Engine, device: str, config_file: str):
    """The first line of a run."""
    where = torch.cuda.get_device_name() if device.startswith("cuda") else f"{torch.get_num_threads()} threads"
    print(f"engine: {engine.name} | device: {device} ({where}) | config: {config_file}", flush=True)
