"""Dataset names: detectron2's for COCO, and those that a configuration registers."""

import os
from dataclasses import dataclass
from pathlib import Path

from ..errors import DatasetError
from .coco import load_coco_json
from .dataset import Dataset

# Under $DETECTRON2_DATASETS (default: datasets), as detectron2 lays them out.
COCO = {
    f"coco_{year}_{split}": (f"coco/annotations/instances_{split}{year}.json", f"coco/{split}{year}")
    for year, splits in (("2014", ("train", "val")), ("2017", ("train", "val")))
    for split in splits
}


@dataclass(frozen=True)
class Source:
    """Where a dataset lies."""

    json_file: Path
    image_root: Path


_registered: dict[str, Source] = {}


def register_datasets(entries) -> dict[str, Source]:
    """Takes ``DATASETS.REGISTER``: a list of [name, annotation file, image folder].

    Registering a name again with the same files changes nothing.

    Raises:
        DatasetError: an entry of another form, or a name that is taken by other files.
    """
    for entry in entries:
        if not isinstance(entry, (list, tuple)) or len(entry) != 3 or not all(isinstance(v, str) for v in entry):
            raise DatasetError(f"DATASETS.REGISTER: expected [name, annotation file, image folder], got {entry!r}")
        name, json_file, image_root = entry
        source = Source(Path(json_file), Path(image_root))
        if name in COCO or _registered.get(name, source) != source:
            raise DatasetError(f"DATASETS.REGISTER: the name {name!r} is taken")
        _registered[name] = source
    return dict(_registered)


def registered_datasets() -> dict[str, Source]:
    """What :func:`register_datasets` has been told so far."""
    return dict(_registered)


def source_of(name: str) -> Source:
    """The files of a dataset name."""
    if name in _registered:
        return _registered[name]
    if name in COCO:
        root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()
        json_file, image_root = COCO[name]
        return Source(root / json_file, root / image_root)
    known = ", ".join(sorted([*_registered, *COCO]))
    raise DatasetError(f"DATASETS: no dataset {name!r}; known: {known}; DATASETS.REGISTER adds others")


def load_dataset(name: str, extras: bool = False) -> Dataset:
    """A dataset by name (:func:`load_coco_json`)."""
    source = source_of(name)
    return load_coco_json(source.json_file, source.image_root, name, extras)
