"""The output of an import. Every file appears whole, in one step; an output of another source is refused."""

import json
import os
import shutil
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from .labels import DatasetError

REPORT = "import_report"


def check_output(output: Path, source: Path, report):
    """Refuses a folder that an import of another source, or anything else, lies in."""
    if output.resolve() == source.resolve():
        raise DatasetError(f"{output}: expected another folder than the source")
    if output.exists() and not output.is_dir():
        raise DatasetError(f"{output}: expected a folder, found a file")
    if not output.is_dir() or not any(output.iterdir()):
        return
    found = _former(output)
    if found is None:
        raise DatasetError(f"{output}: expected an empty folder or an earlier import, found something else")
    if (found.get("format"), found.get("source")) != (report.format, report.source):
        raise DatasetError(
            f"{output}: expected an import of {report.source} ({report.format}), found one of {found.get('source')} "
            f"({found.get('format')}); delete it or choose another folder"
        )


def _former(output):
    try:
        found = json.loads((output / f"{REPORT}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def write_dataset(output, report, content, splits, pictures, annotations, copy):
    """Writes images, annotation files and report; completes the report's counts.

    Args:
        content: the :class:`~.labels.Source`.
        splits: name to images.
        annotations: image to its annotations, which get their ids here.
    """
    former = _former(output) or {}
    output.mkdir(parents=True, exist_ok=True)
    # First of all whose folder it is: an import that is interrupted can be done again.
    start = {"format": report.format, "source": report.source, "complete": False, "splits": former.get("splits", {})}
    replace_text(output / f"{REPORT}.json", json.dumps(start))
    files = sorted({image.file for images in splits.values() for image in images})
    root = Path(os.path.commonpath([path.parent for path in files]))
    for path in files:
        _place(path, output / "images" / path.relative_to(root), copy)
    number = {path: i for i, path in enumerate(files, 1)}
    ids = {category.name: category.id for category in content.categories}
    counts = Counter(entry["label"] for entries in annotations.values() for entry in entries)
    for split, images in splits.items():
        image_entries, annotation_entries = [], []
        for image in images:
            width, height = pictures[image.file].size
            identity = image.id if image.id is not None else number[image.file]
            file_name = image.file.relative_to(root).as_posix()
            image_entries.append(
                {"id": identity, "file_name": file_name, "width": width, "height": height} | image.keys
            )
            for entry in annotations[image]:
                entry = {
                    "id": len(annotation_entries) + 1,
                    "image_id": identity,
                    "category_id": ids[entry["label"]],
                } | entry
                del entry["label"]
                annotation_entries.append(entry)
        data = {
            "info": {"description": f"{split} of {Path(report.source).name}, imported from {report.format}"},
            "licenses": content.licenses,
            "images": image_entries,
            "annotations": annotation_entries,
            "categories": [asdict(category) for category in content.categories],
        }
        (output / "annotations").mkdir(exist_ok=True)
        replace_text(output / "annotations" / f"instances_{split}.json", json.dumps(data, ensure_ascii=False))
        report.splits[split] = {"images": len(image_entries), "boxes": len(annotation_entries)}
    for split in set(former.get("splits", {})) - set(splits):  # of an earlier import of this source
        (output / "annotations" / f"instances_{split}.json").unlink(missing_ok=True)
    report.classes = {category.name: counts[category.name] for category in content.categories}
    report.written["images"] = len(files)
    report.written["boxes"] = sum(map(len, annotations.values()))
    replace_text(output / f"{REPORT}.txt", report.as_text() + "\n")
    replace_text(output / f"{REPORT}.json", report.as_json() + "\n")


def _place(file, target, copy):
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    partial.unlink(missing_ok=True)
    if copy:
        shutil.copy2(file, partial)
    else:
        real = str(file.resolve())
        if target.is_symlink() and os.readlink(target) == real:
            return
        os.symlink(real, partial)
    os.replace(partial, target)


def replace_text(path: Path, text: str):
    """Writes a file beside its place and moves it there: readers see the old one or the new one."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
