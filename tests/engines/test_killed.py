"""kill -9 at random moments, also in the middle of a save: the run goes on and ends in the same weights."""

import os
import random
import time

import pytest
import torch

from .conftest import ENGINES, overrides, run
from .forked import fork, killed_training, wait
from .test_training import assert_same, content, tensors
from .tiny import use_tiny_model

STEPS, PERIOD = 12, 2


@pytest.fixture(scope="module", autouse=True)
def tiny():
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_model(patch.setattr)
        yield


def options(shapes, output):
    more = {"SOLVER.MAX_ITER": STEPS, "SOLVER.CHECKPOINT_PERIOD": PERIOD, "DATASETS.TEST": (), "SOLVER.MAX_TO_KEEP": 3,
            "DATALOADER.NUM_WORKERS": 1, "MODEL_EMA.ENABLED": True}  # fmt: skip
    return overrides(shapes, output, **more)


def trained(engine, shapes, folder, *flags):
    assert wait(fork(run, "ga_rpn", engine, options(shapes, folder), *flags)) == 0


def in_a_save(generator, stall):
    """Within one of the syncs: of a checkpoint, of the folder, of the file that names the newest."""
    number, part = generator.randrange(1, 4 * STEPS // PERIOD), generator.random()

    def moment(pipe):
        for _ in range(number + 1):
            if not os.read(pipe, 1):
                return
        time.sleep(part * stall)

    return moment


def between(generator, seconds):
    part = generator.random()

    def moment(pipe):
        os.read(pipe, 1)
        time.sleep(part * seconds)

    return moment


def kill_and_resume(engine, shapes, folder, generator, saving, seconds) -> bool:
    """Killed, perhaps in a save; resumed to the end. Whether the kill hit the training."""
    stall = 0.3 if saving else 0.0
    moment = in_a_save(generator, stall) if saving else between(generator, seconds)
    hit = killed_training("ga_rpn", engine, options(shapes, folder), [], moment, stall)
    for path in folder.glob("*.pth"):  # a name is there with the whole of its file, or not at all
        assert all(value.isfinite().all() for value in tensors(torch.load(path, weights_only=True)).values())
    trained(engine, shapes, folder, "--resume")
    assert not list(folder.glob("*.part"))
    return hit


@pytest.mark.parametrize("engine", ENGINES)
def test_a_killed_run_ends_where_an_undisturbed_one_does(engine, shapes, tmp_path, seed):
    """Four of twenty: ``python -m tests.engines.kill``."""
    began = time.monotonic()
    trained(engine, shapes, tmp_path / "whole")
    seconds, generator = time.monotonic() - began, random.Random(seed)
    for number in range(4):
        kill_and_resume(engine, shapes, tmp_path / str(number), generator, number % 2 == 1, seconds)
        assert_same(content(tmp_path / str(number)), content(tmp_path / "whole"))
