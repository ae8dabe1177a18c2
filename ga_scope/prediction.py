"""Detections of photos and videos, as files."""

from __future__ import annotations

import csv
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from .api import Detected, Detector
from .data.media import Photo, Source, Video, VideoEnded, VideoReader, VideoWriter, find_sources, read_photos
from .errors import DatasetError

logger = logging.getLogger(__name__)

COLUMNS = ("file", "frame", "seconds", "class", "score", "x1", "y1", "x2", "y2")
SAVED = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})


@dataclass(frozen=True)
class Options:
    """What to do with the detections.

    Attributes:
        score_thresh: lower ones are neither written nor drawn.
        batch_size: images that go through the network together.
        pictures: draw them.
        maps: draw what they come from, too: locations, anchors, proposals, or ScopeNet's bins.
        every: of a video, each so-many-th frame.
        limit: images and frames in all; None: all that there are.
    """

    score_thresh: float = 0.5
    batch_size: int = 1
    pictures: bool = True
    maps: bool = False
    every: int = 1
    limit: int | None = None


def predict(detector: Detector, inputs: Iterable[str], folder, options: Options = Options()) -> dict[str, int]:
    """Runs a detector on photos and videos and writes what it finds; says how much that was.

    ``detections.json`` is in COCO's format for results, and ``images.json`` in COCO's for datasets, with the numbers of
    the images and classes that it speaks of. ``detections.csv`` has a line for every detection. ``pictures/`` has the
    photos, and ``videos/`` the videos, with boxes, names and scores, under their names below the folder that they have
    in common. All of it is there, as far as it went, also when the run is interrupted.

    Args:
        inputs: files, folders, globs, addresses (:func:`ga_scope.data.media.find_sources`).
        folder: to write to; photos are never overwritten.

    Returns:
        The numbers of images, detections and skipped files.

    Raises:
        DatasetError: there is nothing to read, or a picture would overwrite its photo.
    """
    folder, counts = Path(folder), {"images": 0, "detections": 0, "skipped": 0}

    def skip(reason: str):
        counts["skipped"] += 1
        tqdm.write(f"skipped: {reason}")

    sources = find_sources(inputs, skip, outside=(folder / "pictures", folder / "videos"))
    names = output_names(sources)
    for source, name in names.items():
        if isinstance(source, Photo) and (folder / "pictures" / name).resolve() == Path(source.path).resolve():
            raise DatasetError(f"{source.path}: expected an output folder that does not hold the photos, got {folder}")
    with ExitStack() as stack:
        writer = stack.enter_context(Writer(folder, detector, options, names))
        progress = stack.enter_context(tqdm(unit="image", total=_total(sources, options), dynamic_ncols=True))
        try:
            for found in detector.stream(_records(sources, options, skip), options.batch_size, options.maps):
                counts["detections"] += writer.add(found)
                counts["images"] += 1
                progress.update()
        except KeyboardInterrupt:
            progress.write("interrupted: what was found so far is written")
    return counts


# ---- what is read ----------------------------------------------------------------------------------


def _records(sources: list[Source], options: Options, skip) -> Iterator[dict]:
    """Of all photos and frames, as far as the limit; batches may hold images of several sources."""
    left = options.limit
    photos = [source for source in sources if isinstance(source, Photo)]
    for record in read_photos(photos, skip):
        if left is not None and left <= 0:
            return
        yield record | {"source": Photo(record["file_name"])}
        left = left if left is None else left - 1
    for video in (source for source in sources if isinstance(source, Video)):
        if left is not None and left <= 0:
            return
        try:
            reader = VideoReader(video, options.every, left)
        except DatasetError as error:
            if len(sources) == 1:
                raise
            skip(str(error))
            continue
        try:
            for record in reader:
                yield record | {"source": video, "rate": reader.rate}
                left = left if left is None else left - 1
        except VideoEnded as error:
            tqdm.write(str(error))
        except DatasetError as error:
            skip(str(error))
        finally:
            reader.close()


def _total(sources: list[Source], options: Options) -> int | None:
    """For the time left; None where a source does not say how long it is."""
    total = 0
    for source in sources:
        if isinstance(source, Photo):
            total += 1
            continue
        if source.live:
            return options.limit
        try:
            reader = VideoReader(source, options.every)
        except DatasetError:
            continue  # which is said when its turn comes
        length = reader.length
        reader.close()
        if length is None:
            return options.limit
        total += length
    return total if options.limit is None else min(total, options.limit)


# ---- what is written -------------------------------------------------------------------------------


def output_names(sources: list[Source]) -> dict[Source, str]:
    """A path for the picture of each source: its own below the folder that all have in common, so that no two are the
    same whatever the names of the files.
    """
    files = [os.path.abspath(_path(s)) for s in sources if not _live(s)]
    root = os.path.commonpath([os.path.dirname(file) for file in files]) if files else ""
    found: dict[Source, str] = {}
    taken: set[str] = set()
    for source in sources:
        if _live(source):
            name = re.sub(r"[^A-Za-z0-9.]+", "-", source.name).strip("-.")
        else:
            name = os.path.relpath(os.path.abspath(_path(source)), root)
        if isinstance(source, Video):
            name += ".mp4" if not name.lower().endswith(".mp4") else ""
        elif Path(name).suffix.lower() not in SAVED:
            name += ".png"
        plain, count = Path(name), 1
        while name in taken:
            count += 1
            name = str(plain.with_name(f"{plain.stem}.{count}{plain.suffix}"))
        taken.add(name)
        found[source] = name
    return found


def _path(source: Source) -> str:
    return source.path if isinstance(source, Photo) else source.name


def _live(source: Source) -> bool:
    return isinstance(source, Video) and source.live


class Writer:
    """The files of a run, written as the results come: a stream may never end."""

    def __init__(self, folder: Path, detector: Detector, options: Options, names: dict[Source, str]):
        self.folder, self.detector, self.options, self.names = folder, detector, options, names
        self.video: tuple[Video, VideoWriter] | None = None
        self.images = 0
        self.sizes: dict[Source, tuple[int, int]] = {}

    def __enter__(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        self.table = open(self.folder / "detections.csv", "w", newline="")
        self.rows = csv.writer(self.table)
        self.rows.writerow(COLUMNS)
        categories = [{"id": i + 1, "name": name} for i, name in enumerate(self.detector.classes)]
        self.detections = JsonList(self.folder / "detections.json")
        head = f'{{"categories": {json.dumps(categories)}, "images": '
        self.described = JsonList(self.folder / "images.json", head, "}")
        return self

    def __exit__(self, *exception):
        self._close_video()
        self.detections.close()
        self.described.close()
        self.table.close()

    def add(self, found: Detected) -> int:
        """Everything of one image; the number of its detections."""
        record = found.record
        self.images += 1
        image = {"id": self.images, "file_name": record["file_name"]}
        image |= {key: record[key] for key in ("width", "height")}
        if record["frame"] is not None:
            image |= {"frame": record["frame"], "seconds": record["seconds"]}
        self.described.add(image)
        count = self._write_detections(found)
        self.table.flush()
        if self.options.pictures or self.options.maps:
            self._draw(found)
        return count

    def _write_detections(self, found: Detected) -> int:
        if found.boxes is None:  # a proposal network: classless boxes by their objectness
            boxes, scores = found.proposals, found.proposal_logits.sigmoid()
            labels, names = [0] * len(boxes), ["object"] * len(boxes)
        else:
            boxes, scores, labels, names = found.boxes, found.scores, found.classes.tolist(), found.names
        frame = ("" if found.record[key] is None else found.record[key] for key in ("frame", "seconds"))
        start, count = (found.record["file_name"], *frame), 0
        for (x1, y1, x2, y2), score, label, name in zip(boxes.tolist(), scores.tolist(), labels, names):
            if score < self.options.score_thresh:
                continue
            count += 1
            bbox = [x1, y1, x2 - x1, y2 - y1]
            self.detections.add({"image_id": self.images, "category_id": label + 1, "bbox": bbox, "score": score})
            self.rows.writerow((*start, name, f"{score:.4f}", *(f"{v:.2f}" for v in (x1, y1, x2, y2))))
        return count

    def _draw(self, found: Detected):
        source = found.record["source"]
        if isinstance(source, Video):
            if self.video is None or self.video[0] != source:
                self._close_video()
                self.video = source, VideoWriter(self.folder / "videos" / self.names[source], found.record["rate"])
            self.video[1].add(found.draw(self.options.score_thresh))
            return
        path = self.folder / "pictures" / self.names[source]
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.options.maps:
            self._draw_maps(path.with_name(f"{path.name}.png"), found)
        else:
            found.draw(self.options.score_thresh).save(path, quality=92)

    def _draw_maps(self, path, found):
        from .visualization.gallery import draw_maps

        draw_maps(path, self.detector.model, found, None, self.detector.classes, self.options.score_thresh)

    def _close_video(self):
        if self.video is not None:
            self.video[1].close()
            self.video = None


class JsonList:
    """A JSON list written item by item, whole or not at all under its name."""

    def __init__(self, path: Path, head: str = "", tail: str = ""):
        self.path, self.tail = path, tail
        self.partial = path.with_name(f"{path.name}.part")
        self.file = open(self.partial, "w")
        self.file.write(f"{head}[")
        self.first = True

    def add(self, item: dict):
        self.file.write(("\n" if self.first else ",\n") + json.dumps(item))
        self.first = False

    def close(self):
        self.file.write(f"\n]{self.tail}\n")
        self.file.close()
        self.partial.replace(self.path)
