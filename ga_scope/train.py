"""``train_net.py``: chooses the engine and runs training or evaluation."""

import argparse
import importlib.util
import logging
import sys

import torch

from .checkpoint import CheckpointError
from .config import ConfigError
from .data.coco import DatasetError

ENGINES = ("auto", "detectron2", "torchvision")


def argument_parser() -> argparse.ArgumentParser:
    """detectron2's command line, and ``--engine``."""
    parser = argparse.ArgumentParser(
        description="Trains or evaluates a model of a detectron2-style configuration.",
        epilog="Trailing arguments override keys: train_net.py --config-file x.yaml SOLVER.MAX_ITER 100",
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="yaml configuration")
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="auto",
        help="auto: detectron2 where it is installed, else the built-in engine on torchvision",
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS on DATASETS.TEST")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint in OUTPUT_DIR")
    parser.add_argument("--num-gpus", type=int, default=1, help="per machine (detectron2 engine)")
    parser.add_argument("--num-machines", type=int, default=1, help="(detectron2 engine)")
    parser.add_argument("--machine-rank", type=int, default=0, help="of this machine, from 0 (detectron2 engine)")
    parser.add_argument("--dist-url", default=None, help="where the processes meet (detectron2 engine)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of the configuration")
    return parser


def choose_engine(name: str) -> str:
    """``auto`` resolved; an engine that is not there is an error."""
    if name == "torchvision":
        return name
    if importlib.util.find_spec("detectron2") is not None:
        return "detectron2"
    if name == "detectron2":
        raise ConfigError(
            "--engine detectron2: detectron2 is not installed; see its installation page, or take --engine torchvision"
        )
    return "torchvision"


def resolve_device(device: str) -> str:
    """``auto`` resolved; a device that is not there is an error that says what to type."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"MODEL.DEVICE: {device} is not available here; append MODEL.DEVICE cpu (or auto)")
    return device


def announce(engine: str, device: str, config_file: str):
    """The first line of a run."""
    where = torch.cuda.get_device_name() if device.startswith("cuda") else f"{torch.get_num_threads()} threads"
    print(f"engine: {engine} | device: {device} ({where}) | config: {config_file}", flush=True)


def main(argv=None) -> dict:
    """Returns the metrics per dataset."""
    args = argument_parser().parse_args(argv)
    try:
        engine = choose_engine(args.engine)
        if engine == "detectron2":
            from .integrations.detectron2.run import run
        else:
            from .integrations.torchvision.run import run
        return run(args)
    except (ConfigError, DatasetError, CheckpointError) as error:
        logging.getLogger("ga_scope").debug("", exc_info=True)
        sys.exit(f"{type(error).__name__}: {error}")
