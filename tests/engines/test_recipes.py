"""The recipes of configs/COCO-Detection: the recommended one, the paper's to the letter, the release's."""

import pytest

from ga_scope.config import get
from ga_scope.engines import get_engine

from .conftest import CONFIGS

GA = "MODEL.GUIDED_ANCHORING."
# Where the paper is silent, and section 3.5's "fewer samples": the release's.
SOLVER = {
    "SOLVER.WARMUP_ITERS": 500,
    "SOLVER.WARMUP_FACTOR": pytest.approx(1 / 3, abs=1e-4),
    "SOLVER.CLIP_GRADIENTS.ENABLED": True,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "full_model",
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 35.0,
}
PROPOSALS = {
    "MODEL.RPN.BBOX_REG_WEIGHTS": pytest.approx([1 / 0.07, 1 / 0.07, 1 / 0.11, 1 / 0.11], abs=1e-3),
    "MODEL.RPN.SMOOTH_L1_BETA": 1.0,
}
HEADS = {
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 256,
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": [0.6],
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.001,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": pytest.approx([1 / 0.05, 1 / 0.05, 1 / 0.1, 1 / 0.1]),
}
# PEER_FIGURES' facts 3, 6, 7 and 8 beside what the paper says.
RELEASE = {
    GA + "LOCATION.RULE": "release",
    GA + "SHAPE.LOSS_DIVISOR": "sample",
    GA + "SHAPE.LOSS_WEIGHT": 1.0,
    GA + "CELL_OFFSET": 0.0,
}
PAPER = {
    GA + "LOCATION.RULE": "paper",
    GA + "SHAPE.LOSS_DIVISOR": "positives",
    GA + "SHAPE.LOSS_WEIGHT": 0.1,
    GA + "CELL_OFFSET": 0.5,
}
WITH_CONV = {GA + "CONV": True, GA + "SHAPE_STD": 0.14}
LITERAL = {GA + "CONV": False, GA + "SHAPE_STD": 1.0}
RETINA = {GA + "SIGMA": 4.0, GA + "SHAPE_STD": 1.0, GA + "SHAPE.IOU_THRESHOLDS": [0.4, 0.5]}

RECIPES = {
    "ga_rpn_R_50_FPN_1x": SOLVER | PROPOSALS | PAPER | WITH_CONV,
    "ga_rpn_R_50_FPN_1x_paper": SOLVER | PROPOSALS | PAPER | LITERAL,
    "ga_rpn_R_50_FPN_1x_release": SOLVER | PROPOSALS | RELEASE | WITH_CONV,
    "ga_rpn_X_101_64x4d_FPN_1x_release": SOLVER | PROPOSALS | RELEASE | WITH_CONV,
    "ga_faster_rcnn_R_50_FPN_1x": SOLVER | PROPOSALS | HEADS | PAPER | WITH_CONV,
    "ga_faster_rcnn_R_50_FPN_1x_paper": SOLVER | PROPOSALS | HEADS | PAPER | LITERAL,
    "ga_faster_rcnn_R_50_FPN_1x_release": SOLVER | PROPOSALS | HEADS | RELEASE | WITH_CONV,
    "ga_faster_rcnn_R_101_FPN_1x_release": SOLVER | PROPOSALS | HEADS | RELEASE | WITH_CONV,
    "ga_retinanet_R_50_FPN_1x": SOLVER | PAPER | RETINA,
    "ga_retinanet_R_50_FPN_1x_release": SOLVER | RELEASE | RETINA,
    "ga_fast_rcnn_R_50_FPN_1x": SOLVER | HEADS,
    "ga_fast_rcnn_R_50_FPN_1x_release": SOLVER | HEADS,
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_what_its_name_says(name):
    opts = ["MODEL.DEVICE", "cpu"]
    if "fast_rcnn" in name:
        opts += ["DATASETS.PROPOSAL_FILES_TRAIN", "('p.npz',)", "DATASETS.PROPOSAL_FILES_TEST", "('p.npz',)"]
    cfg = get_engine("torchvision").setup(CONFIGS / "COCO-Detection" / f"{name}.yaml", opts)
    for key, value in RECIPES[name].items():
        found = get(cfg, key)
        assert (list(found) if isinstance(found, (list, tuple)) else found) == value, key
