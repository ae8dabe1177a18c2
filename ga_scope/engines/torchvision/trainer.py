"""Training on one device."""

import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from ..checkpoint import Checkpointer
from .data import build_train_loader
from .model import build_model
from .names import named_state
from .solver import build_lr_schedule, build_optimizer, clip_gradients

logger = logging.getLogger(__name__)

LOG_PERIOD = 20  # iterations


class Trainer:
    """Model, optimizer, data and checkpoints of one configuration.

    ``resume`` continues from OUTPUT_DIR's last checkpoint if there is one; otherwise MODEL.WEIGHTS, if
    given, is what training starts from.

    Args:
        records: to train on.
        classes: their names, None for a model that knows none.
        evaluate: from the model to its metrics per dataset.
    """

    def __init__(self, cfg, records, classes, evaluate: Callable, resume: bool = False):
        self.cfg, self.records, self.evaluate = cfg, records, evaluate
        self.output = Path(cfg.OUTPUT_DIR)
        self.seed = cfg.SEED if cfg.SEED >= 0 else int(torch.randint(2**31, ()))
        torch.manual_seed(self.seed)
        self.model = build_model(cfg)
        self.optimizer = build_optimizer(cfg, self.model)
        self.schedule = build_lr_schedule(cfg)
        self.checkpointer = Checkpointer(
            cfg, self.model, named_state, cfg.OUTPUT_DIR, classes, optimizer=self.optimizer
        )  # fmt: skip
        self.start = 0
        last = self.checkpointer.last() if resume else None
        if last:
            self.start = self.checkpointer.resume(last)["iteration"] + 1
            logger.info("resuming at iteration %d", self.start)
        elif cfg.MODEL.WEIGHTS:
            self.checkpointer.load(cfg.MODEL.WEIGHTS, strict=False)

    def train(self) -> dict[str, dict[str, float]]:
        """To SOLVER.MAX_ITER; saves every CHECKPOINT_PERIOD iterations and at the end. Returns the last metrics."""
        cfg, limit = self.cfg, self.cfg.SOLVER.MAX_ITER
        if self.start >= limit:
            logger.info("nothing to train: iteration %d of %d", self.start, limit)
            return self.evaluate(self.model)
        self.model.train()
        batches = iter(build_train_loader(cfg, self.records, self.seed, self.start))
        self.output.mkdir(parents=True, exist_ok=True)
        metrics = {}
        with SummaryWriter(self.output) as board, open(self.output / "training.jsonl", "a") as log:
            progress, done = Progress(self.start, limit, board, log), self.start
            try:
                for iteration in range(self.start, limit):
                    rate = cfg.SOLVER.BASE_LR * self.schedule(iteration / limit)
                    began = time.perf_counter()
                    inputs = next(batches)
                    waited = time.perf_counter() - began
                    losses = self._step(inputs, rate)
                    done = iteration + 1
                    progress.update(iteration, losses, rate, waited)
                    if done == limit:
                        self.checkpointer.save("model_final", iteration=iteration)
                    elif done % cfg.SOLVER.CHECKPOINT_PERIOD == 0:
                        self.checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
                    period = cfg.TEST.EVAL_PERIOD
                    if cfg.DATASETS.TEST and (done == limit or (period and done % period == 0)):
                        metrics = self.evaluate(self.model)
                        for dataset, values in metrics.items():
                            for name, value in values.items():
                                board.add_scalar(f"{dataset}/{name}", value, iteration)
            except BaseException:
                # A broken image, Ctrl-C: what has been learned so far is not lost.
                if done > self.start:
                    self.checkpointer.save(f"model_{done - 1:07d}", iteration=done - 1)
                raise
        return metrics

    def _step(self, inputs, rate):
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        device = torch.device(self.cfg.MODEL.DEVICE).type
        with torch.autocast(device, enabled=self.cfg.SOLVER.AMP.ENABLED, dtype=torch.bfloat16):
            losses = self.model(inputs).losses
        total = sum(losses.values())
        if not math.isfinite(total.item()):
            names = ", ".join(f"{name} {value.item():.3g}" for name, value in losses.items())
            files = ", ".join(x["file_name"] for x in inputs)
            raise FloatingPointError(f"a loss is not finite: {names}; images: {files}")
        self.optimizer.zero_grad()
        total.backward()
        clip_gradients(self.cfg, self.model)
        self.optimizer.step()
        return {"total_loss": total.item()} | {name: value.item() for name, value in losses.items()}


class Progress:
    """Smoothed losses and the time left: on the console, in TensorBoard, and line by line in a file."""

    def __init__(self, start, limit, board, log):
        self.limit, self.board, self.log = limit, board, log
        self.began, self.start = time.perf_counter(), start
        self.sums, self.count, self.waited = {}, 0, 0.0

    def update(self, iteration, losses, rate, waited):
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.board.add_scalar(name, value, iteration)
        self.board.add_scalar("lr", rate, iteration)
        self.count += 1
        self.waited += waited
        if (iteration + 1) % LOG_PERIOD and iteration + 1 != self.limit:
            return
        done = iteration + 1 - self.start
        per_iteration = (time.perf_counter() - self.began) / done
        left = time.strftime("%H:%M:%S", time.gmtime(per_iteration * (self.limit - iteration - 1)))
        means = {name: total / self.count for name, total in self.sums.items()}
        shown = "  ".join(f"{name}: {value:.3f}" for name, value in means.items())
        logger.info(
            "iter: %d/%d  %s  lr: %.2e  time: %.2f s (data: %.2f)  eta: %s",
            iteration + 1, self.limit, shown, rate, per_iteration, self.waited / self.count, left,
        )  # fmt: skip
        self.log.write(json.dumps({"iteration": iteration + 1, "lr": rate, "time": per_iteration} | means) + "\n")
        self.log.flush()
        self.sums, self.count, self.waited = {}, 0, 0.0
