"""detectron2, the engine of record."""

import contextlib
import logging
import os
from types import SimpleNamespace

import torch
from detectron2 import __version__
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.engine import default_setup, launch
from detectron2.evaluation import COCOEvaluator
from detectron2.layers import ROIAlign
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
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.solver import get_default_optimizer_params
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from ...config import PRECOMPUTED, SCHEMA, get
from ...data.catalog import registered_datasets
from ...errors import ConfigError
from ...modeling.results import Results
from ...modeling.roi_align import roi_align
from ..base import Batch, Engine, output_folder
from .data import TrainMapper, find_dataset, register
from .meta_arch import OneStageDetector
from .results import as_batch, preprocessed, rcnn_results, retinanet_results

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
        model = build_model(cfg).to(memory_format=torch.channels_last)
        for module in model.modules():
            if isinstance(module, ROIPooler):
                module.register_forward_pre_hook(pool_in_float32)
                use_fast_gradient(module)
        return model

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

    start = staticmethod(launch)

    def join(self):
        super().join()
        comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))

    # ---- training -------------------------------------------------------------------------------

    carried = ("loss_normalizer", "positives")  # of RetinaNet, detectron2's and the project's

    def mapper(self, cfg):
        return TrainMapper(cfg)

    def parameter_groups(self, cfg, model):
        solver = cfg.SOLVER
        return get_default_optimizer_params(
            model,
            base_lr=solver.BASE_LR,
            weight_decay=solver.WEIGHT_DECAY,
            weight_decay_norm=solver.WEIGHT_DECAY_NORM,
            bias_lr_factor=solver.BIAS_LR_FACTOR,
            weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        )

    @contextlib.contextmanager
    def training(self, start):
        # TorchScript compiles a function anew at its third call, and rounds otherwise from then on: detectron2's focal
        # loss, of a run that is resumed, would differ from that of a run that never stopped.
        with EventStorage(start) as self._storage, torch.jit.optimized_execution(False):
            yield

    def losses(self, model, inputs, iteration):
        self._storage.iter = iteration
        device = next(model.parameters()).device  # detectron2 itself would wait for each image's copy
        inputs = [x | {"image": x["image"].to(device, non_blocking=True)} for x in inputs]
        found = model(inputs)
        return found if isinstance(found, dict) else {"loss": found}

    def scalars(self):
        return {name: value for name, (value, _) in self._storage.latest().items()}


def pool_in_float32(pooler, inputs):
    """ROIAlign gives boxes the features' type, and bfloat16 would round their corners to one, two or four pixels."""
    features, *boxes = inputs
    return [feature.float() for feature in features], *boxes


class FastROIAlign(ROIAlign):
    """ROIAlignV2 with the project's gradient."""

    def forward(self, input, rois):
        boxes, images = rois[:, 1:].to(input.dtype), rois[:, 0].long()
        return roi_align(input, boxes, images, self.output_size, self.spatial_scale, self.sampling_ratio)


def use_fast_gradient(pooler):
    for level, old in enumerate(pooler.level_poolers):
        if type(old) is ROIAlign and old.aligned:
            pooler.level_poolers[level] = FastROIAlign(old.output_size, old.spatial_scale, old.sampling_ratio)


def as_detectron2(x: dict) -> dict:
    """An input of :class:`TestMapper` with proposals as Instances."""
    if "proposals" not in x:
        return x
    boxes, logits = x["proposals"]
    proposals = Instances(tuple(x["image"].shape[1:]), proposal_boxes=Boxes(boxes), objectness_logits=logits)
    return x | {"proposals": proposals}
