"""Marks that skip with a reason where something is missing, and reproducible seeds.

``pytest -ra`` (set in pyproject.toml) prints every skip with its reason; the last line counts them.
"""

import importlib.util
import logging
import os
import random
import zlib

import pytest
import torch

NEEDS = {
    "detectron2": (importlib.util.find_spec("detectron2") is not None, "detectron2 is not installed"),
    "gpu": (torch.cuda.is_available(), "no CUDA device"),
}


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="also the tests that take minutes: make test-all")


def pytest_configure():
    """pytest-xdist's processes share the cores, and the commands that tests start do, too."""
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if processes > 1:
        threads = max(1, os.cpu_count() // processes)
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)


def pytest_collection_modifyitems(config, items):
    needs = NEEDS | {"long": (config.getoption("--long", False), "takes long: make test-all")}
    for item in items:
        for mark, (available, reason) in needs.items():
            if item.get_closest_marker(mark) and not available:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def seed(request):
    """Every test draws its own numbers, the same in every run."""
    value = zlib.crc32(request.node.nodeid.encode())
    random.seed(value)
    torch.manual_seed(value)
    return value


@pytest.fixture(autouse=True)
def own_logging():
    """A run's logging ends with its test."""
    yield
    logger = logging.getLogger("ga_scope")
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    """Runs the test once per device: new tensors are on it. What it is compared with is not rounded to tf32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    with torch.device(request.param):
        yield request.param


@pytest.fixture
def deterministic():
    """torch's deterministic algorithms, for tests that compare gradients bit by bit."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
