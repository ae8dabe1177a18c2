"""Proposals of a dataset in a file: written once, read by detectors that have no proposal generator.

The project's format is an ``.npz`` of plain arrays, which is read without running any code of the file:

=========  =================  ====================================================
``ids``    (N,) strings       image ids
``counts`` (N,) int64         proposals of every image
``boxes``  (sum, 4) float32   x1, y1, x2, y2 in pixels of the image file, best first
``logits`` (sum,) float32     objectness
=========  =================  ====================================================

detectron2's format is a pickle, of which the arrays are read and nothing is run (:mod:`ga_scope.untrusted`).
"""

import pickle
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..errors import ConfigError, DatasetError
from ..modeling.results import ImageResult
from ..untrusted import check_archive, check_file, load_arrays
from .dataset import Dataset

XYXY_ABS = 0  # detectron2's BoxMode
FIELDS = ("ids", "counts", "boxes", "logits")


class ProposalWriter:
    """Writes proposals image by image, and at the end, in one step, the file: one that is there is whole.

    Boxes and logits go to the disk as they come. A path that ends in ``.pkl`` gets detectron2's format, any other must
    end in ``.npz``.
    """

    def __init__(self, path):
        self.path = Path(path)
        if self.path.suffix not in (".npz", ".pkl"):
            raise DatasetError(f"{path}: expected a name that ends in .npz or .pkl")
        self._ids, self._counts = [], []

    def __enter__(self) -> "ProposalWriter":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._parts = [tempfile.TemporaryFile(dir=self.path.parent) for _ in range(2)]
        return self

    def add(self, image_id, boxes, logits):
        """Boxes (K, 4) in pixels of the image file and logits (K,), best first."""
        boxes, logits = np.asarray(boxes, dtype=np.float32).reshape(-1, 4), np.asarray(logits, dtype=np.float32)
        for part, values in zip(self._parts, (boxes, logits)):
            part.write(values.tobytes())
        self._ids.append(image_id)
        self._counts.append(len(boxes))

    def __exit__(self, kind, error, trace):
        if kind is None:
            self._finish()
        for part in self._parts:
            part.close()

    def _finish(self):
        columns = []
        for part, width in zip(self._parts, (4, 1)):
            part.flush()
            shape = (sum(self._counts), width)
            # Read from the disk as it is written.
            columns.append(np.memmap(part, np.float32, "r", shape=shape) if shape[0] else np.zeros(shape, np.float32))
        boxes, logits = columns[0], columns[1][:, 0]
        partial = self.path.with_name(self.path.name + ".part")
        with open(partial, "wb") as file:
            if self.path.suffix == ".pkl":
                ends = np.cumsum(self._counts)[:-1]
                boxes, logits = (np.split(values, ends)[: len(self._ids)] for values in (boxes, logits))
                content = {"ids": self._ids, "boxes": boxes, "objectness_logits": logits, "bbox_mode": XYXY_ABS}
                pickle.dump(content, file)
            else:
                ids = np.array([str(image) for image in self._ids], dtype=np.str_)
                np.savez(file, ids=ids, counts=np.array(self._counts, dtype=np.int64), boxes=boxes, logits=logits)
        partial.replace(self.path)


def dump_proposals(path, dataset: Dataset, results: Iterable[ImageResult], limit: int | None = None):
    """Writes the ``limit`` best proposals of every image as they come.

    Args:
        results: of the dataset's images, in order.

    Raises:
        ConfigError: the results are of a model that makes no proposals.
    """
    with ProposalWriter(path) as file:
        for index, found in enumerate(tqdm(results, total=len(dataset), mininterval=5)):
            if found.proposals is None:
                raise ConfigError("MODEL.META_ARCHITECTURE: expected a model that makes proposals")
            file.add(dataset.image(index)["image_id"], found.proposals[:limit], found.proposal_logits[:limit])


class ProposalTable:
    """The proposals of many images, in arrays that processes share.

    Args:
        path: of the file, for messages.
        ids: image ids as text.
        counts: (N,) proposals of every image.
        boxes, logits: (sum, 4) and (sum,), float32, best first.
    """

    def __init__(self, path, ids, counts, boxes, logits):
        self.path = path
        self._row = {str(image): row for row, image in enumerate(ids)}
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self._boxes, self._logits = boxes, logits

    def __len__(self):
        return len(self._row)

    def of(self, image_id) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (K, 4) and logits (K,) of an image."""
        rows = slice(*self._starts[self._row[str(image_id)] :][:2])
        return self._boxes[rows], self._logits[rows]

    def check(self, dataset: Dataset):
        """Every image of a dataset must have its entry.

        Raises:
            DatasetError: naming the first image that has none.
        """
        missing = [i for i in range(len(dataset)) if str(dataset.image_ids[i]) not in self._row]
        if missing:
            raise DatasetError(
                f"{self.path}: expected proposals of every image, none of {dataset.file_names[missing[0]]} "
                f"({len(missing)} of {len(dataset)} missing)"
            )

    def add_to(self, record: dict) -> dict:
        return with_proposals(record, *self.of(record["image_id"]))


def load_proposals(path) -> ProposalTable:
    """A file of proposals: an ``.npz``; any other is taken for detectron2's pickle.

    Raises:
        DatasetError: the file is missing, not in its format, or its numbers are no boxes.
    """
    path = Path(path)
    if not path.exists():
        raise DatasetError(f"{path}: no such proposal file")
    try:
        check_file(path)
        columns = _read_npz(path) if path.suffix == ".npz" else _read_pickle(path)
    except DatasetError:
        raise
    except Exception as error:  # whatever the readers say of a broken file
        raise DatasetError(f"{path}: not a proposal file: {error or type(error).__name__}") from error
    return ProposalTable(path, *_checked(path, *columns))


def _read_npz(path):
    check_archive(path)
    with np.load(path, allow_pickle=False) as file:
        missing = [name for name in FIELDS if name not in file]
        if missing:
            raise DatasetError(f"{path}: expected arrays {', '.join(FIELDS)}, {', '.join(missing)} missing")
        return [file[name] for name in FIELDS]


def _checked(path, ids, counts, boxes, logits):
    """The columns of a table, as far as they can be those of a file of proposals."""
    whole = counts.dtype.kind in "iu" and counts.ndim == 1 and (counts >= 0).all() and (counts < 2**31).all()
    total = int(counts.sum(dtype=np.int64)) if whole else -1
    sizes = f"got {boxes.shape} and {logits.shape} of {ids.size}"
    if not whole or ids.shape != counts.shape or boxes.shape != (total, 4) or logits.shape != (total,):
        raise DatasetError(f"{path}: expected {total} boxes and logits of {counts.size} images, {sizes}")
    if ids.dtype.kind not in "USiu":
        raise DatasetError(f"{path}: ids: expected texts or whole numbers, got {ids.dtype}")
    texts = [text.decode(errors="replace") if isinstance(text, bytes) else str(text) for text in ids.tolist()]
    again = next((text for text, count in Counter(texts).items() if count > 1), None)
    if again is not None:
        raise DatasetError(f"{path}: ids: expected every image once, got {again!r} again")
    boxes, logits = _numbers(path, "boxes", boxes), _numbers(path, "logits", logits)
    images = np.repeat(np.arange(len(counts)), counts)
    if ((logits[1:] > logits[:-1]) & (images[1:] == images[:-1])).any():  # best first, whoever wrote the file
        order = np.lexsort((-logits, images))
        boxes, logits = boxes[order], logits[order]
    return texts, counts, boxes, logits


def _numbers(path, name, values) -> np.ndarray:
    if values.dtype.kind not in "fiu":
        raise DatasetError(f"{path}: {name}: expected numbers, got {values.dtype}")
    with np.errstate(over="ignore"):
        values = values.astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        raise DatasetError(f"{path}: {name}: expected finite numbers, got {values[~np.isfinite(values)].flat[0]}")
    return values


def _read_pickle(path):
    with open(path, "rb") as file:
        content = load_arrays(file, encoding="latin1")
    if not isinstance(content, dict):
        raise ValueError(f"expected a dict in detectron2's format, got {type(content).__name__}")
    content = {{"indexes": "ids", "scores": "objectness_logits"}.get(k, k): v for k, v in content.items()}
    for name in ("ids", "boxes", "objectness_logits"):
        if not isinstance(content.get(name), (list, np.ndarray)):
            got = type(content[name]).__name__ if name in content else "none"
            raise ValueError(f"{name}: expected a list, in detectron2's format, got {got}")
    mode = content.get("bbox_mode", XYXY_ABS)
    if mode != XYXY_ABS:
        raise ValueError(f"bbox_mode: expected {XYXY_ABS} (XYXY_ABS), got {mode!r}")
    ids, of_boxes, of_logits = content["ids"], content["boxes"], content["objectness_logits"]
    if not len(ids) == len(of_boxes) == len(of_logits):
        raise ValueError(
            f"expected boxes and logits of {len(ids)} images, got {len(of_boxes)} and {len(of_logits)} of them"
        )
    logits = [np.asarray(values, dtype=np.float32).reshape(-1) for values in of_logits]
    boxes = [np.asarray(values, dtype=np.float32).reshape(-1, 4) for values in of_boxes]
    for image, x, y in zip(ids, boxes, logits):
        if len(x) != len(y):
            raise ValueError(f"image {image!r}: expected as many boxes as logits, got {len(x)} and {len(y)}")
    counts = np.array([len(values) for values in logits], dtype=np.int64)
    texts = np.array([str(image) for image in ids], dtype=np.str_)
    return texts, counts, np.concatenate([np.zeros((0, 4), np.float32), *boxes]), np.concatenate([[], *logits])


def with_proposals(record: dict, boxes, logits) -> dict:
    """A dataset dict with proposals under detectron2's keys: what a detector without a generator takes.

    ``boxes`` (K, 4) in pixels of the image file and ``logits`` (K,), best first, as arrays or tensors on the CPU.
    """
    return record | {
        "proposal_boxes": np.asarray(boxes, dtype=np.float32),
        "proposal_objectness_logits": np.asarray(logits, dtype=np.float32),
        "proposal_bbox_mode": XYXY_ABS,
    }


def loaded_proposals(cfg, split: str, name: str, dataset: Dataset) -> ProposalTable | None:
    """The file of a dataset name in ``DATASETS.PROPOSAL_FILES_<split>``, None if MODEL.LOAD_PROPOSALS is False.

    ``split`` is TRAIN or TEST.
    """
    if not cfg.MODEL.LOAD_PROPOSALS:
        return None
    files, names = cfg.DATASETS[f"PROPOSAL_FILES_{split}"], list(cfg.DATASETS[split])
    if len(files) != len(names):
        raise DatasetError(
            f"DATASETS.PROPOSAL_FILES_{split}: expected {len(names)} files, one for each of DATASETS.{split}, "
            f"got {len(files)}"
        )
    table = load_proposals(files[names.index(name)])
    table.check(dataset)
    return table
