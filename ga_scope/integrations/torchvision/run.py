"""The built-in engine behind ``train_net.py``."""

import logging
from pathlib import Path

from ...checkpoint import CheckpointError
from ...config import ConfigError
from ...data import register_datasets
from ...evaluation import report
from ...train import announce, resolve_device
from .config import get_cfg, merge_file
from .engine import Trainer, evaluate
from .models import build_model


def setup(config_file, opts=()):
    """The configuration of a yaml and overrides: checked for keys, datasets registered, device resolved."""
    cfg = get_cfg()
    merge_file(cfg, config_file)
    merge_list(cfg, list(opts))
    cfg.MODEL.DEVICE = resolve_device(cfg.MODEL.DEVICE)
    register_datasets(cfg.DATASETS.REGISTER)
    cfg.freeze()
    return cfg


def merge_list(cfg, opts):
    if len(opts) % 2:
        raise ConfigError(f"overrides: expected KEY VALUE pairs, got {opts[-1]!r} without a value")
    for key, value in zip(opts[::2], opts[1::2]):
        try:
            cfg.merge_from_list([key, value])
        except (AssertionError, KeyError, ValueError) as error:
            raise ConfigError(f"{key}: {error}") from None


def run(args) -> dict:
    cfg = setup(args.config_file, args.opts)
    announce("torchvision (built-in)", cfg.MODEL.DEVICE, args.config_file)
    if args.num_gpus > 1 or args.num_machines > 1:
        raise ConfigError("--num-gpus, --num-machines: the built-in engine trains on one device; detectron2 on many")
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s] %(message)s", datefmt="%H:%M:%S", force=True)
    output = Path(cfg.OUTPUT_DIR)
    output.mkdir(parents=True, exist_ok=True)
    (output / "config.yaml").write_text(cfg.dump())
    if args.eval_only:
        metrics = evaluate(cfg, load_model(cfg))
    else:
        metrics = Trainer(cfg, args.resume).train()
    report(metrics, output)
    return metrics


def load_model(cfg):
    """The model with MODEL.WEIGHTS, every parameter of it."""
    from .checkpoint import BuiltinCheckpointer

    if not cfg.MODEL.WEIGHTS:
        raise CheckpointError("MODEL.WEIGHTS: expected a checkpoint to evaluate, got none")
    model = build_model(cfg)
    checkpointer = BuiltinCheckpointer(model)
    checkpointer.strict = True
    checkpointer.load(cfg.MODEL.WEIGHTS, checkpointables=[])
    return model.eval()
