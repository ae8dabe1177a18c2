"""Datasets and loaders: the project's registered datasets in detectron2's catalogs, errors that name the file."""

import logging
import os

from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.structures import BoxMode
from pycocotools import mask as coco_mask

from ...config import check_num_classes
from ...data import add_proposals, load_coco_json, load_dataset, proposal_file, register_datasets
from ...data.coco import DatasetError

logger = logging.getLogger(__name__)


def register(entries):
    """``DATASETS.REGISTER`` into detectron2's ``DatasetCatalog`` and ``MetadataCatalog``."""
    for name, source in register_datasets(entries).items():
        if name in DatasetCatalog.list():
            if MetadataCatalog.get(name).get("json_file") != str(source.json_file):
                raise DatasetError(f"DATASETS.REGISTER: the name {name!r} is taken by a dataset of detectron2")
            continue
        DatasetCatalog.register(name, lambda name=name: _records(name))
        MetadataCatalog.get(name).set(
            json_file=str(source.json_file), image_root=str(source.image_root), evaluator_type="coco"
        )


def _records(name):
    records, categories = load_dataset(name)
    metadata = MetadataCatalog.get(name)
    metadata.thing_classes = [category["name"] for category in categories]
    metadata.thing_dataset_id_to_contiguous_id = {category["id"]: i for i, category in enumerate(categories)}
    for record in records:
        for annotation in record["annotations"]:
            annotation["bbox_mode"] = BoxMode(annotation["bbox_mode"])
            segmentation = annotation.get("segmentation")
            if isinstance(segmentation, dict) and isinstance(segmentation["counts"], list):
                annotation["segmentation"] = coco_mask.frPyObjects(segmentation, *segmentation["size"])
    return records


def ground_truth(name):
    """The cleaned dicts and categories of any dataset that has COCO annotations, for evaluation."""
    metadata = MetadataCatalog.get(name)
    if not hasattr(metadata, "json_file"):
        raise DatasetError(f"DATASETS.TEST: {name} has no COCO annotation file to evaluate with")
    return load_coco_json(metadata.json_file, metadata.image_root, name)


class NamedErrorMapper:
    """A dataset mapper whose errors say which image they are about."""

    def __init__(self, mapper):
        self.mapper = mapper

    def __call__(self, record):
        try:
            return self.mapper(record)
        except Exception as error:  # PIL raises many kinds for broken files, none with the name
            raise DatasetError(f"{record['file_name']}: cannot be used: {error}") from error


def check_classes(cfg, name):
    """The dataset's files are there, and :func:`ga_scope.config.check_num_classes` of any whose classes are known."""
    if name not in DatasetCatalog.list():
        raise DatasetError(f"DATASETS: no dataset {name!r}; DATASETS.REGISTER adds those of your own")
    json_file = MetadataCatalog.get(name).get("json_file")
    if json_file and not os.path.isfile(json_file):
        raise DatasetError(
            f"{json_file}: no such annotation file (dataset {name}; detectron2's lie below DETECTRON2_DATASETS)"
        )
    DatasetCatalog.get(name)
    classes = len(MetadataCatalog.get(name).get("thing_classes", ()))
    if classes:
        check_num_classes(cfg, name, classes)


def check_test_set(cfg, name):
    """:func:`check_classes` of a dataset of DATASETS.TEST, and its file of proposals is there if there must be one."""
    check_classes(cfg, name)
    file = proposal_file(cfg, "TEST", name)
    if file and not os.path.isfile(file):
        raise DatasetError(f"{file}: no such file of proposals (DATASETS.PROPOSAL_FILES_TEST, dataset {name})")


def build_train_loader(cfg):
    if not cfg.DATASETS.TRAIN:
        raise DatasetError("DATASETS.TRAIN: expected at least one dataset, got none")
    for name in cfg.DATASETS.TRAIN:
        check_classes(cfg, name)
    mapper = NamedErrorMapper(DatasetMapper(cfg, is_train=True))
    if not cfg.MODEL.LOAD_PROPOSALS and not cfg.MODEL.MASK_ON:
        return build_detection_train_loader(cfg, mapper=mapper)
    keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0
    records = []
    for name in cfg.DATASETS.TRAIN:
        found = get_detection_dataset_dicts(
            [name], filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS, min_keypoints=keypoints
        )
        if cfg.MODEL.MASK_ON:
            found = _with_masks(name, found)
        records += _with_proposals(cfg, "TRAIN", name, found) if cfg.MODEL.LOAD_PROPOSALS else found
    return build_detection_train_loader(cfg, mapper=mapper, dataset=records)


def _with_masks(name, records):
    """Without the annotations that have a box but no mask: a mask head cannot take such an image."""
    masked = [
        record | {"annotations": [a for a in record["annotations"] if a.get("segmentation")]} for record in records
    ]
    dropped = sum(len(a["annotations"]) - len(b["annotations"]) for a, b in zip(records, masked))
    if dropped:
        logger.warning("%s: %d annotations without a valid mask (dropped, MODEL.MASK_ON)", name, dropped)
    return masked


def build_test_loader(cfg, name):
    mapper = NamedErrorMapper(DatasetMapper(cfg, is_train=False))
    if not cfg.MODEL.LOAD_PROPOSALS:
        return build_detection_test_loader(cfg, name, mapper=mapper)
    records = _with_proposals(cfg, "TEST", name, get_detection_dataset_dicts([name], filter_empty=False))
    return build_detection_test_loader(dataset=records, mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS)


def _with_proposals(cfg, split, name, records):
    """In place of detectron2's own loader, which reads pickles only."""
    records = add_proposals(records, proposal_file(cfg, split, name), cfg.DATASETS.TRUST_PROPOSAL_PICKLES)
    for record in records:
        record["proposal_bbox_mode"] = BoxMode(record["proposal_bbox_mode"])
    return records
