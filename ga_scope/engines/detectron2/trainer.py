"""detectron2's training loop with the project's data, optimizer, checkpoints and metrics."""

import os
from collections.abc import Callable

import torch
from detectron2.engine import AMPTrainer, HookBase, SimpleTrainer, TrainerBase, create_ddp_model, hooks
from detectron2.modeling.poolers import ROIPooler
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, JSONWriter, TensorboardXWriter
from torch import nn

from ..checkpoint import Checkpointer
from .data import build_train_loader


class Saving(HookBase):
    """A checkpoint every ``period`` steps and at the end, and of a run that fails or is interrupted."""

    def __init__(self, save: Callable, period: int):
        self.save, self.period = save, period

    def after_step(self):
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter:
            self.save("model_final", done)
        elif done % self.period == 0:
            self.save(f"model_{self.trainer.iter:07d}", done)

    def after_train(self):
        done = self.trainer.iter  # of the last step that was begun, unless all are done
        if self.trainer.start_iter < done < self.trainer.max_iter:
            self.save(f"model_{done - 1:07d}", done)


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


def bfloat16_here() -> bool:
    return torch.cuda.is_bf16_supported(including_emulation=False)


def optimizer_of(cfg, model: nn.Module) -> torch.optim.Optimizer:
    """SOLVER.OPTIMIZER."""
    if cfg.SOLVER.OPTIMIZER == "SGD":
        return build_optimizer(cfg, model)
    parameters = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
    )
    # Fused: one pass over the parameters, a third of the time or less on a CPU. But under float16's loss scale a
    # fused step takes scaled gradients, and clipping, which comes first, would clip those.
    fused = not cfg.SOLVER.AMP.ENABLED or bfloat16_here()
    optimizer = torch.optim.AdamW(parameters, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY, fused=fused)
    return maybe_add_gradient_clipping(cfg, optimizer)


class Trainer(TrainerBase):
    """One training.

    Args:
        model: with fresh weights, on its device.
        named_state: from the model to its tensors by name.
        records: to train on.
        classes: their names, None for a model that knows none.
        evaluate: from the model to its metrics per dataset.
    """

    def __init__(self, cfg, model: nn.Module, named_state: Callable, records, classes, evaluate: Callable):
        super().__init__()
        self.cfg, self.max_iter = cfg, cfg.SOLVER.MAX_ITER
        self.model = model
        self.optimizer = optimizer_of(cfg, model)
        self.scheduler = build_lr_scheduler(cfg, self.optimizer)
        parallel = create_ddp_model(model, broadcast_buffers=False)
        self.loop = (AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer)(
            parallel, build_train_loader(cfg, records), self.optimizer
        )
        if cfg.SOLVER.AMP.ENABLED and bfloat16_here():
            use_bfloat16(self.loop)
        self.checkpointer = Checkpointer(cfg, model, named_state, cfg.OUTPUT_DIR, classes, trainer=self)
        self.metrics: dict[str, dict[str, float]] = {}

        def test():
            self.metrics = evaluate(model)
            return {f"{name}/{key}": value for name, values in self.metrics.items() for key, value in values.items()}

        own = [hooks.IterationTimer(), hooks.LRScheduler(self.optimizer, self.scheduler)]
        if comm.is_main_process():
            own.append(Saving(self._save, cfg.SOLVER.CHECKPOINT_PERIOD))
        if cfg.DATASETS.TEST:
            own.append(hooks.EvalHook(cfg.TEST.EVAL_PERIOD, test))
        if comm.is_main_process():
            # metrics.json is the evaluation's (ga_scope/evaluation), so the training log has another name.
            log = JSONWriter(os.path.join(cfg.OUTPUT_DIR, "training.jsonl"))
            writers = [CommonMetricPrinter(self.max_iter), log, TensorboardXWriter(cfg.OUTPUT_DIR)]
            own.append(hooks.PeriodicWriter(writers, period=20))
        self.register_hooks(own)

    def _save(self, name, done):
        self.checkpointer.save(name, iteration=done - 1)

    def start_from(self, resume: bool):
        """OUTPUT_DIR's last checkpoint, or MODEL.WEIGHTS."""
        last = self.checkpointer.last() if resume else None
        if last:
            self.start_iter = self.checkpointer.resume(last)["iteration"] + 1
        elif self.cfg.MODEL.WEIGHTS:
            self.checkpointer.load(self.cfg.MODEL.WEIGHTS, strict=False)

    def run_step(self):
        self.loop.iter = self.iter
        self.loop.run_step()

    def state_dict(self):
        state = {"optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict()}
        if isinstance(self.loop, AMPTrainer):
            state["grad_scaler"] = self.loop.grad_scaler.state_dict()
        return state

    def load_state_dict(self, state):
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if isinstance(self.loop, AMPTrainer) and "grad_scaler" in state:
            self.loop.grad_scaler.load_state_dict(state["grad_scaler"])
