"""The detectron2 engine behind ``train_net.py``."""

from detectron2 import __version__
from detectron2.config import get_cfg
from detectron2.engine import default_setup, launch
from detectron2.utils import comm

from ...checkpoint import CheckpointError
from ...config import ConfigError, add_ga_scope_config
from ...evaluation import report
from ...train import announce, resolve_device
from .data import register
from .engine import CheckedCheckpointer, Trainer


def setup(config_file, opts=()):
    """The configuration of a yaml and overrides: checked for keys, datasets registered, device resolved."""
    cfg = add_ga_scope_config(get_cfg())
    try:
        cfg.merge_from_file(config_file)
    except (KeyError, FileNotFoundError, ValueError) as error:
        raise ConfigError(f"{config_file}: {error.args[0] if error.args else error}") from None
    if len(opts) % 2:
        raise ConfigError(f"overrides: expected KEY VALUE pairs, got {opts[-1]!r} without a value")
    for key, value in zip(opts[::2], opts[1::2]):
        try:
            cfg.merge_from_list([key, value])
        except (AssertionError, KeyError, ValueError) as error:
            raise ConfigError(f"{key}: {error}") from None
    cfg.MODEL.DEVICE = resolve_device(cfg.MODEL.DEVICE)
    register(cfg.DATASETS.REGISTER)
    cfg.freeze()
    return cfg


def run(args) -> dict:
    if args.num_gpus * args.num_machines == 1:
        return _main(args)
    url = args.dist_url or "auto"
    launch(_main, args.num_gpus, args.num_machines, args.machine_rank, url, args=(args,))
    return {}


def _main(args):
    cfg = setup(args.config_file, args.opts)
    if comm.is_main_process():
        announce(f"detectron2 {__version__}", cfg.MODEL.DEVICE, args.config_file)
    default_setup(cfg, args)
    if args.eval_only:
        metrics = Trainer.test(cfg, load_model(cfg))
    else:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        if trainer.start_iter >= trainer.max_iter:
            metrics = Trainer.test(cfg, trainer.model)
        else:
            trainer.train()
            metrics = getattr(trainer, "_last_eval_results", {})
    if comm.is_main_process():
        report(metrics, cfg.OUTPUT_DIR)
    return metrics


def load_model(cfg):
    """The model with MODEL.WEIGHTS, every parameter of it."""
    if not cfg.MODEL.WEIGHTS:
        raise CheckpointError("MODEL.WEIGHTS: expected a checkpoint to evaluate, got none")
    model = Trainer.build_model(cfg)
    checkpointer = CheckedCheckpointer(model)
    checkpointer.strict = True
    checkpointer.load(cfg.MODEL.WEIGHTS, checkpointables=[])
    return model
