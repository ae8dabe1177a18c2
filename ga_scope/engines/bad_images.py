"""Images that cannot be read in a training: an error, or left out, counted and named (DATALOADER.BAD_IMAGES).

In evaluation they are always an error: a score without them is another score.
"""

import logging
from collections.abc import Callable, Sequence

from ..errors import DatasetError
from . import processes

logger = logging.getLogger(__name__)

FAULTS = "bad_images"  # the entry of an input with the lines on those that it stands in for


class BadImages:
    """What becomes of them in one training."""

    def __init__(self, cfg):
        self.skip = cfg.DATALOADER.BAD_IMAGES == "skip"
        self.most = cfg.DATALOADER.MAX_BAD_IMAGES
        self.found: dict[str, None] = {}  # lines, in the order in which they came

    def mapped(self, mapper: Callable[[dict], dict], records: Sequence[dict], index: int) -> dict:
        """A record through a mapper; in the place of one whose image cannot be read, the next one that can.

        Which one that is follows from the index alone: a run that is resumed sees the same.

        Raises:
            DatasetError: it cannot be read and is not to be left out; or too many one after the other.
        """
        if not self.skip:
            return mapper(records[index])
        faults: list[str] = []
        for step in range(min(len(records), self.most + 1)):
            try:
                found = mapper(records[(index + step) % len(records)])
            except DatasetError as error:
                faults.append(str(error))
            else:
                return found | {FAULTS: faults} if faults else found
        raise self._too_many(faults)

    def count(self, inputs: list[dict]):
        """Takes the lines from the inputs of a step.

        Raises:
            DatasetError: there are more than DATALOADER.MAX_BAD_IMAGES by now.
        """
        for x in inputs:
            for line in x.pop(FAULTS, ()):
                if line not in self.found:
                    logger.warning("left out: %s", line)
                    self.found[line] = None
        if len(self.found) > self.most:
            raise self._too_many(list(self.found))

    def _too_many(self, faults: list[str]) -> DatasetError:
        return DatasetError(
            f"DATALOADER.MAX_BAD_IMAGES: expected at most {self.most} images that cannot be read, got {len(faults)}; "
            f"the last of them: {faults[-1]}"
        )

    def report(self, together: bool):
        """Names all that were left out, those of all processes if ``together``."""
        of_each = processes.of_all(list(self.found)) if together else [list(self.found)]
        lines = sorted({line for lines in of_each for line in lines})
        if lines:
            logger.warning("%d images were left out of the training: %s", len(lines), "; ".join(lines))
