"""detectron2, the engine of record."""

import os
from types import SimpleNamespace

import torch
from detectron2 import __version__
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.engine import default_setup, launch
from detectron2.evaluation import COCOEvaluator
from detectron2.modeling import GeneralizedRCNN, ProposalNetwork, RetinaNet, build_model
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances

from ...config import class_key
from ...data.catalog import registered_datasets
from ...modeling.results import Results
from ..base import Batch, Engine
from .data import find_dataset, register
from .meta_arch import OneStageDetector
from .results import as_batch, preprocessed, rcnn_results, retinanet_results
from .trainer import Trainer


class Detectron2Engine(Engine):
    name = f"detectron2 {__version__}"
    builtin = False

    def defaults(self):
        return get_cfg()

    def setup(self, config_file, overrides=()):
        cfg = super().setup(config_file, overrides)
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
        default_setup(cfg, SimpleNamespace(config_file=config_file, eval_only=eval_only))

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
