"""``convert``: a checkpoint of MMDetection, for either engine."""

from ..engines import get_engine
from ..engines.mmdetection import compare, convert_checkpoint
from .common import plain_parser

HELP = """Turns a guided-anchoring checkpoint of MMDetection into one of this project, for either engine.

GA-RPN, GA-Fast R-CNN, GA-Faster R-CNN and GA-RetinaNet of MMDetection 1, 2 and 3. The _release configurations hold
what such models were trained with. With --config-file the checkpoint is compared with the model of that configuration:
parameters that match, are missing or unexpected, and settings that the checkpoint has otherwise; without a target
nothing is written. Nothing of the source is run.

Examples:
  ga-scope convert ga_faster_r50_caffe_fpn_1x_coco.pth ga_faster_R_50_release.pth \\
      --config COCO-Detection/ga_faster_rcnn_R_50_FPN_1x_release
  ga-scope evaluate --config COCO-Detection/ga_faster_rcnn_R_50_FPN_1x_release \\
      MODEL.WEIGHTS ga_faster_R_50_release.pth

Exit status: 0; 1 where checkpoint and configuration differ, or after one line that says what is wrong.
"""


def main(argv=None, prog=None) -> int:
    """Exit code 0, or 1 where the checkpoint and the configuration differ."""
    parser = plain_parser(HELP, prog)
    parser.add_argument("source", help="checkpoint of MMDetection")
    parser.add_argument("target", nargs="?", help="file to write")
    parser.add_argument(
        "--complement", action="store_true", help="negate the location branch, which learned the complement of centres"
    )
    parser.add_argument(
        "--config-file", "--config", metavar="FILE", help="compare with the model of this configuration"
    )
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
        engine = get_engine("torchvision")  # either has the same parameters
        alone = ["MODEL.DEVICE", "cpu", "DATASETS.TRAIN", "()", "DATASETS.TEST", "()"]  # without data and proposals
        cfg = engine.setup(args.config_file, [*alone, *args.opts, "MODEL.WEIGHTS", ""])
        comparison = compare(converted, engine.named_state(engine.build(cfg)), cfg)
        print(comparison.as_text())
        fits = comparison.fits
    if args.target:
        converted.save(args.target)
        print(f"{len(converted.state)} parameters in {args.target}")
    return 0 if fits else 1
