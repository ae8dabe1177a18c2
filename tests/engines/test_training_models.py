"""The training of the project's own detectors, in either engine: what test_training.py's small model cannot show."""

import json

import pytest

from .conftest import ENGINES, overrides, run
from .test_training import assert_resumes

MODELS = [
    ("ga_faster_rcnn", {"DATALOADER.NUM_WORKERS": 2, "SEED": -1}),
    ("retinanet", {"SOLVER.OPTIMIZER": "SGD", "MODEL_EMA.ENABLED": True, "MODEL_EMA.DECAY": 0.9}),
    ("scopenet", {"SOLVER.ACCUMULATION_STEPS": 2, "SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR"}),
]  # fmt: skip


def options(shapes, output, **more):
    return overrides(
        shapes, output, **({"SOLVER.MAX_ITER": 5, "SOLVER.CHECKPOINT_PERIOD": 3, "DATASETS.TEST": ()} | more)
    )


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name, more", MODELS)
def test_a_resumed_run_of_a_detector_equals_one_that_never_stopped(name, engine, more, shapes, tmp_path):
    """With what each model keeps of its batches: RetinaNet an average of its positives."""
    run(name, engine, options(shapes, tmp_path / "whole", **more))
    assert_resumes(name, engine, shapes, tmp_path / "whole", tmp_path / "parts", more)


def test_the_average_is_what_is_evaluated(shapes, tmp_path):
    name = f"val_{shapes.parent.name}"
    more = {"MODEL_EMA.ENABLED": True, "MODEL_EMA.DECAY": 0.5, "DATASETS.TEST": (name,)}
    found = run("rpn", "torchvision", options(shapes, tmp_path, **more))[name]
    for weights, same in (("model_final_ema.pth", True), ("model_final.pth", False)):
        opts = options(
            shapes, tmp_path / weights, **{"DATASETS.TEST": (name,), "MODEL.WEIGHTS": str(tmp_path / weights)}
        )
        again = run("rpn", "torchvision", opts, "--eval-only")[name]
        assert (json.dumps(again) == json.dumps(found)) == same
