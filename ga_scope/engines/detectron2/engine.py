"""detectron2, the engine of record."""

import logging
import os
from types import SimpleNamespace

import torch
from detectron2 import __version__
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.engine import default_setup, launch
from detectron2.evaluation import COCOEvaluator
from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    RPN_HEAD_REGISTRY,
    GeneralizedRCNN,
    ProposalNetwork,
    RetinaNet,
    build_model,
)
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances

from ...config import PRECOMPUTED, SCHEMA, class_key, get
from ...data.catalog import registered_datasets
from ...errors import ConfigError
from ...modeling.results import Results
from ..base import Batch, Engine, output_folder
from .data import find_dataset, register
from .meta_arch import OneStageDetector
from .results import as_batch, preprocessed, rcnn_results, retinanet_results
from .trainer import Trainer

REGISTRIES = {
    "MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY,
    "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
    "MODEL.PROPOSAL_GENERATOR.NAME": PROPOSAL_GENERATOR_REGISTRY,
    "MODEL.ANCHOR_GENERATOR.NAME": ANCHOR_GENERATOR_REGISTRY,
    "MODEL.RPN.HEAD_NAME": RPN_HEAD_REGISTRY,
    "MODEL.ROI_HEADS.NAME": ROI_HEADS_REGISTRY,
    "MODEL.ROI_BOX_HEAD.NAME": ROI_BOX_HEAD_REGISTRY,
}


class Detectron2Engine(Engine):
    name = f"detectron2 {__version__}"
    builtin = False

    def defaults(self):
        return get_cfg()

    def setup(self, config_file, overrides=()):
        cfg = super().setup(config_file, overrides)
        for key, registry in REGISTRIES.items():
            name = get(cfg, key)
            if SCHEMA.is_read(cfg, key) and name and name != PRECOMPUTED and name not in registry:
                known = ", ".join(sorted(name for name, _ in registry))
                raise ConfigError(f"{key}: expected what is registered with detectron2 ({known}), got {name!r}")
        register(cfg.DATASETS.REGISTER)
        return cfg

    def find_dataset(self, name, extras):
        found = find_dataset(name, registered_datasets(), extras)
        MetadataCatalog.get(name).thing_classes = list(found.classes)
        return found

    def build(self, cfg):
        # channels_last is what convolutions and the project's gathers want, on CPU and GPU alike.
        return build_model(cfg).to(memory_format=torch.channels_last)

    def named_state(self, model):
        own = "proposal_generator.rpn.rpn_head."
        tensors = model.state_dict(keep_vars=True).items()
        return {name.replace(own, "proposal_generator.rpn_head."): value for name, value in tensors}

    # ---- inference ------------------------------------------------------------------------------

    def run(self, model, inputs, maps=False):
        inputs = [as_detectron2(x) for x in inputs]
        file_sizes = [(x["height"], x["width"]) for x in inputs]
        if not isinstance(model, (OneStageDetector, GeneralizedRCNN, ProposalNetwork, RetinaNet)):
            outputs = model(inputs)  # of a user's own, in pixels of the files
            found = Results(detections=as_batch([x["instances"] for x in outputs]))
            return Batch(found, file_sizes, outputs)
        images, outputs = preprocessed(model, inputs), None
        if isinstance(model, OneStageDetector):
            results = model.results(images, maps=True) if maps else model.results(images)
        elif isinstance(model, RetinaNet):
            results = retinanet_results(model, images)
        else:
            proposals = [x["proposals"].to(model.device) for x in inputs] if "proposals" in inputs[0] else None
            results, instances = rcnn_results(model, images, proposals, maps)
            if (
                instances is not None
                and hasattr(model.roi_heads, "mask_on")
                and (model.roi_heads.mask_on or model.roi_heads.keypoint_on)
            ):
                scaled = [detector_postprocess(x, *size) for x, size in zip(instances, file_sizes)]
                outputs = [{"instances": x} for x in scaled]
        return Batch(results, [tuple(size) for size in images.image_sizes], outputs)

    def evaluators(self, cfg, name):
        tasks = ("segm",) * cfg.MODEL.MASK_ON + ("keypoints",) * cfg.MODEL.KEYPOINT_ON
        return [COCOEvaluator(name, tasks, output_dir=os.path.join(cfg.OUTPUT_DIR, "inference"))] if tasks else []

    # ---- runs -----------------------------------------------------------------------------------

    def begin(self, cfg, config_file, eval_only):
        output_folder(cfg)
        default_setup(cfg, SimpleNamespace(config_file=config_file, eval_only=eval_only))
        # What this project has to say goes where detectron2's does: to the console and to log.txt.
        logger = logging.getLogger("ga_scope")
        logger.handlers = list(logging.getLogger("detectron2").handlers)
        logger.setLevel(logging.INFO)

    def launch(self, function, args):
        if args.num_gpus * args.num_machines == 1:
            return function(args)
        launch(function, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url or "auto", args=(args,))
        return {}

    def train(self, cfg, resume=False):
        records = self.training_records(cfg)
        classes = records.datasets[0].classes if class_key(cfg) else None
        trainer = Trainer(
            cfg, self.build(cfg), self.named_state, records, classes, lambda model: self.evaluate(cfg, model)
        )
        trainer.start_from(resume)
        if trainer.start_iter >= trainer.max_iter:
            return self.evaluate(cfg, trainer.model)
        trainer.train(trainer.start_iter, trainer.max_iter)
        return trainer.metrics


def as_detectron2(x: dict) -> dict:
    """An input of :class:`TestMapper` with proposals as Instances."""
    if "proposals" not in x:
        return x
    boxes, logits = x["proposals"]
    proposals = Instances(tuple(x["image"].shape[1:]), proposal_boxes=Boxes(boxes), objectness_logits=logits)
    return x | {"proposals": proposals}
