"""What an import found: every entry that was dropped, mended or only noticed, counted and listed."""

import json
from collections import Counter
from dataclasses import dataclass, field

DROPPED, MENDED, NOTICED = "dropped", "mended", "kept"

# Name of a finding: what became of the entries, and what one of them is.
FINDINGS = {
    "zero_size_box": (DROPPED, "box of zero or negative size"),
    "box_outside": (DROPPED, "box outside the image"),
    "not_finite_box": (DROPPED, "box that is not finite"),
    "not_normalized_box": (DROPPED, "box in pixels where fractions of the image are expected"),
    "duplicate_box": (DROPPED, "repeated box (same image, class and corners)"),
    "malformed_entry": (DROPPED, "entry that cannot be read"),
    "unlisted_class": (DROPPED, "box of a class that --classes does not list"),
    "unknown_image_id": (DROPPED, "annotation of an image id that is not in the file"),
    "unknown_category_id": (DROPPED, "annotation of a category id that is not in the file"),
    "unlabelled_image": (DROPPED, "image without a label (--unlabelled background keeps them as images of nothing)"),
    "label_without_image": (DROPPED, "label without its image"),
    "unreadable_label": (DROPPED, "label file that cannot be read, with its image"),
    "unreadable_image": (DROPPED, "image file that cannot be read, with its label"),
    "repeated_image_entry": (DROPPED, "repeated entry of an image"),
    "difficult_dropped": (DROPPED, "box marked difficult"),
    "box_leaves_image": (MENDED, "box that leaves the image, clipped"),
    "swapped_corners": (MENDED, "box with its corners in the wrong order"),
    "polygon": (MENDED, "polygon among the boxes: its bounding box is taken"),
    "extra_column": (MENDED, "box with a further number after it, which is left unread"),
    "one_based": (MENDED, "label with pixels counted from 1, inclusive (PASCAL VOC's own)"),
    "unnamed_class": (MENDED, "box of a class index without a name, named class_<index> (--classes names them)"),
    "merged_class": (MENDED, "class name that stands for several indices: one class"),
    "class_count": (MENDED, "nc that is not the number of names: the names are taken"),
    "renumbered_categories": (MENDED, "annotation file whose categories are numbered otherwise: matched by name"),
    "split_folder": (MENDED, "folder of a split that is not where the data set's description says"),
    "scaled_frame": (MENDED, "label for another size of the image: boxes scaled"),
    "turned_frame": (MENDED, "label for the image as stored, which EXIF turns: boxes turned"),
    "removed_mask": (MENDED, "segmentation that cannot be used or moved with its box, left out"),
    "wrong_area": (MENDED, "area that is not a positive number: the box's is taken"),
    "missing_split": (NOTICED, "split that the data set's description names and that has no images"),
    "unlisted_split": (NOTICED, "folder of a split that the data set's description does not name, not imported"),
    "image_in_no_split": (NOTICED, "labelled image that no split lists, not imported"),
    "image_in_two_splits": (NOTICED, "image in two splits"),
    "duplicate_image": (NOTICED, "image that is the same file as another"),
    "near_duplicate_box": (NOTICED, "pair of boxes of one class with IoU above 0.8"),
    "class_not_in_file_name": (NOTICED, "box of another class than the file's name begins with"),
    "background_image": (NOTICED, "image without a label, taken as an image of nothing"),
    "image_without_boxes": (NOTICED, "image without boxes"),
    "emptied_image": (NOTICED, "image all of whose boxes were dropped"),
    "difficult": (NOTICED, "box marked difficult"),
    "fractional_coordinates": (NOTICED, "label with fractional pixels"),
    "other_file_name": (NOTICED, "label that names another file than the image beside it"),
    "several_images": (NOTICED, "label with several images of its name, the first of which is taken"),
    "other_size": (NOTICED, "label for another size and shape of the image: boxes taken as they are"),
    "exif_orientation": (NOTICED, "image that EXIF turns: size and boxes are of the upright one"),
    "other_format": (NOTICED, "image file of another format than its name says"),
    "alpha": (NOTICED, "image with an alpha channel"),
    "grey": (NOTICED, "grey image"),
    "deep_image": (NOTICED, "image of more than 8 bits a channel"),
    "odd_name": (NOTICED, "file name with characters that shells, addresses or configurations read otherwise"),
}


@dataclass
class Report:
    """Counts of an import, and its findings by the names of :data:`FINDINGS`."""

    format: str
    source: str
    output: str
    classes: dict[str, int] = field(default_factory=dict)  # boxes of each, over all images
    splits: dict[str, dict[str, int]] = field(default_factory=dict)  # images and boxes of each
    read: Counter = field(default_factory=Counter)  # images and boxes that the labels have
    written: Counter = field(default_factory=Counter)  # of them in the output, each counted once
    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, finding: str, where: str):
        if finding not in FINDINGS:
            raise KeyError(finding)
        self.found.setdefault(finding, []).append(where)

    def count(self, finding: str) -> int:
        return len(self.found.get(finding, ()))

    def as_json(self) -> str:
        findings = {
            name: {"what": FINDINGS[name][1], "action": FINDINGS[name][0], "count": len(entries), "entries": entries}
            for name, entries in self._ordered()
        }
        content = {
            "format": self.format,
            "source": self.source,
            "complete": True,
            "classes": self.classes,
            "splits": self.splits,
            "read": dict(self.read),
            "written": dict(self.written),
            "findings": findings,
        }
        return json.dumps(content, indent=1, ensure_ascii=False)

    def as_text(self, most: int | None = None) -> str:
        """Lines for people; of each finding at most ``most`` entries."""
        lines = [f"{self.source} ({self.format}) to {self.output}"]
        lines.append("classes: " + ", ".join(f"{name} {count}" for name, count in self.classes.items()))
        for name, counts in self.splits.items():
            lines.append(f"{name}: {counts['images']} images, {counts['boxes']} boxes")
        lines.append(
            f"in all: {self.written['images']} of {self.read['images']} images, "
            f"{self.written['boxes']} of {self.read['boxes']} boxes"
        )
        for name, entries in self._ordered():
            action, what = FINDINGS[name]
            shown = entries if most is None else entries[:most]
            more = f"; {len(entries) - len(shown)} more" if len(shown) < len(entries) else ""
            lines.append(f"{action}: {len(entries)} x {what} [{name}]: {'; '.join(shown)}{more}")
        if not self.found:
            lines.append("nothing was dropped or mended")
        return "\n".join(lines)

    def _ordered(self):
        return [(name, self.found[name]) for name in FINDINGS if name in self.found]
