"""Checkpoints that do not fit are errors that name the file and the parameters. For either engine's checkpointer."""

import logging
import re

logger = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message names the file."""


class CheckedLoading:
    """Mixin before an fvcore ``Checkpointer``.

    With ``strict`` (evaluation, resuming) every parameter must be there in its shape. Without (weights to
    start from) parameters that are missing or of another shape start fresh and are named in a warning, as
    for a new number of classes; but a file of which nothing fits is an error. So is a file to resume from without
    the optimizer's state: the other engine keeps that in another form.
    """

    strict = False

    def load(self, path, checkpointables=None):
        self._loading = path
        if not path:
            return super().load(path, checkpointables)
        try:
            content = super().load(path, checkpointables)
        except CheckpointError:
            raise
        except AssertionError as error:
            raise CheckpointError(f"{path}: {error}") from None
        except Exception as error:  # a truncated zip, a pickle of something else: whatever the reader says
            raise CheckpointError(f"{path}: not a checkpoint that can be read: {error}") from error
        absent = set(self.checkpointables if checkpointables is None else ()) - self._loaded
        if absent:
            raise CheckpointError(
                f"{path}: expected {', '.join(sorted(absent))} to resume from, got none: a file of the other engine? "
                f"--engine chooses that one; MODEL.WEIGHTS {path} starts anew from the weights"
            )
        return content

    def _load_model(self, checkpoint):
        self._loaded = set(checkpoint)
        return super()._load_model(checkpoint)

    def _log_incompatible_keys(self, incompatible):
        missing = [name for name in incompatible.missing_keys]
        shapes = [f"{name}: {tuple(file)} in the file, {tuple(model)} in the model"
                  for name, file, model in incompatible.incorrect_shapes]  # fmt: skip
        # Counters of BatchNorm are in no detectron2 checkpoint, and nothing depends on them.
        parameters = sum(not name.endswith("num_batches_tracked") for name in self.model.state_dict())
        if self.strict and (missing or shapes):
            problems = _some(shapes + [f"{name}: missing" for name in missing])
            raise CheckpointError(f"{self._loading}: does not fit the model: {problems}")
        if parameters and len(missing) + len(shapes) >= parameters:
            example = _some(shapes or missing)
            raise CheckpointError(f"{self._loading}: no parameter fits the model, for example {example}")
        if missing or shapes:
            logger.warning("%s: these start fresh: %s", self._loading, _some(shapes + missing, 20))


def _some(items, most=3):
    more = f", and {len(items) - most} more" if len(items) > most else ""
    return "; ".join(items[:most]) + more


def renamed(name: str, table) -> str | None:
    """The name of a parameter elsewhere, None where no row fits.

    ``table`` holds (regular expression of the whole name, what becomes of it): groups as in :func:`re.sub`, and
    sums of two digits in braces, as in ``res{\\1+1}``.
    """
    for pattern, template in table:
        match = re.fullmatch(pattern, name)
        if match:
            return re.sub(
                r"\{(\d)\+(\d)\}", lambda digits: str(int(digits[1]) + int(digits[2])), match.expand(template)
            )
    return None
