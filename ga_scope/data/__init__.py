"""Datasets: COCO-format files, their clean-up, and a generator of such data."""

from .catalog import load_dataset, register_datasets
from .coco import load_coco_json
from .dataset import Dataset, Records, check_classes
from .images import image_record, open_image, read_image
from .proposals import ProposalWriter, dump_proposals, load_proposals, loaded_proposals, with_proposals
from .shapes import make_shapes

__all__ = [
    "Dataset",
    "ProposalWriter",
    "Records",
    "check_classes",
    "dump_proposals",
    "image_record",
    "load_coco_json",
    "load_dataset",
    "load_proposals",
    "loaded_proposals",
    "make_shapes",
    "open_image",
    "read_image",
    "register_datasets",
    "with_proposals",
]
