"""detectron2's trainer with the project's data, optimizer, checkpoints and metrics."""

import os

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import AMPTrainer, DefaultTrainer, HookBase
from detectron2.evaluation import COCOEvaluator, DatasetEvaluators
from detectron2.modeling.poolers import ROIPooler
from detectron2.solver import build_optimizer
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils.events import CommonMetricPrinter, JSONWriter, TensorboardXWriter

from ...checkpoint import CheckedLoading
from ...config import ConfigError
from .data import build_test_loader, build_train_loader, check_test_set
from .evaluation import GuidedAnchoringEvaluator


class CheckedCheckpointer(CheckedLoading, DetectionCheckpointer):
    """detectron2's checkpointer; a file that does not fit is an error that names it."""


class SaveOnInterruption(HookBase):
    """A run that fails or is interrupted (a broken image, Ctrl-C) leaves a checkpoint to resume from."""

    def __init__(self, checkpointer):
        self.checkpointer = checkpointer

    def after_train(self):
        trainer = self.trainer
        if trainer.start_iter < trainer.iter < trainer.max_iter:
            self.checkpointer.save(f"model_{trainer.iter - 1:07d}", iteration=trainer.iter - 1)


def use_bfloat16(trainer: AMPTrainer):
    """In place of detectron2's float16: the built-in engine's dtype, with float32's range and so no loss scale."""
    trainer.precision = torch.bfloat16
    trainer.grad_scaler = torch.amp.GradScaler("cuda", enabled=False)
    for module in trainer.model.modules():
        if isinstance(module, ROIPooler):
            module.register_forward_pre_hook(_pool_in_float32)


def _pool_in_float32(pooler, inputs):
    """ROIAlign gives boxes the features' type, and bfloat16 would round their corners to one, two or four pixels."""
    features, *boxes = inputs
    return [feature.float() for feature in features], *boxes


class Trainer(DefaultTrainer):
    """``DefaultTrainer`` for this project's configurations."""

    def __init__(self, cfg):
        if cfg.SOLVER.AMP.ENABLED and not cfg.MODEL.DEVICE.startswith("cuda"):
            raise ConfigError(
                f"SOLVER.AMP.ENABLED: expected False on {cfg.MODEL.DEVICE}, got True: detectron2 trains so on CUDA, "
                "the built-in engine (--engine torchvision) on a CPU, too"
            )
        for name in cfg.DATASETS.TEST:  # not after hours of training
            check_test_set(cfg, name)
        super().__init__(cfg)
        if cfg.SOLVER.AMP.ENABLED and torch.cuda.is_bf16_supported(including_emulation=False):
            use_bfloat16(self._trainer)
        checkpointer = CheckedCheckpointer(self.checkpointer.model, cfg.OUTPUT_DIR)
        checkpointer.checkpointables = self.checkpointer.checkpointables
        self.checkpointer = checkpointer
        for hook in self._hooks:
            if hasattr(hook, "checkpointer"):
                hook.checkpointer = checkpointer
        self.register_hooks([SaveOnInterruption(checkpointer)])

    def resume_or_load(self, resume=True):
        self.checkpointer.strict = resume and self.checkpointer.has_checkpoint()
        super().resume_or_load(resume)

    @classmethod
    def build_model(cls, cfg):
        # channels_last is what convolutions and the project's gathers want, on CPU and GPU alike.
        return super().build_model(cfg).to(memory_format=torch.channels_last)

    @classmethod
    def build_optimizer(cls, cfg, model):
        if cfg.SOLVER.OPTIMIZER == "SGD":
            return build_optimizer(cfg, model)
        if cfg.SOLVER.OPTIMIZER != "ADAMW":
            raise ConfigError(f"SOLVER.OPTIMIZER: expected SGD or ADAMW, got {cfg.SOLVER.OPTIMIZER!r}")
        parameters = get_default_optimizer_params(
            model,
            base_lr=cfg.SOLVER.BASE_LR,
            weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
            bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
            weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        )
        # Fused: one pass over the parameters, a third of the time or less on a CPU. But under float16's loss scale a
        # fused step takes scaled gradients, and clipping, which comes first, would clip those.
        fused = not cfg.SOLVER.AMP.ENABLED or torch.cuda.is_bf16_supported(including_emulation=False)
        optimizer = torch.optim.AdamW(
            parameters, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY, fused=fused
        )
        return maybe_add_gradient_clipping(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg):
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        return build_test_loader(cfg, dataset_name)

    def build_writers(self):
        # metrics.json is the evaluation's (ga_scope/evaluation), so the training log has another name.
        output = self.cfg.OUTPUT_DIR
        log = JSONWriter(os.path.join(output, "training.jsonl"))
        return [CommonMetricPrinter(self.max_iter), log, TensorboardXWriter(output)]

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        """Metrics of every dataset of DATASETS.TEST by its name; masks and keypoints by detectron2's evaluator."""
        from detectron2.evaluation import inference_on_dataset

        results = {}
        for name in cfg.DATASETS.TEST:
            check_test_set(cfg, name)
            chosen = [GuidedAnchoringEvaluator(name, model)]
            tasks = ("segm",) * cfg.MODEL.MASK_ON + ("keypoints",) * cfg.MODEL.KEYPOINT_ON
            if tasks:
                chosen.append(COCOEvaluator(name, tasks, output_dir=os.path.join(cfg.OUTPUT_DIR, "inference")))
            found = inference_on_dataset(model, cls.build_test_loader(cfg, name), DatasetEvaluators(chosen)) or {}
            metrics = dict(found.pop("ga_scope", {}))
            for task, values in found.items():
                metrics |= {f"{task}/{key}": value / 100 for key, value in values.items()}
            results[name] = metrics
        return results
