"""Which images a step trains on, and every random number of a training, from its seed and the number of the step.

Nothing here has a state that a checkpoint would have to hold: a run that is resumed at a step draws what it would have
drawn there, with any number of workers, and sees the same images with any number of processes.
"""

import random
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as LoaderDataset

from ..data import Records
from .bad_images import BadImages
from .processes import in_worker, rank, world

# What a seed is drawn for.
WEIGHTS, ORDER, IMAGE, STEP = range(4)


def seed_everything(*key: int):
    """Python's, numpy's and torch's generators, of a GPU too, from whole numbers; other numbers, other draws."""
    words = [int(word) for word in np.random.SeedSequence(key).generate_state(4, np.uint64)]
    random.seed(words[0])
    np.random.seed(words[1] % 2**32)  # noqa: NPY002 (detectron2's augmentations draw from it)
    torch.default_generator.manual_seed(words[2])
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(words[3])


class Batches:
    """The images of every step of a run, without end: lists of (position in the run, index of the image).

    Positions run through permutations of all images, one after the other. A step's images are all wide or all tall, so
    that little is padded; those that do not fill a batch yet wait.

    Args:
        wide: (N,) of every image, whether it is wider than high; None: one group for all.
        size: the number N.
        batch_size: of a step, over all processes.
        seed: of the run.
    """

    def __init__(self, wide: np.ndarray | None, size: int, batch_size: int, seed: int):
        self.wide, self.size, self.batch_size, self.seed = wide, size, batch_size, seed

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        waiting = {False: [], True: []}
        for position, index in enumerate(self._order()):
            group = waiting[bool(self.wide is not None and self.wide[index])]
            group.append((position, index))
            if len(group) == self.batch_size:
                yield list(group)
                group.clear()

    def _order(self):
        epoch = 0
        while True:
            state = np.random.SeedSequence((self.seed, ORDER, epoch))
            yield from np.random.Generator(np.random.PCG64(state)).permutation(self.size).tolist()
            epoch += 1


class _Share:
    """The parts of this process of the batches from a step on."""

    def __init__(self, batches: Batches, start: int, parts: int):
        self.batches, self.start, self.parts = batches, start, parts
        self.first, self.step = rank(), world() * parts

    def __iter__(self):
        for number, batch in enumerate(self.batches):
            if number >= self.start:
                for part in range(self.parts):
                    yield batch[self.first + part * (self.step // self.parts) :: self.step]


class _Mapped(LoaderDataset):
    """Records through a mapper that draws from generators of the image's position in the run."""

    def __init__(self, records, mapper, seed, bad: BadImages):
        self.records, self.mapper, self.seed, self.bad = records, mapper, seed, bad

    def __len__(self):
        return len(self.records)

    def __getitem__(self, item):
        position, index = item
        seed_everything(self.seed, IMAGE, position)
        return self.bad.mapped(self.mapper, self.records, index)


def train_loader(cfg, records: Records, mapper, seed: int, start: int = 0, bad: BadImages | None = None) -> DataLoader:
    """Lists of mapped records, without end: SOLVER.ACCUMULATION_STEPS lists for every step from ``start`` on, this
    process's share of SOLVER.IMS_PER_BATCH.
    """
    wide = records.wide() if cfg.DATALOADER.ASPECT_RATIO_GROUPING else None
    batches = Batches(wide, len(records), cfg.SOLVER.IMS_PER_BATCH, seed)
    return DataLoader(
        _Mapped(records, mapper, seed, bad or BadImages(cfg)),
        batch_sampler=_Share(batches, start, cfg.SOLVER.ACCUMULATION_STEPS),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=list,
        pin_memory=cfg.MODEL.DEVICE.startswith("cuda"),  # from elsewhere a copy waits for what the GPU is at
        worker_init_fn=in_worker,
        generator=torch.Generator().manual_seed(seed),  # else it would draw from the training's
    )
