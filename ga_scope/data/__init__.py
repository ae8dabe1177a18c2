"""Datasets: COCO-format files, their clean-up, and a generator of such data."""

from .catalog import load_dataset, register_datasets
from .coco import load_coco_json
from .shapes import make_shapes

__all__ = ["load_coco_json", "load_dataset", "make_shapes", "register_datasets"]
