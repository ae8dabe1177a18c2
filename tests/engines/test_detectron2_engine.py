"""The detectron2 engine: registries, any R-CNN, LazyConfig, training, its training data."""

import json

import pytest
import torch

from ga_scope.data.catalog import _registered
from ga_scope.engines import get_engine
from ga_scope.engines.loader import train_loader
from ga_scope.errors import DatasetError

from .conftest import TRAINABLE, assert_trained, config, overfitting, overrides, short_training
from .conftest import run as run_engine
from .test_torchvision_engine import finite_losses

pytestmark = pytest.mark.detectron2


def run(name, opts, *flags):
    return run_engine(name, "detectron2", opts, *flags)


@pytest.mark.parametrize("name", TRAINABLE)
def test_train_and_evaluate(name, shapes, tmp_path, capsys, losses):
    run(name, short_training(name, shapes, tmp_path))
    assert_trained(losses)
    assert capsys.readouterr().out.startswith("engine: detectron2 0.")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    for key in ("AR@100", "AR@300", "AR@1000", "AR_S@100", "AR_M@100"):
        assert (key in metrics) == ("rcnn" in name or "rpn" in name)
    assert ("anchors_per_image" in metrics) == ("active_fraction" in metrics) == ("scopenet" not in name)
    assert ("AP50" in metrics) == ("rpn" not in name)
    if name in ("rpn", "faster_rcnn"):
        assert metrics["active_fraction"] == 3
    weights = {"MODEL.WEIGHTS": str(tmp_path / "model_final.pth")}
    (again,) = run(name, short_training(name, shapes, tmp_path / "again", **weights), "--eval-only").values()
    for key, value in metrics.items():
        assert value is None or again[key] == pytest.approx(value, abs=1e-9), key


def build(opts=(), name="ga_faster_rcnn"):
    engine = get_engine("detectron2")
    cfg = engine.setup(config(name), ["MODEL.DEVICE", "cpu", *opts])
    return engine.build(cfg), cfg


def batch(masks=False):
    from detectron2.structures import BitMasks, Boxes, Instances

    inputs = []
    for count in (3, 0):
        target = Instances((96, 128))
        corner = torch.rand(count, 2) * 50
        target.gt_boxes = Boxes(torch.cat([corner, corner + 20 + torch.rand(count, 2) * 20], 1))
        target.gt_classes = torch.randint(5, (count,))
        if masks:
            target.gt_masks = BitMasks(torch.rand(count, 96, 128) > 0.5)
        inputs.append({"image": torch.rand(3, 96, 128) * 255, "instances": target, "height": 96, "width": 128})
    return inputs


CASCADE = ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True", "MODEL.ROI_HEADS.IOU_THRESHOLDS", "[0.5]"]
VARIANTS = {
    "faster": [],
    "standard heads": ["MODEL.ROI_HEADS.NAME", "StandardROIHeads"],
    "mask": ["MODEL.MASK_ON", "True", "INPUT.MASK_FORMAT", "bitmask", "MODEL.ROI_MASK_HEAD.NUM_CONV", "1",
             "MODEL.ROI_MASK_HEAD.CONV_DIM", "16"],
    "cascade": ["MODEL.ROI_HEADS.NAME", "GuidedAnchoringCascadeROIHeads", *CASCADE],
    "detectron2's cascade": ["MODEL.ROI_HEADS.NAME", "CascadeROIHeads", *CASCADE],
    "proposals": [],
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_any_rcnn_takes_the_proposal_generator(variant):
    """Training step and inference of Faster, Mask, Cascade R-CNN and proposals alone; the batch has an empty image."""
    from detectron2.utils.events import EventStorage

    model, _ = build(VARIANTS[variant], "ga_rpn" if variant == "proposals" else "ga_faster_rcnn")
    with EventStorage():
        losses = model.train()(batch(masks=variant == "mask"))
        sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert {"loss_anchor_location", "loss_anchor_shape", "loss_rpn_cls", "loss_rpn_loc"} <= set(losses)
    assert ("loss_mask" in losses) == (variant == "mask")
    for name, parameter in model.proposal_generator.named_parameters():
        assert parameter.grad is not None, name
    with torch.no_grad():
        outputs = model.eval()(batch())
    assert ("proposals" if variant == "proposals" else "instances") in outputs[0]


def test_detectron2_own_configs():
    """GA-RPN and its heads on a Mask R-CNN of detectron2's model zoo."""
    from detectron2 import model_zoo
    from detectron2.modeling import build_model
    from detectron2.utils.events import EventStorage

    from ga_scope.engines.detectron2 import add_ga_scope_config

    cfg = add_ga_scope_config(model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    cfg.INPUT.MASK_FORMAT = "bitmask"
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "GuidedAnchoringRPN"
    cfg.MODEL.ROI_HEADS.NAME = "GuidedAnchoringROIHeads"
    model = build_model(cfg)
    with EventStorage():
        losses = model(batch(masks=True))
    assert "loss_mask" in losses and all(loss.isfinite() for loss in losses.values())


def test_lazy_config_builds_the_same():
    """Explicit arguments instead of a yaml, as LazyConfig gives them."""
    from detectron2.config import LazyCall as L
    from detectron2.config import instantiate
    from detectron2.layers import ShapeSpec

    from ga_scope.engines.detectron2 import GuidedAnchoringRPN
    from ga_scope.modeling.guided_anchoring import GuidedAnchorHead, GuidedAnchorRPN

    lazy = L(GuidedAnchoringRPN)(
        in_features=["p3", "p4"],
        rpn=L(GuidedAnchorRPN)(head=L(GuidedAnchorHead)(in_channels=16, conv=True), strides=(8, 16)),
    )
    generator = instantiate(lazy)
    assert generator.in_features == ["p3", "p4"] and generator.rpn.head.conv.in_channels == 16
    _, cfg = build(["MODEL.RPN.IN_FEATURES", "['p3', 'p4']", "MODEL.GUIDED_ANCHORING.CONV", "True"])
    from_yaml = GuidedAnchoringRPN(
        cfg, {"p3": ShapeSpec(channels=16, stride=8), "p4": ShapeSpec(channels=16, stride=16)}
    )
    assert {n: p.shape for n, p in generator.named_parameters()} == {
        n: p.shape for n, p in from_yaml.named_parameters()
    }


def test_roi_heads_match_as_detectron2():
    """The streaming matcher labels proposals as detectron2's matrix does."""
    from detectron2.structures import Boxes, Instances, pairwise_iou

    from ga_scope.engines.detectron2 import GuidedAnchoringROIHeads

    model, _ = build()
    matcher = model.roi_heads.proposal_matcher
    for _ in range(20):
        proposals, targets = [], []
        for count in (40, 0, 60):
            item, target = Instances((100, 100)), Instances((100, 100))
            corner = torch.rand(count, 2) * 60
            item.proposal_boxes = Boxes(torch.cat([corner, corner + 5 + torch.rand(count, 2) * 35], 1))
            corner = torch.rand(count // 10, 2) * 60
            target.gt_boxes = Boxes(torch.cat([corner, corner + 5 + torch.rand(count // 10, 2) * 35], 1))
            proposals.append(item)
            targets.append(target)
        indices, labels = GuidedAnchoringROIHeads._match(proposals, targets, matcher)
        for item, target, index, label in zip(proposals, targets, indices, labels):
            matrix = pairwise_iou(target.gt_boxes, item.proposal_boxes)
            expected_index, expected_label = matcher(matrix)
            assert torch.equal(label, expected_label)
            if len(target):
                best = matrix.gather(0, index[None])[0]
                torch.testing.assert_close(best, matrix.max(0).values)
            assert index.dtype == expected_index.dtype


def test_heads_use_the_best_proposals_only():
    model, _ = build(["MODEL.ROI_HEADS.PROPOSALS_PER_IMAGE", "7"])
    seen = []
    model.roi_heads.box_pooler.register_forward_hook(lambda m, args, out: seen.append([len(b) for b in args[1]]))
    with torch.no_grad():
        model.eval()(batch())
    assert seen == [[7, 7]] or all(n <= 7 for n in seen[0])


@pytest.mark.slow
@pytest.mark.long
def test_overfits_four_images(shapes, four_images, tmp_path):
    """One system: the others' losses and gradients are those of the built-in engine, where each does."""
    (metrics,) = run("ga_faster_rcnn", overfitting(shapes, four_images, tmp_path)).values()
    assert metrics["AP50"] > 0.95, metrics


def test_names_of_detectron2s_datasets_are_taken():
    with pytest.raises(DatasetError, match="'voc_2007_train' is taken by a dataset of detectron2"):
        build(["DATASETS.REGISTER", "[['voc_2007_train', 'mine.json', 'mine']]"])
    _registered.pop("voc_2007_train")


def test_annotations_without_a_mask_are_dropped_where_masks_are_trained(shapes, tmp_path, caplog):
    """A polygon of two points is none, and neither is what is absent."""
    from ga_scope.engines.detectron2.data import TrainMapper

    content = json.loads((shapes / "annotations" / "instances_train.json").read_text())
    for i, annotation in enumerate(content["annotations"]):
        x, y, w, h = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h]] if i % 3 else [[x, y, x + w, y]]
        if i % 6 == 3:
            del annotation["segmentation"]
    without = sum(not annotation["iscrowd"] for annotation in content["annotations"][::3])
    path = tmp_path / "masks.json"
    path.write_text(json.dumps(content))
    name = f"masks_{tmp_path.name}"
    more = {"DATASETS.REGISTER": [[name, str(path), str(shapes / "train")]], "DATASETS.TRAIN": (name,)}
    _, cfg = build([*overrides(shapes, tmp_path, **more), "MODEL.MASK_ON", "True"])
    loader = train_loader(cfg, get_engine("detectron2").training_records(cfg), TrainMapper(cfg), 0)
    seen = [x["instances"] for batch, _ in zip(loader, range(20)) for x in batch]
    assert all(len(x) == 0 or len(x.gt_masks) == len(x.gt_boxes) for x in seen) and any(len(x) for x in seen)
    assert f"{without} annotations without an outline (left out, MODEL.MASK_ON)" in caplog.text


def test_boxes_are_not_pooled_in_bfloat16():
    """detectron2's ROIAlign would round them to the features' type."""
    from detectron2.modeling.poolers import ROIPooler
    from detectron2.structures import Boxes

    model, cfg = build(name="faster_rcnn")
    pooler, samples = model.roi_heads.box_pooler, cfg.MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO
    features = [torch.randn(1, 8, 256 // s, 256 // s).bfloat16() for s in (4, 8, 16, 32)]
    boxes = [Boxes(torch.tensor([[130.6, 71.3, 201.7, 190.4]]))]
    plain = ROIPooler(7, [1 / s for s in (4, 8, 16, 32)], samples, "ROIAlignV2")
    expected = plain([feature.float() for feature in features], boxes)
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.allclose(plain(features, boxes).float(), expected, atol=0.02)
        assert torch.equal(pooler(features, boxes), expected)


def test_pooling_has_detectron2s_gradient():
    """From the project's kernel: of Mask R-CNN's two poolers, too."""
    from detectron2.modeling.poolers import ROIPooler
    from detectron2.structures import Boxes

    from ga_scope.engines.detectron2.engine import FastROIAlign

    model, _ = build(["MODEL.MASK_ON", "True"])
    for pooler in (model.roi_heads.box_pooler, model.roi_heads.mask_pooler):
        levels = pooler.level_poolers
        size, scales, ratio = levels[0].output_size, [level.spatial_scale for level in levels], levels[0].sampling_ratio
        theirs = ROIPooler(size, scales, ratio, "ROIAlignV2")
        boxes = [
            Boxes(torch.cat([corner := torch.rand(n, 2) * 300, corner + torch.rand(n, 2) * 300], 1)) for n in (40, 3)
        ]
        features = [torch.randn(2, 16, int(400 * scale), int(400 * scale)) for scale in scales]
        weight = torch.randn(43, 16, *size)
        gradients = []
        for each in (pooler, theirs):
            leaves = [feature.clone().requires_grad_() for feature in features]
            (each(leaves, boxes) * weight).sum().backward()
            gradients.append([leaf.grad for leaf in leaves])
        assert all(type(level) is FastROIAlign for level in levels)
        for ours, expected in zip(*gradients):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["ga_faster_rcnn", "scopenet", "ga_retinanet"])
def test_amp_on_a_gpu(name, shapes, tmp_path):
    run(name, overrides(shapes, tmp_path, **{"MODEL.DEVICE": "cuda", "SOLVER.AMP.ENABLED": True}))
    assert finite_losses(tmp_path)


def test_broken_images_are_named(shapes, tmp_path):
    """A truncated image is an error with its name where it is mapped, in this process or a loader's."""
    from ga_scope.engines.detectron2.data import TrainMapper

    _, cfg = build(overrides(shapes, tmp_path))
    source = next((shapes / "train").glob("*.jpg"))
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(source.read_bytes()[:700])
    record = {"file_name": str(broken), "image_id": 1, "height": 128, "width": 128, "annotations": []}
    with pytest.raises(DatasetError, match="broken.jpg: cannot be read as an image"):
        TrainMapper(cfg)(record)


# ---- ScopeNet --------------------------------------------------------------------------------------


def test_scopenet_trains_a_batch_with_an_empty_image():
    """Losses and gradients of every parameter; inference scales its boxes to the size that is asked for."""
    from detectron2.utils.events import EventStorage

    model, _ = build(name="scopenet")
    with EventStorage():
        losses = model.train()(batch())
        sum(losses.values()).backward()
    assert set(losses) == {"loss_cls", "loss_box", "loss_bin"} and all(loss.isfinite() for loss in losses.values())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
    model.detector.score_thresh = 0.0
    inputs = batch()
    inputs[0] |= {"height": 192, "width": 256}
    with torch.no_grad():
        first, _ = model.eval()(inputs)
    instances = first["instances"]
    assert instances.image_size == (192, 256) and len(instances) == 100
    assert instances.pred_boxes.tensor.amax(0)[2] > 128


def test_scopenet_of_a_lazy_config():
    """Explicit arguments instead of a yaml."""
    from detectron2.config import LazyCall as L
    from detectron2.config import instantiate
    from detectron2.modeling.backbone import FPN, BasicStem, ResNet
    from detectron2.modeling.backbone.fpn import LastLevelP6P7

    from ga_scope.engines.detectron2 import ScopeNet
    from ga_scope.modeling.scope import ScopeBins, ScopeDetector, ScopeHead

    bottom_up = L(ResNet)(
        stem=L(BasicStem)(in_channels=3, out_channels=64, norm="BN"),
        stages=L(ResNet.make_default_stages)(depth=18, norm="BN"),
        out_features=["res3", "res4", "res5"],
    )
    top = L(LastLevelP6P7)(in_channels=64, out_channels=64, in_feature="p5")
    lazy = L(ScopeNet)(
        backbone=L(FPN)(bottom_up=bottom_up, in_features=["res3", "res4", "res5"], out_channels=64, top_block=top),
        in_features=["p3", "p4", "p5", "p6", "p7"],
        detector=L(ScopeDetector)(
            head=L(ScopeHead)(in_channels=64, classes=5, bins=L(ScopeBins)(count=3, size=1.25), convs=1),
            strides=(8, 16, 32, 64, 128),
        ),
        pixel_mean=[0.0] * 3,
        pixel_std=[1.0] * 3,
    )
    losses = instantiate(lazy)(batch())
    assert all(loss.isfinite() for loss in losses.values())
