#!/usr/bin/env python3
"""Turns a guided-anchoring checkpoint of MMDetection into one of this project, for either engine.

    tools/convert_mmdetection.py ga_faster_r50_caffe_fpn_1x_coco.pth ga_faster_R_50_release.pth \\
        --config-file configs/COCO-Detection/ga_faster_rcnn_R_50_FPN_1x_release.yaml
    train_net.py --eval-only --config-file configs/COCO-Detection/ga_faster_rcnn_R_50_FPN_1x_release.yaml \\
        MODEL.WEIGHTS ga_faster_R_50_release.pth

GA-RPN, GA-Fast R-CNN, GA-Faster R-CNN and GA-RetinaNet of MMDetection 1, 2 and 3. The ``_release`` configurations
hold what such models were trained with. With --config-file the checkpoint is compared with the model of that
configuration: parameters that match, are missing or unexpected, and settings that the checkpoint has otherwise;
without a target nothing is written. The exit code is 1 where they differ. Nothing of the source is run.
"""

import argparse
import sys

from ga_scope.config import ConfigError
from ga_scope.data.coco import DatasetError
from ga_scope.mmdetection import ConversionError, compare, convert_checkpoint


def model_of(config_file, opts):
    """The configuration, and the state dict of its model under detectron2's names."""
    from ga_scope.integrations.torchvision import run
    from ga_scope.integrations.torchvision.checkpoint import to_detectron2
    from ga_scope.integrations.torchvision.models import build_model

    cfg = run.setup(config_file, ["MODEL.DEVICE", "cpu", *opts, "MODEL.WEIGHTS", ""])
    return cfg, to_detectron2(build_model(cfg).state_dict())


def main(argv=None) -> int:
    """Exit code 0, or 1 where the checkpoint and the configuration differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="checkpoint of MMDetection")
    parser.add_argument("target", nargs="?", help="file to write")
    parser.add_argument(
        "--complement", action="store_true", help="negate the location branch, which learned the complement of centres"
    )
    parser.add_argument("--config-file", metavar="FILE", help="compare with the model of this configuration")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="overrides of the configuration")
    args = parser.parse_args(argv)
    if not args.target and not args.config_file:
        parser.error("expected a target to write, or --config-file to compare with")
    converted = convert_checkpoint(args.source, args.complement)
    print(f"{args.source}: {converted.family}, {len(converted.state)} parameters")
    for note in converted.notes:
        print(f"note: {note}")
    fits = True
    if args.config_file:
        cfg, model = model_of(args.config_file, args.opts)
        comparison = compare(converted, model, cfg)
        print(comparison.as_text())
        fits = comparison.fits
    if args.target:
        converted.save(args.target)
        print(f"{len(converted.state)} parameters in {args.target}")
    return 0 if fits else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ConversionError, ConfigError, DatasetError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
