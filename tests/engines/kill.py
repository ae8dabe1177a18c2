"""All of tests/engines/test_killed.py: ``python -m tests.engines.kill ENGINE [KILLS]``, half of them in a save."""

import itertools
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch

from ga_scope.data import make_shapes

from .test_killed import kill_and_resume, trained
from .test_training import assert_same, content
from .tiny import use_tiny_model


def main(engine, kills=20, seed=0):
    torch.set_num_threads(1)
    use_tiny_model(setattr)
    generator, hits = random.Random(seed), 0
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        shapes = make_shapes(folder / "shapes", train=24, val=10, size=128, seed=5)
        began = time.monotonic()
        trained(engine, shapes, folder / "whole")
        seconds = time.monotonic() - began
        for number in itertools.count():
            if hits == kills:
                break
            saving = hits % 2 == 1
            hit = kill_and_resume(engine, shapes, folder / str(number), generator, saving, seconds)
            assert_same(content(folder / str(number)), content(folder / "whole"))
            shutil.rmtree(folder / str(number))
            hits += hit
            print(f"{number + 1}: {'in a save' if saving else 'between'}, {'killed' if hit else 'was over'}: equal")
    print(f"{engine}: {kills} killed runs, each resumed to an undisturbed run's weights (seed {seed})")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
