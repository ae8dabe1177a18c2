"""The training of the project's own detectors, in either engine: what test_training.py's small model cannot show."""

import json

import pytest
import torch
from torchvision.ops import box_iou

from ga_scope import Detector

from .conftest import ENGINES, config, run
from .test_training import assert_resumes, options

MODELS = [
    ("ga_faster_rcnn", {"DATALOADER.NUM_WORKERS": 2, "SEED": -1}),
    ("retinanet", {"SOLVER.OPTIMIZER": "SGD", "MODEL_EMA.ENABLED": True, "MODEL_EMA.DECAY": 0.9}),
    ("scopenet", {"SOLVER.ACCUMULATION_STEPS": 2, "SOLVER.IMS_PER_BATCH": 4}),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name, more", MODELS)
def test_a_resumed_run_of_a_detector_equals_one_that_never_stopped(name, engine, more, shapes, tmp_path):
    """With what each model keeps of its batches: RetinaNet an average of its positives."""
    run(name, engine, options(shapes, tmp_path / "whole", **more))
    assert_resumes(name, engine, shapes, tmp_path / "whole", tmp_path / "parts", more)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_precision_of_the_evaluation(engine, precision, shapes, random_rpn):
    """Of the convolutions; anchors and results have float32, and are about those of float32."""
    seen, found = [], []
    for kind in ("float32", precision):
        detector = Detector(config("ga_rpn"), overrides=[*random_rpn, "TEST.PRECISION", kind], engine=engine)
        detector.model.backbone.register_forward_hook(lambda *args: seen.append(args[2]["p3"].dtype))
        found.append(detector(str(next((shapes / "val").glob("*.jpg")))))
    assert seen == [torch.float32, getattr(torch, precision)]
    exact, half = found
    assert half.proposals.dtype == torch.float32 and abs(len(half.proposals) - len(exact.proposals)) < 100
    best, others = exact.proposals[:10].double(), half.proposals.double()
    assert box_iou(best, others).max(1).values.min() > (0.999 if precision == "float32" else 0.8)


def test_the_average_is_what_is_evaluated(shapes, tmp_path):
    name = f"val_{shapes.parent.name}"
    more = {"MODEL_EMA.ENABLED": True, "MODEL_EMA.DECAY": 0.5, "DATASETS.TEST": (name,)}
    found = run("rpn", "torchvision", options(shapes, tmp_path, **more))[name]
    for weights, same in (("model_final_ema.pth", True), ("model_final.pth", False)):
        opts = options(
            shapes, tmp_path / "eval" / weights, **{"DATASETS.TEST": (name,), "MODEL.WEIGHTS": str(tmp_path / weights)}
        )
        again = run("rpn", "torchvision", opts, "--eval-only")[name]
        assert (json.dumps(again) == json.dumps(found)) == same
