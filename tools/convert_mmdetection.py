#!/usr/bin/env python3
"""Turns a GA-RPN or GA-Faster R-CNN checkpoint of MMDetection into one of this project, for either engine.

    tools/convert_mmdetection.py ga_faster_r50_caffe_fpn_1x_coco.pth ga_faster_R_50_release.pth
    train_net.py --eval-only --config-file configs/COCO-Detection/ga_faster_rcnn_R_50_FPN_1x_release.yaml \\
        MODEL.WEIGHTS ga_faster_R_50_release.pth

The ``_release`` configurations hold what such a model was trained with. MMDetection's ``caffe`` ResNets are
detectron2's; its others need MODEL.RESNETS.STRIDE_IN_1X1 False, INPUT.FORMAT RGB and ImageNet's PIXEL_MEAN and
PIXEL_STD.
"""

import argparse
import sys

import torch
from ga_scope.checkpoint import renamed

# (MMDetection's name, detectron2's name), sums in braces.
NAMES = [
    (r"backbone\.(conv1\..+)", r"backbone.bottom_up.stem.\1"),
    (r"backbone\.bn1\.(.+)", r"backbone.bottom_up.stem.conv1.norm.\1"),
    (r"backbone\.layer(\d)\.(\d+)\.(conv\d)\.(.+)", r"backbone.bottom_up.res{\1+1}.\2.\3.\4"),
    (r"backbone\.layer(\d)\.(\d+)\.bn(\d)\.(.+)", r"backbone.bottom_up.res{\1+1}.\2.conv\3.norm.\4"),
    (r"backbone\.layer(\d)\.(\d+)\.downsample\.0\.(.+)", r"backbone.bottom_up.res{\1+1}.\2.shortcut.\3"),
    (r"backbone\.layer(\d)\.(\d+)\.downsample\.1\.(.+)", r"backbone.bottom_up.res{\1+1}.\2.shortcut.norm.\3"),
    (r"neck\.lateral_convs\.(\d)\.conv\.(.+)", r"backbone.fpn_lateral{\1+2}.\2"),
    (r"neck\.fpn_convs\.(\d)\.conv\.(.+)", r"backbone.fpn_output{\1+2}.\2"),
    (r"rpn_head\.rpn_conv\.(.+)", r"proposal_generator.rpn.head.conv.\1"),
    (r"rpn_head\.conv_loc\.(.+)", r"proposal_generator.rpn.head.location.\1"),
    (r"rpn_head\.conv_shape\.(.+)", r"proposal_generator.rpn.head.shape.\1"),
    (r"rpn_head\.feature_adaption\.(.+)", r"proposal_generator.rpn.head.adaption.\1"),
    (r"rpn_head\.conv_cls\.(.+)", r"proposal_generator.rpn.head.objectness.\1"),
    (r"rpn_head\.conv_reg\.(.+)", r"proposal_generator.rpn.head.deltas.\1"),
    (r"(?:roi_head\.)?bbox_head\.shared_fcs\.(\d)\.(.+)", r"roi_heads.box_head.fc{\1+1}.\2"),
    (r"(?:roi_head\.)?bbox_head\.fc_cls\.(.+)", r"roi_heads.box_predictor.cls_score.\1"),
    (r"(?:roi_head\.)?bbox_head\.fc_reg\.(.+)", r"roi_heads.box_predictor.bbox_pred.\1"),
]


def detectron2_name(name: str) -> str:
    ours = renamed(name, NAMES)
    if ours is None:
        raise ValueError(f"{name}: no parameter of a GA-RPN or GA-Faster R-CNN")
    return ours


def convert(state: dict, complement: bool = False) -> dict:
    """A state dict of MMDetection under this project's names.

    Args:
        complement: the location branch was trained with the labels of MMDetection 3, in whose location loss an
            object's centre is the background: the branch is negated, since 1 - sigmoid(x) = sigmoid(-x).
    """
    if not any(name.startswith("rpn_head.feature_adaption.") for name in state):
        raise ValueError("expected the parameters of a GA-RPN (rpn_head.feature_adaption...), found none")
    converted = {}
    for name, value in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        name = detectron2_name(name)
        if ".objectness.weight" in name or ".deltas.weight" in name:
            value = value.flatten(1)  # 1x1 convolutions there, linear layers on the listed locations here
        if complement and ".location." in name:
            value = -value
        converted[name] = value.clone()
    return converted


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="checkpoint of MMDetection")
    parser.add_argument("target", help="file to write")
    parser.add_argument("--complement", action="store_true", help="the model was trained with MMDetection 3")
    args = parser.parse_args()
    try:
        checkpoint = torch.load(args.source, map_location="cpu", weights_only=True)
        state = convert(checkpoint.get("state_dict", checkpoint), args.complement)
    except Exception as error:  # whatever a reader of broken files says
        sys.exit(f"{args.source}: {error}")
    torch.save({"model": state}, args.target)
    print(f"{len(state)} parameters in {args.target}")


if __name__ == "__main__":
    main()
