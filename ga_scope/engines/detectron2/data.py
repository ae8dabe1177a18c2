"""Datasets of detectron2's catalogs as the project's, the project's in detectron2's, and training images."""

import numpy as np
import torch
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools import mask as coco_mask

from ...data import Dataset, load_dataset, read_image
from ...data.catalog import COCO, register_datasets
from ...data.coco import load_coco_json
from ...data.dataset import dataset_of_records
from ...errors import DatasetError
from .results import InstancesWithRegions

_from_functions: dict[str, Dataset] = {}


def register(entries):
    """``DATASETS.REGISTER`` into detectron2's ``DatasetCatalog`` and ``MetadataCatalog`` as well."""
    for name, source in register_datasets(entries).items():
        metadata = MetadataCatalog.get(name)
        if name in DatasetCatalog.list():
            if metadata.get("json_file") != str(source.json_file):
                raise DatasetError(f"DATASETS.REGISTER: the name {name!r} is taken by a dataset of detectron2")
            continue
        DatasetCatalog.register(name, lambda name=name: [with_box_modes(record) for record in _described(name)])
        metadata.set(json_file=str(source.json_file), image_root=str(source.image_root), evaluator_type="coco")


def _described(name) -> Dataset:
    """A registered dataset with outlines; its classes are in its metadata from then on."""
    dataset, metadata = load_dataset(name, extras=True), MetadataCatalog.get(name)
    metadata.thing_classes = list(dataset.classes)
    metadata.thing_dataset_id_to_contiguous_id = {number: i for i, number in enumerate(dataset.category_ids)}
    return dataset


def with_box_modes(record: dict) -> dict:
    """A dict with detectron2's ``BoxMode`` for its number, and run lengths as its masks want them."""
    for annotation in record["annotations"]:
        annotation["bbox_mode"] = BoxMode(annotation["bbox_mode"])
        outline = annotation.get("segmentation")
        if isinstance(outline, dict) and isinstance(outline["counts"], list):
            annotation["segmentation"] = coco_mask.frPyObjects(outline, *outline["size"])
    if "proposal_bbox_mode" in record:
        record["proposal_bbox_mode"] = BoxMode(record["proposal_bbox_mode"])
    return record


def find_dataset(name: str, registered, extras: bool) -> Dataset:
    """A dataset by name: ``registered`` with the project, or in detectron2's catalog, by a file or by a function.

    Raises:
        DatasetError: naming the dataset or its file.
    """
    if name in registered or name in COCO:
        return load_dataset(name, extras)
    if name not in DatasetCatalog.list():
        raise DatasetError(f"DATASETS: no dataset {name!r}; DATASETS.REGISTER adds those of your own")
    metadata = MetadataCatalog.get(name)
    if metadata.get("json_file") and metadata.get("evaluator_type") == "coco":
        return load_coco_json(metadata.json_file, metadata.image_root, name, extras)
    if name not in _from_functions:
        try:
            records = DatasetCatalog.get(name)
        except Exception as error:  # whatever the function of a user, or of a dataset that is not here, raises
            what = " ".join(f"{type(error).__name__}: {error}".split())
            raise DatasetError(f"{name}: its function failed: {what}") from error
        if not isinstance(records, (list, tuple)) or not all(isinstance(record, dict) for record in records):
            got = {type(r).__name__ for r in records} if isinstance(records, (list, tuple)) else type(records).__name__
            raise DatasetError(f"{name}: expected a list of dicts from its function, got {got}")
        records = [_with_sides(f"{name}: image {i}", record) for i, record in enumerate(records)]
        classes = MetadataCatalog.get(name).get("thing_classes")
        _from_functions[name] = dataset_of_records(name, records, classes, extras=True)
    return _from_functions[name]


def _with_sides(where: str, record: dict) -> dict:
    """A dict whose boxes are x, y, width, height. The one that is given stays as it is: its function may keep it."""
    items = []
    for k, annotation in enumerate(record.get("annotations") or ()):
        box, mode = annotation.get("bbox"), annotation.get("bbox_mode")
        try:
            box = BoxMode.convert([float(value) for value in box], mode, BoxMode.XYWH_ABS)
        except Exception:  # of a box that is none, assertions and others
            raise DatasetError(
                f"{where}: annotations[{k}]: expected a bbox of four numbers and its bbox_mode, got {box!r}, {mode!r}"
            ) from None
        items.append(annotation | {"bbox": box})
    return record | {"annotations": items}


def augmentations(cfg) -> list[T.Augmentation]:
    """Of INPUT's keys, on RGB images, in the built-in engine's order."""
    keys, steps = cfg.INPUT, []
    if keys.CROP.ENABLED:
        pixels = keys.CROP.TYPE.startswith("absolute")
        steps.append(T.RandomCrop(keys.CROP.TYPE, [int(v) for v in keys.CROP.SIZE] if pixels else keys.CROP.SIZE))
    steps.append(T.ResizeShortestEdge(keys.MIN_SIZE_TRAIN, keys.MAX_SIZE_TRAIN, keys.MIN_SIZE_TRAIN_SAMPLING))
    if keys.RANDOM_FLIP in ("horizontal", "both"):
        steps.append(T.RandomFlip(horizontal=True))
    if keys.RANDOM_FLIP in ("vertical", "both"):
        steps.append(T.RandomFlip(horizontal=False, vertical=True))
    jitters = (T.RandomBrightness, T.RandomContrast, T.RandomSaturation)
    return steps + [jitter(1 - x, 1 + x) for jitter, x in zip(jitters, keys.COLOR_JITTER) if x]


class TrainMapper(DatasetMapper):
    """detectron2's mapper on images that are read as elsewhere here (:func:`ga_scope.data.read_image`)."""

    def __init__(self, cfg):
        super().__init__(cfg, is_train=True)
        self.ignore_regions = cfg.DATASETS.IGNORE_REGIONS

    @classmethod
    def from_config(cls, cfg, is_train: bool = True):
        known = cfg.clone()
        known.defrost()
        known.INPUT.RANDOM_FLIP = "none"  # of which detectron2 has no "both"
        return super().from_config(known, is_train) | {"augmentations": augmentations(cfg)}

    def __call__(self, record: dict) -> dict:
        record = with_box_modes(record)
        augmented = T.AugInput(np.asarray(read_image(record)))
        transforms = self.augmentations(augmented)
        image = utils.convert_PIL_to_numpy(Image.fromarray(augmented.image), self.image_format)
        size = image.shape[:2]
        record["image"] = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        if self.proposal_topk is not None:
            utils.transform_proposals(record, size, transforms, proposal_topk=self.proposal_topk)
        regions = transforms.apply_box(record.pop("ignore_boxes")).clip(min=0)
        self._transform_annotations(record, transforms, size)
        if self.ignore_regions:
            regions = torch.as_tensor(np.minimum(regions, [size[1], size[0]] * 2), dtype=torch.float32)
            regions = regions[(regions[:, 2:] > regions[:, :2]).all(1)]
            record["instances"] = InstancesWithRegions(record["instances"], regions)
        return record
