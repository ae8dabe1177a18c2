"""One line from a configuration and weights to results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .config import class_key, get
from .data import Dataset, Records, image_record, read_image
from .data.images import upright_rgb
from .engines import Engine, get_engine
from .engines.base import TestMapper
from .engines.checkpoint import LAST
from .errors import CheckpointError, ConfigError, DatasetError
from .modeling.results import ImageResult
from .visualization.boxes import draw_detections

ImageLike = str | Path | Image.Image | np.ndarray | Tensor


@dataclass
class Detected(ImageResult):
    """The results of one image, in its pixels.

    Attributes:
        class_names: of all classes, in the order of ``classes``.
        record: the dict of the image.
    """

    class_names: tuple[str, ...] = ()
    record: dict | None = None

    @property
    def names(self) -> list[str]:
        """The names of the detections."""
        return [] if self.classes is None else [self.class_names[label] for label in self.classes.tolist()]

    @property
    def image(self) -> Image.Image:
        """Upright, RGB."""
        return read_image(self.record)

    def draw(self, score_thresh: float = 0.5) -> Image.Image:
        """The image with the detections of at least that score; of a model without any, its 30 best proposals."""
        return draw_detections(self.image, self, self.class_names, score_thresh)


class Detector:
    """A trained model of either engine as a function of images.

    ::

        detector = Detector("configs/shapes/ga_faster_rcnn_R_18_FPN.yaml", "output/demo/model_final.pth")
        found = detector("photo.jpg")
        found.boxes, found.scores, found.names
        found.draw().save("drawn.png")

    The dataset need not be there: class names travel with the weights.

    Args:
        config: yaml configuration.
        weights: checkpoint; by default the configuration's MODEL.WEIGHTS.
        overrides: KEY VALUE pairs, as on the command line.
        engine: ``"auto"``, ``"detectron2"`` or ``"torchvision"``.

    Raises:
        ConfigError, CheckpointError: naming the key or the file; also where the weights were trained with settings that
            differ from the configuration's.
    """

    def __init__(self, config, weights=None, overrides=(), engine: str | Engine = "auto"):
        self.engine = engine if isinstance(engine, Engine) else get_engine(engine)
        more = [] if weights is None else ["MODEL.WEIGHTS", str(weights)]
        self.cfg = self.engine.setup(config, [*overrides, *more])
        self.model, classes = self.engine.load(self.cfg)
        self.classes = tuple(classes) if classes is not None else self._names()

    def _names(self) -> tuple[str, ...]:
        """Of weights that do not say: those of the dataset to test on, numbers where that is not on this machine."""
        key = class_key(self.cfg)
        if key is None:
            return ()
        for name in self.cfg.DATASETS.TEST:
            try:
                return self.engine.dataset(name, self.cfg).classes
            except DatasetError:
                continue
        return tuple(str(label) for label in range(get(self.cfg, key)))

    def __call__(self, images: ImageLike | list[ImageLike], maps: bool = False) -> Detected | list[Detected]:
        """The results of an image, or of a list of them.

        Args:
            images: paths; PIL images; arrays (H, W, 3), RGB, uint8, or (H, W), uint8 or uint16; tensors (3, H, W), RGB,
                uint8, or float in [0, 1].
            maps: also what the results come from (:class:`ga_scope.modeling.results.ImageResult`).
        """
        if not isinstance(images, (list, tuple)):
            return next(iter(self.stream([image_of(images)], maps=maps)))
        return list(self.stream([image_of(image) for image in images], maps=maps))

    @classmethod
    def of_run(cls, folder, overrides=(), engine: str | Engine = "auto") -> Detector:
        """What a training left in its OUTPUT_DIR: its configuration and its best weights (:func:`run_weights`).

        Raises:
            ConfigError, CheckpointError: naming what is not there.
        """
        return cls(run_config(folder), run_weights(folder), ["MODEL.DEVICE", "auto", *overrides], engine)

    def stream(
        self, records: Dataset | Records | list[dict] | Iterable[dict], batch_size: int = 1, maps: bool = False
    ) -> Iterator[Detected]:
        """The results of a dataset's images, or of dicts (:func:`ga_scope.data.image_record`), one after the other.

        An iterable without a length, as of a camera, is read as the results are asked for.
        """
        if isinstance(records, Sequence):
            found = self.engine.predict(self.cfg, self.model, records, batch_size, maps)
            pairs = ((records[index], result) for index, (_, result) in enumerate(found))
        else:
            pairs = self._stream(records, batch_size, maps)
        for record, result in pairs:
            values = {field.name: getattr(result, field.name) for field in fields(ImageResult)}
            yield Detected(**values, class_names=self.classes, record=record)

    def _stream(self, records, batch_size, maps):
        mapper, records = TestMapper(self.cfg), iter(records)
        while batch := list(islice(records, batch_size)):
            inputs = [mapper(record) for record in batch]
            found = self.engine.infer(self.model, inputs, maps, self.cfg.TEST.PRECISION)
            yield from zip(batch, self.engine.image_results(inputs, found))


def run_config(folder) -> Path:
    """The configuration of a run, in its OUTPUT_DIR.

    Raises:
        ConfigError: there is none.
    """
    path = Path(folder) / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{folder}: expected the OUTPUT_DIR of a training, with config.yaml in it, got none")
    return path


def run_weights(folder) -> Path:
    """The best weights of a run that was evaluated on its way; else those that it ended with; else its newest.

    Raises:
        CheckpointError: there are none.
    """
    folder = Path(folder)
    pointer = folder / LAST
    names = ["model_best.pth", "model_final.pth", *([pointer.read_text().strip()] if pointer.is_file() else [])]
    found = [folder / name for name in names if (folder / name).is_file()]
    if not found:
        raise CheckpointError(f"{folder}: expected a checkpoint (model_final.pth), got none")
    return found[0]


def image_of(image: ImageLike) -> dict:
    """A dataset dict of a file or of an image in memory.

    Raises:
        DatasetError: it is neither.
    """
    if isinstance(image, (str, Path)):
        return image_record(image)
    if isinstance(image, Tensor):
        image = _array_of(image)
    if isinstance(image, np.ndarray):
        right = image.dtype in (np.uint8, np.uint16) and (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3))
        if not right or not image.size or (image.dtype == np.uint16 and image.ndim == 3):
            raise DatasetError(
                "image: expected an array (H, W, 3) of uint8 or (H, W) of uint8 or uint16, got "
                f"{tuple(image.shape)} of {image.dtype}"
            )
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise DatasetError(f"image: expected a path, a PIL image, an array or a tensor, got {type(image).__name__}")
    image = upright_rgb(image)
    return {"file_name": "", "image_id": 0, "height": image.height, "width": image.width, "pixels": image}


def _array_of(image: Tensor) -> np.ndarray:
    right = image.dim() == 3 and image.shape[0] == 3 and (image.dtype == torch.uint8 or image.is_floating_point())
    if not right:
        raise DatasetError(
            "image: expected a tensor (3, H, W) of uint8 or of floats in [0, 1], got "
            f"{tuple(image.shape)} of {image.dtype}"
        )
    if image.is_floating_point():
        if not bool(((image >= 0) & (image <= 1)).all()):
            raise DatasetError("image: expected floats in [0, 1], got others")
        image = (image * 255).round().to(torch.uint8)
    return image.permute(1, 2, 0).contiguous().cpu().numpy()
