"""What a training says while it runs."""

import datetime
import json
import logging
import time
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)

LOG_PERIOD = 20  # iterations


class Progress:
    """Losses on the console (means of some steps), in TensorBoard (every step) and in ``training.jsonl``.

    Args:
        folder: for the files.
        start, limit: iterations of this run.
    """

    def __init__(self, folder, start: int, limit: int):
        self.start, self.limit = start, limit
        self._board = SummaryWriter(folder)
        path = Path(folder) / "training.jsonl"
        _forget(path, start)
        self._log = open(path, "a")
        self._began = time.perf_counter()
        self._sums, self._count, self._waited = {}, 0, 0.0

    def close(self):
        self._board.close()
        self._log.close()

    def update(self, iteration: int, values: dict[str, float], rate: float, waited: float) -> bool:
        """The numbers of a step, its learning rate, and the seconds that it waited for its images. Whether it was one
        for the console.
        """
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self.scalars(iteration, values | {"lr": rate})
        self._count += 1
        self._waited += waited
        done = iteration + 1
        if done % LOG_PERIOD and done != self.limit:
            return False
        per_iteration = (time.perf_counter() - self._began) / (done - self.start)
        left = datetime.timedelta(seconds=int(per_iteration * (self.limit - done)))
        means = {name: total / self._count for name, total in self._sums.items()}
        shown = "  ".join(f"{name}: {value:.3f}" for name, value in means.items())
        logger.info(
            "iter: %d/%d  %s  lr: %.2e  time: %.2f s (data: %.2f)  eta: %s",
            done, self.limit, shown, rate, per_iteration, self._waited / self._count, left,
        )  # fmt: skip
        self._log.write(json.dumps({"iteration": done, "lr": rate, "time": per_iteration} | means) + "\n")
        self._log.flush()
        self._sums, self._count, self._waited = {}, 0, 0.0
        return True

    def scalars(self, iteration: int, values: dict[str, float]):
        """For TensorBoard alone."""
        for name, value in values.items():
            self._board.add_scalar(name, value, iteration)


def _forget(path: Path, start: int):
    """The lines of steps that will be done again."""
    if not path.exists():
        return
    lines = path.read_text(errors="replace").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and _iteration(line) <= start]
    if kept != lines:
        path.write_text("".join(kept))


def _iteration(line: str) -> float:
    try:
        return json.loads(line)["iteration"]
    except (ValueError, KeyError, TypeError):
        return float("inf")
