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

    Raises:
        DatasetError: a folder is not there.
    """

    def __init__(self, root: Path, exclude: Path, more=()):
        self.root = root
        self.files: list[Path] = []
        self._seen = {exclude.resolve()}
        self._by_name: dict[str, list[Path]] = {}
        self._by_stem: dict[str, list[Path]] = {}
        for folder in (root, *more):
            self.include(folder)

    def include(self, folder: Path):
        """Lists a folder, unless it is listed already."""
        if not folder.is_dir():
            raise DatasetError(f"{folder}: no such folder")
        real = folder.resolve()
        if real in self._seen:  # links may lead in circles
            return
        self._seen.add(real)
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            path = folder / entry.name
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            if entry.is_dir():
                self.include(path)
                continue
            self.files.append(path)
            if path.suffix.lower() in IMAGE_SUFFIXES:
                self._by_name.setdefault(path.name, []).append(path)
                self._by_stem.setdefault(path.stem, []).append(path)

    def folder(self, name: str) -> Path:
        """A folder of the source by its path from the root; "." is the root."""
        path = self.root / name if Path(name) != Path(".") else self.root
        if not path.is_dir():
            raise DatasetError(f"{path}: no such folder")
        return path

    def within(self, folder: Path | None, suffixes: set[str]) -> list[Path]:
        """The files of some kinds below a folder (None: all that are listed)."""
        files = (path for path in self.files if path.suffix.lower() in suffixes)
        return [path for path in files if folder is None or folder in path.parents]

    def images(self, folder: Path | None = None) -> list[Path]:
        return self.within(folder, IMAGE_SUFFIXES)

    def image_named(self, name: str) -> list[Path]:
        return self._by_name.get(name, [])

    def image_of_stem(self, stem: str) -> list[Path]:
        return self._by_stem.get(stem, [])

    def name(self, path: Path) -> str:
        """A path as messages have it: from the root where it lies inside."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)

    def split(self, path: Path) -> str | None:
        """The split that the folders of a path speak of (:func:`split_of`)."""
        return split_of(path.relative_to(self.root).parent.parts if path.is_relative_to(self.root) else ())


def nearest(candidates: list[Path], to: Path) -> list[Path]:
    """Of some paths those that share the most folders with another."""

    def shared(path):
        return len(Path(os.path.commonpath([path.parent, to.parent])).parts)

    most = max(map(shared, candidates), default=0)
    return [path for path in candidates if shared(path) == most]
