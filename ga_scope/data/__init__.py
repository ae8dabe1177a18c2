"""Datasets: COCO-format files, their clean-up, and a generator of such data."""

from .catalog import load_dataset, register_datasets
from .coco import load_coco_json
from .proposals import add_proposals, load_proposals, proposal_file, save_proposals, with_proposals
from .shapes import make_shapes

__all__ = [
    "add_proposals",
    "load_coco_json",
    "load_dataset",
    "load_proposals",
    "make_shapes",
    "proposal_file",
    "register_datasets",
    "save_proposals",
    "with_proposals",
]
