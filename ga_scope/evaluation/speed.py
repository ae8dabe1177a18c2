"""How long a model takes for an image."""

import statistics
import time

import torch

from ..data import Dataset


def images_per_second(detector, limit: int, warm_up: int = 3) -> float:
    """Of a :class:`ga_scope.Detector` on the first images of DATASETS.TEST: the median over single images.

    Reading and resizing them is left out, and so are the first ``warm_up``.
    """
    dataset: Dataset = detector.engine.dataset(detector.cfg.DATASETS.TEST[0], detector.cfg).first(limit)
    times = []
    for inputs in detector.engine.inputs(detector.cfg, dataset):
        _wait()
        began = time.perf_counter()
        detector.engine.infer(detector.model, inputs)
        _wait()
        times.append(time.perf_counter() - began)
    return 1 / statistics.median(times[warm_up:] or times)


def _wait():
    if torch.cuda.is_available():
        torch.cuda.synchronize()
