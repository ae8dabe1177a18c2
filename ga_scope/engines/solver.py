"""Optimizer, learning rate, clipping and averaging of either engine, under detectron2's keys."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    CosineParamScheduler,
    LinearParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
    StepWithFixedGammaParamScheduler,
)
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


def parameter_groups(cfg, model: nn.Module) -> list[dict]:
    """What trains of a model; normalisation layers have their own weight decay."""
    plain, norms = [], []
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad:
                (norms if isinstance(module, NORMS) else plain).append(parameter)
    groups = [{"params": plain}, {"params": norms, "weight_decay": cfg.SOLVER.WEIGHT_DECAY_NORM}]
    return [group for group in groups if group["params"]]


def build_optimizer(cfg, groups: list[dict]) -> torch.optim.Optimizer:
    """SGD or AdamW. Fused: one pass over the parameters, and a step that the device itself can leave out
    (``found_inf``), so that nobody waits to see whether it should be taken.
    """
    solver = cfg.SOLVER
    common = {"lr": solver.BASE_LR, "weight_decay": solver.WEIGHT_DECAY, "fused": True}
    if solver.OPTIMIZER == "ADAMW":
        return torch.optim.AdamW(groups, **common)
    return torch.optim.SGD(groups, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV, **common)


def clip_gradients(cfg, parameters: Iterable[nn.Parameter], norm: Tensor):
    """SOLVER.CLIP_GRADIENTS, of parameters that have gradients.

    Args:
        norm: of all gradients together, with NORM_TYPE.
    """
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if not clip.ENABLED:
        return
    if clip.CLIP_TYPE == "full_model":
        nn.utils.clip_grads_with_norm_(parameters, clip.CLIP_VALUE, norm)
    elif clip.CLIP_TYPE == "value":
        nn.utils.clip_grad_value_(parameters, clip.CLIP_VALUE)
    else:
        for parameter in parameters:
            nn.utils.clip_grad_norm_(parameter, clip.CLIP_VALUE, clip.NORM_TYPE)


def build_lr_schedule(cfg) -> ParamScheduler:
    """The factor of the learning rate as a function of the fraction of training done, as detectron2's."""
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        steps = [step for step in solver.STEPS if step < solver.MAX_ITER]
        values = [solver.GAMMA**k for k in range(len(steps) + 1)]
        schedule = MultiStepParamScheduler(values, milestones=steps, num_updates=solver.MAX_ITER)
    elif solver.LR_SCHEDULER_NAME == "WarmupStepWithFixedGammaLR":
        schedule = StepWithFixedGammaParamScheduler(1.0, solver.NUM_DECAYS, solver.GAMMA, solver.MAX_ITER)
    else:
        schedule = CosineParamScheduler(1, solver.BASE_LR_END / solver.BASE_LR)
    length = min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0)
    if length == 0:
        return schedule
    rescaled = solver.get("RESCALE_INTERVAL", False)
    end = schedule(0.0) if rescaled else schedule(length)
    start = solver.WARMUP_FACTOR * schedule(0.0)
    warmup = LinearParamScheduler(start, end) if solver.WARMUP_METHOD == "linear" else ConstantParamScheduler(start)
    if length == 1.0:
        return warmup
    return CompositeParamScheduler(
        [warmup, schedule],
        interval_scaling=["rescaled", "rescaled" if rescaled else "fixed"],
        lengths=[length, 1 - length],
    )


class Average:
    """The exponential moving average of the weights that train, and of BatchNorm's statistics.

    Args:
        tensors: by name, of the model.
        decay: of an average at every step.
    """

    def __init__(self, tensors: dict[str, Tensor], decay: float):
        self._own = tensors
        self._update = get_ema_multi_avg_fn(decay)
        self.reset()

    def reset(self):
        """Starts from what the weights are now."""
        self._average = {name: value.detach().clone() for name, value in self._own.items()}

    def update(self):
        with torch.no_grad():
            self._update(list(self._average.values()), [value.detach() for value in self._own.values()], None)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the average for its weights."""
        with torch.no_grad():
            kept = {name: value.detach().clone() for name, value in self._own.items()}
            for name, value in self._own.items():
                value.copy_(self._average[name])
            try:
                yield
            finally:
                for name, value in self._own.items():
                    value.copy_(kept[name])

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self._average)

    def load_state_dict(self, state: dict[str, Tensor]):
        if set(state) != set(self._average):
            raise ValueError(f"expected the weights {sorted(self._average)[:3]}..., got {sorted(state)[:3]}...")
        for name, value in state.items():
            self._average[name].copy_(value)
