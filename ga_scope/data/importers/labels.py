"""What a reader of one format hands on: images with the boxes that their labels give, by split."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from ..coco import DatasetError

__all__ = ["Box", "Category", "DatasetError", "Labelled", "Source", "Tree", "split_of"]

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm", ".jp2"}

# How people name the folders of a split.
SPLIT_WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validate", "validation", "dev"),
    "test": ("test", "testing"),
    "trainval": ("trainval",),
}


@dataclass(frozen=True)
class Category:
    """A class and its number in the file that is written."""

    id: int
    name: str
    supercategory: str = "object"


@dataclass
class Box:
    """A box as the label gives it.

    Attributes:
        label: name of its class.
        corners: x1, y1, x2, y2 in the label's own frame (:attr:`Labelled.frame`).
        where: the file, and the line or entry in it.
        keys: further keys of the COCO annotation: iscrowd, segmentation, area, ...
    """

    label: str
    corners: tuple[float, float, float, float]
    where: str
    keys: dict = field(default_factory=dict)


@dataclass(eq=False)
class Labelled:
    """An image and its boxes.

    Attributes:
        file: of the image.
        boxes: of its label.
        where: the label's file.
        frame: width and height that the corners refer to, (1, 1) for fractions of the upright image. None: not said.
        id: the image's number, where the source has one.
        keys: further keys of the COCO image.
    """

    file: Path
    boxes: list[Box]
    where: str
    frame: tuple[float, float] | None = None
    id: int | None = None
    keys: dict = field(default_factory=dict)


@dataclass
class Source:
    """A data set as its labels have it. An image that is in two splits is one object in both."""

    categories: list[Category]
    splits: dict[str, list[Labelled]]
    licenses: list = field(default_factory=list)


def split_of(parts) -> str | None:
    """The split that names of folders speak of, outermost first; None if none does."""
    for part in parts:
        for word in re.findall("[a-z]+", part.lower()):
            for split, words in SPLIT_WORDS.items():
                if word in words:
                    return split
    return None


class Tree:
    """The files of a source, listed once.

    Args:
        root: the source.
        exclude: a folder that is not part of it (the output may lie inside).
        more: further folders that hold images.
    """

    def __init__(self, root: Path, exclude: Path, more=()):
        self.root = root
        self.files: list[Path] = []
        self._seen, self._exclude = set(), exclude.resolve()
        for folder in (root, *more):
            if not folder.is_dir():
                raise DatasetError(f"{folder}: no such folder")
            self._walk(folder)
        self._by_name, self._by_stem = {}, {}
        for path in self.images():
            self._by_name.setdefault(path.name, []).append(path)
            self._by_stem.setdefault(path.stem, []).append(path)

    def _walk(self, folder):
        real = folder.resolve()
        if real in self._seen or real == self._exclude:
            return
        self._seen.add(real)
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            if entry.is_dir():
                self._walk(folder / entry.name)
            else:
                self.files.append(folder / entry.name)

    def images(self, folder: Path | None = None) -> list[Path]:
        return [path for path in self.within(folder) if path.suffix.lower() in IMAGE_SUFFIXES]

    def labels(self, suffix: str, folder: Path | None = None) -> list[Path]:
        return [path for path in self.within(folder) if path.suffix.lower() == suffix]

    def within(self, folder: Path | None) -> list[Path]:
        return self.files if folder is None else [path for path in self.files if folder in path.parents]

    def image_named(self, name: str) -> list[Path]:
        return self._by_name.get(name, [])

    def image_of_stem(self, stem: str) -> list[Path]:
        return self._by_stem.get(stem, [])

    def name(self, path) -> str:
        """A path as messages have it: from the source's root where it lies inside."""
        path = Path(path)
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)


def nearest(candidates: list[Path], to: Path) -> list[Path]:
    """Of some paths those that share the most folders with another."""

    def shared(path):
        return len(os.path.commonpath([path.parent, to.parent]))

    most = max(map(shared, candidates), default=0)
    return [path for path in candidates if shared(path) == most]
