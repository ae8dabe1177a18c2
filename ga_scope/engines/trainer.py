"""The training of either engine: steps, checkpoints, evaluations, and an end that loses nothing.

A step is a function of the weights, what the optimizer keeps, the run's seed and the number of the step
(:mod:`ga_scope.engines.loader`), so that a run that goes on from a checkpoint ends in the same weights as one that was
never stopped.
"""

import contextlib
import logging
import math
import os
import signal
import time
import warnings
from collections import deque
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..config import flat
from ..config.checks import plain
from ..errors import CheckpointError, ConfigError, Interrupted, TrainingError
from ..modeling.losses import counted, counting
from . import processes
from .bad_images import BadImages
from .checkpoint import META, Checkpointer, DamagedError
from .loader import STEP, WEIGHTS, seed_everything, train_loader
from .progress import Progress
from .solver import Average, build_lr_schedule, build_optimizer, clip_gradients

logger = logging.getLogger(__name__)

RUN = "run"  # the entry of a checkpoint with what else a run goes on from
# A run that goes on under other values of these is another run.
FIXED = (
    "SOLVER.OPTIMIZER", "SOLVER.IMS_PER_BATCH", "SOLVER.ACCUMULATION_STEPS", "DATALOADER.ASPECT_RATIO_GROUPING",
    "SOLVER.AMP.ENABLED", "MODEL_EMA.ENABLED", "MODEL_EMA.DECAY",
)  # fmt: skip


class _Step(NamedTuple):
    """A step whose numbers are on their way from the device."""

    iteration: int
    names: list[str]
    values: Tensor  # on the host, once ``ready``
    ready: object  # a CUDA event, or None: they are there
    losses: Tensor  # this process's own, on the device
    files: list[str]
    rate: float
    waited: float

    def wait(self) -> Tensor:
        if self.ready is not None:
            self.ready.synchronize()
        return self.values


class Trainer:
    """Model, optimizer, data and checkpoints of one training.

    ``resume`` continues from OUTPUT_DIR's newest healthy checkpoint if there is one; otherwise MODEL.WEIGHTS, if given,
    is what training starts from.

    Args:
        engine: builds the model and its mapper, evaluates it.
        records: to train on.
        classes: their names, None for a model that knows none.
    """

    def __init__(self, engine, cfg, records, classes, resume: bool = False):
        self.engine, self.cfg, self.records = engine, cfg, records
        self.limit, self.parts = cfg.SOLVER.MAX_ITER, cfg.SOLVER.ACCUMULATION_STEPS
        share = processes.world() * self.parts
        if cfg.SOLVER.IMS_PER_BATCH % share:
            raise ConfigError(
                f"SOLVER.IMS_PER_BATCH: expected a multiple of {share} ({processes.world()} processes, "
                f"SOLVER.ACCUMULATION_STEPS {self.parts}), got {cfg.SOLVER.IMS_PER_BATCH}"
            )
        self.seed = processes.agreed(cfg.SEED if cfg.SEED >= 0 else int.from_bytes(os.urandom(4), "little"))
        seed_everything(self.seed, WEIGHTS)
        self.model = engine.build(cfg)
        self.optimizer = build_optimizer(cfg, engine.parameter_groups(cfg, self.model))
        self.settings = [{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups]
        self.schedule = build_lr_schedule(cfg)
        self.device = next(self.model.parameters()).device
        self.precision, self.scaler = _precision(cfg, self.device)
        trained = {name: value for name, value in self.model.named_parameters() if value.requires_grad}
        self.statistics = _statistics(self.model)
        ema = cfg.MODEL_EMA
        self.average = Average(trained | self.statistics, ema.DECAY) if ema.ENABLED else None
        parts = {"optimizer": self.optimizer, RUN: self}
        parts |= {"average": self.average} if self.average else {}
        parts |= {"scaler": self.scaler} if self.scaler.is_enabled() else {}
        self.checkpointer = Checkpointer(cfg, self.model, engine.named_state, cfg.OUTPUT_DIR, classes, **parts)
        self.start = self.done = 0
        self.finished = False  # before SOLVER.MAX_ITER, since nothing became better
        self.best, self.best_iteration, self.worse = None, None, 0
        self.evaluated = 0  # the number of steps before the last evaluation
        self._begin(resume)
        self.saved = self.done = self.start
        self.broken = torch.zeros((), device=self.device)  # 1 from the first loss on that is not finite
        self.optimizer.found_inf = self.broken
        self.trained = list(trained.values())
        self.parallel = self._parallel()
        self.pending: deque[_Step] = deque()
        self.before = None  # of a step under way: what it started with
        self.changing = False  # the weights, right now
        self.unwritable, self.path = False, None
        self.progress: Progress | None = None

    # ---- beginning ------------------------------------------------------------------------------

    def _begin(self, resume: bool):
        found = self.checkpointer.newest() if resume else None
        names = processes.of_all(found and found[0].name)
        if len(set(names)) > 1:
            raise CheckpointError(
                f"OUTPUT_DIR: expected a folder that all machines share, got {', '.join(map(str, names))} for the "
                "newest checkpoint"
            )
        if processes.rank() == 0:
            self.checkpointer.clean()
        if found:
            self._check_same_run(*found)
            self.start = self.checkpointer.resume(*found)["iteration"] + 1
            for group, settings in zip(self.optimizer.param_groups, self.settings):
                group.update(settings)  # the configuration's of today: a lower rate, perhaps
            logger.info("%s: resuming at iteration %d", found[0], self.start)
            return
        if resume:
            logger.info("%s: no checkpoint to resume from: the run starts anew", self.cfg.OUTPUT_DIR)
        if processes.rank() == 0:
            self.checkpointer.begin_anew()
        if self.cfg.MODEL.WEIGHTS:
            self.checkpointer.load(self.cfg.MODEL.WEIGHTS, strict=False)
            if self.average:
                self.average.reset()

    def _check_same_run(self, path, content: dict):
        """Raises CheckpointError for a run that cannot go on as it began."""
        before, now = (content.get(META) or {}).get("config", {}), flat(self.cfg)
        for name in FIXED:
            if name in before and plain(now[name]) != before[name]:
                raise CheckpointError(
                    f"{path}: was trained with {name} {before[name]!r}, not {now[name]!r}: --resume continues a run as "
                    f"it began; MODEL.WEIGHTS {path} starts another one from its weights"
                )
        run = content.get(RUN) or {}
        if run and run["builtin"] != self.engine.builtin:
            other = "torchvision" if run["builtin"] else "detectron2"
            raise CheckpointError(
                f"{path}: is of the other engine: --engine {other} resumes it; MODEL.WEIGHTS {path} starts anew from "
                "the weights"
            )
        if self.cfg.SEED >= 0 and run.get("seed", self.cfg.SEED) != self.cfg.SEED:
            raise CheckpointError(f"{path}: was trained with SEED {run['seed']}, not {self.cfg.SEED}")
        if run.get("images", len(self.records)) != len(self.records):
            raise CheckpointError(
                f"{path}: was trained on {run['images']} images, DATASETS.TRAIN has {len(self.records)}: their order "
                "cannot be continued"
            )

    def _parallel(self) -> nn.Module:
        if processes.world() == 1:
            return self.model
        devices = [self.device.index or 0] if self.device.type == "cuda" else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # newer versions of torch have another name for it
            # The gradients are all that is exchanged: statistics are those of the first process (see _metrics).
            return DistributedDataParallel(self.model, device_ids=devices, broadcast_buffers=False)

    # ---- the loop -------------------------------------------------------------------------------

    def train(self) -> dict[str, dict[str, float]]:
        """To SOLVER.MAX_ITER; returns the last metrics per dataset."""
        first, metrics = processes.rank() == 0, {}
        ahead = 1 if self.device.type == "cuda" else 0  # steps that a device may still be at
        with processes.StopRequest() as self.stop, self.engine.training(self.start):
            if self.finished or self.start >= self.limit:
                logger.info("nothing to train: iteration %d of %d", self.start, self.limit)
                return self._metrics()
            self.model.train()
            self.progress = Progress(self.cfg.OUTPUT_DIR, self.start, self.limit) if first else None
            bad, mapper = BadImages(self.cfg), self.engine.mapper(self.cfg)
            loader = train_loader(self.cfg, self.records, mapper, self.seed, self.start, bad)
            try:
                if self._due_for_evaluation() and self.evaluated != self.done:
                    metrics = self._evaluate()
                batches = iter(loader)
                while self.done < self.limit and not self.finished:
                    began = time.perf_counter()
                    inputs = [next(batches) for _ in range(self.parts)]
                    for part in inputs:
                        bad.count(part)
                    self._step(inputs, time.perf_counter() - began)
                    self._look_at(ahead)
                    if self.done == self.limit or self.done % self.cfg.SOLVER.CHECKPOINT_PERIOD == 0:
                        self._save()
                    if self._due_for_evaluation():
                        metrics = self._evaluate()
            except BaseException as error:
                bad.report(together=False)
                self._save_before(error)
                raise
            else:
                bad.report(together=True)
            finally:
                if self.progress:
                    self.progress.close()
        return metrics

    # ---- a step ---------------------------------------------------------------------------------

    def _step(self, parts: list[list[dict]], waited: float):
        iteration = self.done
        factor = self.schedule(iteration / self.limit)
        for group, settings in zip(self.optimizer.param_groups, self.settings):
            group["lr"] = settings["lr"] * factor
        self.before = self._state()
        self.optimizer.zero_grad()
        losses = self._backward(iteration, parts)
        names, values = list(losses), torch.stack([value.detach().float() for value in losses.values()])
        total = values.sum()
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        trained = [parameter for parameter in self.trained if parameter.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in trained], self.cfg.SOLVER.CLIP_GRADIENTS.NORM_TYPE)
        numbers = torch.cat([total[None], values])
        wrong, stop = ~numbers.isfinite().all(), numbers.new_full((1,), float(self.stop.signal is not None))
        shared = torch.cat([numbers, wrong[None].float(), stop])
        if processes.world() > 1:
            dist.all_reduce(shared)
            self._share_carried()
        # Under a loss scale gradients may overflow now and then: the scaler leaves the step out and halves the scale.
        wrong = shared[-2] > 0 if self.scaler.is_enabled() else (shared[-2] > 0) | ~norm.isfinite()
        self.broken.copy_(torch.maximum(self.broken, wrong.float()))
        shared = torch.cat([shared[:-2] / processes.world(), norm.float()[None], self.broken[None], shared[-1:]])
        clip_gradients(self.cfg, trained, norm)
        self.changing = True
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average:
            self.average.update()
        self.done, self.before, self.changing = iteration + 1, None, False
        files = [x["file_name"] for inputs in parts for x in inputs]
        host, ready = shared, None
        if shared.is_cuda:
            host = torch.empty(shared.shape, pin_memory=True)
            host.copy_(shared, non_blocking=True)
            ready = torch.cuda.Event()
            ready.record()
        rate = self.cfg.SOLVER.BASE_LR * factor
        self.pending.append(
            _Step(iteration, ["total_loss", *names, "grad_norm"], host, ready, values, files, rate, waited)
        )

    def _share_carried(self):
        """The processes' mean in all of them: a checkpoint has one value, and a resumed run goes on with that."""
        carried = self.engine.carried_state(self.model)
        if carried:
            values = torch.stack(
                [torch.as_tensor(value, dtype=torch.float32, device=self.device) for value in carried.values()]
            )
            dist.all_reduce(values)
            self.engine.carry(self.model, dict(zip(carried, values / processes.world())))

    def _backward(self, iteration, parts) -> dict[str, Tensor]:
        """The gradients of a step; its losses, the means of its parts."""
        sums: dict[str, Tensor] = {}
        counts = self._counts(iteration, parts) if len(parts) > 1 else None
        for number, inputs in enumerate(parts):
            last = number + 1 == len(parts)
            alone = processes.world() > 1 and not last
            with self.parallel.no_sync() if alone else contextlib.nullcontext():
                if counts is None:
                    losses = self._losses(self.parallel, iteration, number, inputs)
                else:
                    self.engine.carry(self.model, self.before[1])  # an average moves once in a step
                    with counted(counts, len(parts)):
                        losses = self._losses(self.parallel, iteration, number, inputs)
                total = sum(losses.values()) / len(parts)
                if self.scaler.is_enabled():  # whose optimizer does not see ``broken``
                    total = total * torch.where(self.broken > 0, float("nan"), 1.0)
                self.scaler.scale(total).backward()
            for name, value in losses.items():
                value = value.detach() / len(parts)
                sums[name] = sums[name] + value if name in sums else value
        return sums

    def _losses(self, model, iteration, number, inputs) -> dict[str, Tensor]:
        seed_everything(self.seed, STEP, iteration, processes.rank(), number)
        with torch.autocast(self.device.type, self.precision, enabled=self.cfg.SOLVER.AMP.ENABLED):
            return self.engine.losses(model, inputs, iteration)

    def _counts(self, iteration, parts) -> list[Tensor]:
        """What the losses of a whole step are divided by, from a first pass without gradients: losses that are divided
        by the positives of their part alone would not add up to those of the step.
        """
        found = []
        for number, inputs in enumerate(parts):
            with torch.no_grad(), counting() as counts:
                self._losses(self.model, iteration, number, inputs)
            if not counts:  # of a model whose losses are means over images
                break
            found.append(counts)
        self._restore(self.before)
        return [torch.stack(of_parts).sum() for of_parts in zip(*found)]

    def _look_at(self, left: int):
        """The numbers of the steps but for the last ``left``, which the device may still be at.

        Raises:
            TrainingError: a loss or a gradient is not finite; neither that step nor one after it has changed a weight.
            Interrupted: a signal came, in whichever process; saved.
        """
        stopped = processes.world() == 1 and self.stop.signal
        while len(self.pending) > left:
            step = self.pending.popleft()
            *numbers, broken, stop = step.wait().tolist()
            if broken:
                self._raise_divergence(step, numbers)
            if self.progress and self.progress.update(
                step.iteration, dict(zip(step.names, numbers)), step.rate, step.waited
            ):
                self.progress.scalars(step.iteration, self.engine.scalars())
            stopped = stopped or (processes.world() > 1 and stop)
        if stopped:
            self._interrupt()

    def _raise_divergence(self, step: _Step, numbers):
        mine = dict(zip(step.names[1:-1], step.losses.tolist())), step.files
        found = [(values, files) for values, files in processes.of_all(mine) if not _finite(values)]
        if found:
            what = "; ".join(
                f"a loss is not finite: {', '.join(f'{k} {v:.3g}' for k, v in values.items())}; images: "
                f"{', '.join(files)}"
                for values, files in found
            )
        else:
            losses = ", ".join(f"{k} {v:.3g}" for k, v in zip(step.names[:-1], numbers))
            what = f"a gradient is not finite, the losses are: {losses}; images: {', '.join(step.files)}"
        last = self.checkpointer.last() if self.saved else None
        kept = f"{last} is from before it" if last else "no checkpoint is from before it"
        raise TrainingError(
            f"iteration {step.iteration + 1}: {what}; learning rate {step.rate:.3g}. Nothing of it is saved; {kept}. "
            "Try a lower SOLVER.BASE_LR, a longer SOLVER.WARMUP_ITERS, or SOLVER.CLIP_GRADIENTS.ENABLED True with "
            "CLIP_TYPE full_model; or look at these images"
        )

    # ---- checkpoints ----------------------------------------------------------------------------

    def _save(self):
        """A checkpoint of the steps done, after a look at all of them."""
        self._look_at(0)
        if self.saved != self.done or self.finished:
            self._write()

    def _write(self):
        last = self.done == self.limit or self.finished
        self.path = self.checkpointer.folder / ("model_final.pth" if last else f"model_{self.done - 1:07d}.pth")
        if processes.rank() == 0:
            try:
                self.checkpointer.save(self.path.stem, iteration=self.done - 1)
                if last and self.average:
                    with self.average.applied():
                        self.checkpointer.save_weights("model_final_ema", iteration=self.done - 1)
            except DamagedError as error:
                raise TrainingError(f"{error}; nothing is saved. Try a lower SOLVER.BASE_LR") from None
            except CheckpointError:
                self.unwritable = True
                raise
            self.checkpointer.keep(self.cfg.SOLVER.MAX_TO_KEEP)
        self.saved = self.done

    def _interrupt(self):
        """Saves and ends."""
        number = self.stop.signal or signal.SIGTERM
        for step in self.pending:  # of which nothing has been said yet
            *numbers, broken, _ = step.wait().tolist()
            if broken:
                self._raise_divergence(step, numbers)
        if self.saved != self.done:
            self._write()
        raise Interrupted(number)

    def _save_before(self, error: BaseException):
        """What was trained until an error, unless that is what is wrong; a step that was under way is taken back."""
        try:
            if self.changing or self.unwritable or isinstance(error, TrainingError):
                return
            if self.before is not None:
                self._restore(self.before)
            if self.saved != self.done and not self.broken:
                self._write()
        except Exception as second:  # the first is what has to be said
            logger.error("nothing could be saved: %s", second)
        if isinstance(error, Interrupted) and self.path:
            error.args = (
                error.signal,
                f"stopped by {signal.Signals(error.signal).name} after iteration {self.saved}: saved {self.path}; "
                "--resume goes on from there",
            )

    def _state(self):
        """What a forward pass changes beside its results."""
        return [value.clone() for value in self.statistics.values()], self.engine.carried_state(self.model)

    def _restore(self, state):
        for value, old in zip(self.statistics.values(), state[0]):
            value.copy_(old)
        self.engine.carry(self.model, state[1])

    # ---- evaluation -----------------------------------------------------------------------------

    def _due_for_evaluation(self) -> bool:
        period = self.cfg.TEST.EVAL_PERIOD
        if not self.cfg.DATASETS.TEST or self.done == 0:
            return False
        return self.done == self.limit or bool(period and self.done % period == 0)

    def _evaluate(self) -> dict[str, dict[str, float]]:
        self._look_at(0)
        metrics = self._metrics()
        self.evaluated = self.done
        if self.progress:
            for dataset, values in metrics.items():
                self.progress.scalars(self.done - 1, {f"{dataset}/{name}": value for name, value in values.items()})
        self._judge(metrics)
        return metrics

    def _metrics(self):
        """Of the average where there is one. A signal ends it at once: nothing is lost by that."""
        if processes.world() > 1:  # each has seen other images
            for value in self.statistics.values():
                dist.broadcast(value, 0)
        self.stop.at_once = True
        try:
            if self.stop.signal:
                raise Interrupted(self.stop.signal)
            with self._averaged():
                return self.engine.evaluate(self.cfg, self.model)
        finally:
            self.stop.at_once = False

    def _averaged(self):
        return self.average.applied() if self.average else contextlib.nullcontext()

    def _judge(self, metrics):
        """TEST.BEST_METRIC: keeps the best weights, and ends a run that has not become better for long."""
        name = self.cfg.TEST.BEST_METRIC
        if not name:
            return
        value = _metric(name, metrics)
        if value == value and (self.best is None or value > self.best):
            self.best, self.best_iteration, self.worse = value, self.done - 1, 0
            if processes.rank() == 0:
                with self._averaged():
                    self.checkpointer.save_weights("model_best", iteration=self.done - 1, metrics={name: value})
            return
        self.worse += 1
        if self.cfg.TEST.PATIENCE and self.worse >= self.cfg.TEST.PATIENCE and self.done < self.limit:
            logger.info(
                "iteration %d: %s has not become better than %s, of iteration %s, in %d evaluations: the training ends",
                self.done, name, self.best, self.best_iteration, self.worse,
            )  # fmt: skip
            self.finished = True
            self._save()

    # ---- what a checkpoint holds of it ------------------------------------------------------------

    def state_dict(self) -> dict:
        return {name: getattr(self, name) for name in _STATE} | {
            "images": len(self.records),
            "builtin": self.engine.builtin,
            "carried": self.engine.carried_state(self.model),
        }

    def load_state_dict(self, state: dict):
        for name in _STATE:
            setattr(self, name, state[name])
        self.engine.carry(self.model, state["carried"])


_STATE = ("seed", "best", "best_iteration", "worse", "evaluated", "finished")


def _precision(cfg, device: torch.device):
    """The type of an autocast, and the scale of the losses that float16 needs and bfloat16 does not."""
    half = device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    scaler = torch.amp.GradScaler(device.type, enabled=half and cfg.SOLVER.AMP.ENABLED)
    return torch.float16 if half else torch.bfloat16, scaler


def _statistics(model: nn.Module) -> dict[str, Tensor]:
    """What BatchNorm keeps of the batches that it has seen."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            found |= {f"{name}.{key}": getattr(module, key) for key in ("running_mean", "running_var")}
    return found


def _finite(values: dict[str, float]) -> bool:
    return all(math.isfinite(value) for value in values.values())


def _metric(name: str, metrics: dict[str, dict[str, float]]) -> float:
    """A metric of the first dataset of DATASETS.TEST, or, as ``dataset/metric``, of another one."""
    dataset, _, metric = name.rpartition("/")
    values = metrics.get(dataset, {}) if dataset else next(iter(metrics.values()))
    if metric not in values:
        known = ", ".join(values) or ", ".join(metrics)
        raise ConfigError(f"TEST.BEST_METRIC: expected one of {known}, got {name!r}")
    return values[metric]
