"""A look at a dataset before a training: its images, its annotations, and what is unusual in them."""

import multiprocessing
from collections import Counter
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from tqdm import tqdm

from ..errors import DatasetError
from .dataset import Dataset
from .images import read_image
from .reach import reach

WORST = 10  # entries that a report names of each kind
QUANTILES = (0, 5, 25, 50, 75, 95, 100)  # percent


@dataclass
class DataReport:
    """What :func:`check_dataset` found.

    Attributes:
        name: of the dataset.
        counts: images, objects and so on, by what they are.
        unreadable: a line for every image that cannot be used.
        left_out: annotations that are none to train on, by what is wrong with them; and what was mended.
        classes: objects of every class, in the order of the classes.
        quantiles: of the objects' numbers, at QUANTILES.
        worst: lines on single entries, by what is unusual about them.
        reach: lines of :func:`ga_scope.data.reach.reach`, where a configuration was given.
    """

    name: str
    counts: dict[str, int]
    unreadable: list[str]
    left_out: dict[str, int]
    classes: dict[str, int]
    quantiles: dict[str, list[float]]
    worst: dict[str, list[str]]
    reach: list[dict] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Nothing is unreadable, nothing was left out or mended."""
        return not self.unreadable and not self.left_out

    def as_text(self) -> str:
        lines = [f"{self.name}: " + ", ".join(f"{number} {what}" for what, number in self.counts.items())]
        lines += _listed("images that cannot be used", self.unreadable)
        lines += [f"  annotations: {number} with {what}" for what, number in self.left_out.items()]
        width = max((len(name) for name in self.classes), default=0)
        most = max([1, *self.classes.values()])
        lines.append("  objects of each class:")
        lines += [
            f"    {name:<{width}} {number:8d} {'#' * round(40 * number / most)}"
            for name, number in self.classes.items()
        ]
        lines.append("  quantiles" + " " * 21 + "".join(f"{q:>8} %" for q in QUANTILES))
        lines += [f"    {what:<26}" + "".join(f"{v:10.4g}" for v in values) for what, values in self.quantiles.items()]
        for what, entries in self.worst.items():
            lines += _listed(what, entries)
        if self.reach:
            columns = list(self.reach[0])
            widths = [max(len(c), *(len(str(row[c])) for row in self.reach)) + 2 for c in columns]
            lines.append("  reached at the size of INPUT.MIN_SIZE_TEST:")
            lines.append("    " + "".join(f"{c:>{w}}" for c, w in zip(columns, widths)))
            lines += ["    " + "".join(f"{row[c]!s:>{w}}" for c, w in zip(columns, widths)) for row in self.reach]
        lines.append("  nothing is wrong" if self.clean else "  NOT clean: see above")
        return "\n".join(lines)


def _listed(what: str, entries: list[str]) -> list[str]:
    if not entries:
        return []
    more = [f"    ... and {len(entries) - WORST} more"] if len(entries) > WORST else []
    return [f"  {what}: {len(entries)}", *(f"    {entry}" for entry in entries[:WORST]), *more]


def check_dataset(dataset: Dataset, workers: int = 0, progress: bool = False) -> DataReport:
    """Opens every image, in ``workers`` processes, and looks at every annotation."""
    table, objects = dataset.annotations, _objects(dataset)
    per_image = np.add.reduceat(np.append(objects, False), dataset.starts[:-1]) if len(dataset) else np.zeros(0)
    per_image = np.where(np.diff(dataset.starts) > 0, per_image, 0)  # reduceat takes one of an empty range
    width, height = table.clipped[objects, 2], table.clipped[objects, 3]
    image_of = np.repeat(np.arange(len(dataset)), np.diff(dataset.starts))
    numbers = {
        "width in pixels": width,
        "height in pixels": height,
        "side of equal area": np.sqrt(width * height),
        "height / width": height / width,
        "share of the image in %": 100 * width * height / (dataset.widths * dataset.heights)[image_of[objects]],
        "objects of an image": per_image,
        "image width": dataset.widths,
        "image height": dataset.heights,
    }
    counts = Counter(table.labels[objects].tolist())
    return DataReport(
        dataset.name,
        {
            "images": len(dataset),
            "annotations": dataset.given,
            "objects": int(objects.sum()),
            "crowds and ignore regions": int((table.usable & ~objects).sum()),
            "images without an object": int((per_image == 0).sum()),
        },
        _unreadable(dataset, workers, progress),
        dict(sorted(dataset.problems.items())),
        {name: counts[label] for label, name in enumerate(dataset.classes)},
        {what: np.percentile(v, QUANTILES).tolist() for what, v in numbers.items() if len(v)},
        _worst(dataset, objects, per_image, image_of),
    )


def check_datasets(cfg, datasets: list[Dataset], workers: int = 0) -> list[DataReport]:
    """A report of each, with what the anchors of a configuration reach; progress is shown."""
    reports = [check_dataset(dataset, workers, progress=True) for dataset in datasets]
    for report, dataset in zip(reports, datasets):
        report.reach = reach(cfg, dataset)
    return reports


def _objects(dataset: Dataset) -> np.ndarray:
    table = dataset.annotations
    return table.usable & ~table.crowd & ~table.ignore


def _worst(dataset, objects, per_image, image_of) -> dict[str, list[str]]:
    table, found = dataset.annotations, {}

    def entry(row):
        box = ", ".join(f"{value:g}" for value in table.boxes[row])
        return f"{dataset.file_names[image_of[row]]}: {dataset.classes[table.labels[row]]} [{box}]"

    rows = np.flatnonzero(~table.usable)
    found["boxes that are left out"] = [entry(row) for row in rows]
    rows, sides = np.flatnonzero(objects), table.clipped[objects, 2:]
    small = np.argsort(sides.prod(1), kind="stable")[:WORST]
    found["the smallest objects"] = [entry(rows[k]) for k in small]
    with np.errstate(divide="ignore"):
        elongated = np.argsort(-np.abs(np.log(sides[:, 1] / sides[:, 0])), kind="stable")[:WORST]
    found["the most elongated objects"] = [entry(rows[k]) for k in elongated]
    fullest = np.argsort(-per_image, kind="stable")[: min(3, len(dataset))]
    found["the fullest images"] = [f"{dataset.file_names[i]}: {per_image[i]} objects" for i in fullest if per_image[i]]
    return {what: entries for what, entries in found.items() if entries}


def _unreadable(dataset, workers, progress) -> list[str]:
    records = (dataset.image(i) for i in range(len(dataset)))
    shown = partial(tqdm, total=len(dataset), desc=dataset.name, mininterval=5, disable=not progress)
    if workers < 1:
        return [line for line in shown(map(_fault, records)) if line]
    with multiprocessing.Pool(workers) as pool:
        return [line for line in shown(pool.imap(_fault, records, chunksize=16)) if line]


def _fault(record: dict) -> str | None:
    try:
        read_image(record)
    except DatasetError as error:
        return str(error)
    return None
