"""Proposals of a dataset in a file: written once, read by detectors that have no proposal generator.

The project's format is an ``.npz`` of plain arrays, which is read without running any code of the file:

=========  =================  ====================================================
``ids``    (N,) strings       image ids
``counts`` (N,) int64         proposals of every image
``boxes``  (sum, 4) float32   x1, y1, x2, y2 in pixels of the image file, best first
``logits`` (sum,) float32     objectness
=========  =================  ====================================================

detectron2's format is a pickle, which can run anything when it is read: it is written on request and read
only if the caller says that it is trusted.
"""

import pickle
import zipfile
from pathlib import Path

import numpy as np

from .coco import DatasetError

XYXY_ABS = 0  # detectron2's BoxMode
FIELDS = ("ids", "counts", "boxes", "logits")


def save_proposals(path, proposals: dict) -> Path:
    """Writes {image id: (boxes (K, 4), logits (K,))}, in one step: a file that is there is whole.

    A path that ends in ``.pkl`` gets detectron2's format, any other must end in ``.npz``.
    """
    path = Path(path)
    boxes = [np.asarray(b, dtype=np.float32).reshape(-1, 4) for b, _ in proposals.values()]
    logits = [np.asarray(s, dtype=np.float32).reshape(-1) for _, s in proposals.values()]
    partial = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(partial, "wb") as file:
        if path.suffix == ".pkl":
            content = {"ids": list(proposals), "boxes": boxes, "objectness_logits": logits, "bbox_mode": XYXY_ABS}
            pickle.dump(content, file)
        elif path.suffix == ".npz":
            np.savez(
                file,
                ids=np.array([str(image) for image in proposals], dtype=np.str_),
                counts=np.array([len(b) for b in boxes], dtype=np.int64),
                boxes=np.concatenate([*boxes, np.zeros((0, 4), np.float32)]),
                logits=np.concatenate([*logits, np.zeros(0, np.float32)]),
            )
        else:
            raise DatasetError(f"{path}: expected a name that ends in .npz or .pkl")
    partial.replace(path)
    return path


def load_proposals(path, trust_pickle: bool = False) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{image id as a string: (boxes (K, 4), logits (K,))}, float32.

    Raises:
        DatasetError: the file is missing, not in its format, or a pickle that is not trusted.
    """
    path = Path(path)
    if not path.exists():
        raise DatasetError(f"{path}: no such proposal file")
    if path.suffix == ".npz":
        return _load_npz(path)
    if not trust_pickle:
        raise DatasetError(
            f"{path}: expected an .npz file (tools/dump_proposals.py). Anything else is read as a pickle, which can "
            "run any code: if you trust where it comes from, set DATASETS.TRUST_PROPOSAL_PICKLES True"
        )
    return _load_pickle(path)


def _load_npz(path):
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in FIELDS if name not in file]
            if missing:
                raise DatasetError(f"{path}: expected arrays {', '.join(FIELDS)}, {', '.join(missing)} missing")
            ids, counts, boxes, logits = (file[name] for name in FIELDS)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{path}: not a proposal file: {error}") from None
    total = int(counts.sum())
    if len(ids) != len(counts) or boxes.shape != (total, 4) or logits.shape != (total,):
        raise DatasetError(
            f"{path}: expected {total} boxes and logits of {len(counts)} images, got {boxes.shape} and "
            f"{logits.shape} of {len(ids)}"
        )
    ends = counts.cumsum()[:-1]
    return dict(zip(ids.tolist(), zip(np.split(boxes, ends), np.split(logits, ends))))


def _load_pickle(path):
    try:
        with open(path, "rb") as file:
            content = pickle.load(file, encoding="latin1")
        content = {{"indexes": "ids", "scores": "objectness_logits"}.get(k, k): v for k, v in content.items()}
        if int(content.get("bbox_mode", XYXY_ABS)) != XYXY_ABS:
            raise ValueError(f"bbox_mode: expected {XYXY_ABS} (XYXY_ABS), got {content['bbox_mode']}")
        found = {}
        for image, boxes, logits in zip(content["ids"], content["boxes"], content["objectness_logits"]):
            order = np.argsort(-np.asarray(logits), kind="stable")
            found[str(image)] = tuple(np.asarray(v, dtype=np.float32)[order] for v in (boxes, logits))
        return found
    except Exception as error:  # whatever the pickle's content does
        raise DatasetError(f"{path}: not a file of proposals in detectron2's format: {error}") from error


def with_proposals(record: dict, boxes, logits) -> dict:
    """A dataset dict with proposals under detectron2's keys: what a detector without a generator takes.

    ``boxes`` (K, 4) in pixels of the image file and ``logits`` (K,), best first, as arrays or tensors on the CPU.
    """
    return record | {
        "proposal_boxes": np.asarray(boxes, dtype=np.float32),
        "proposal_objectness_logits": np.asarray(logits, dtype=np.float32),
        "proposal_bbox_mode": XYXY_ABS,
    }


def add_proposals(records: list[dict], path, trust_pickle: bool = False) -> list[dict]:
    """The dicts of a dataset with the proposals of a file; every image must have its entry."""
    proposals = load_proposals(path, trust_pickle)
    missing = [record["file_name"] for record in records if str(record["image_id"]) not in proposals]
    if missing:
        raise DatasetError(
            f"{path}: expected proposals of every image, none of {missing[0]} "
            f"({len(missing)} of {len(records)} missing)"
        )
    return [with_proposals(record, *proposals[str(record["image_id"])]) for record in records]


def proposal_file(cfg, split: str, name: str) -> str | None:
    """The file of a dataset name in ``DATASETS.PROPOSAL_FILES_<split>``, or None if none are to be loaded.

    ``split`` is TRAIN or TEST.
    """
    if not cfg.MODEL.LOAD_PROPOSALS:
        return None
    files, names = cfg.DATASETS[f"PROPOSAL_FILES_{split}"], cfg.DATASETS[split]
    if len(files) != len(names):
        raise DatasetError(
            f"DATASETS.PROPOSAL_FILES_{split}: expected {len(names)} files, one for each of DATASETS.{split}, "
            f"got {len(files)}"
        )
    return files[list(names).index(name)]
