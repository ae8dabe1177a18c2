"""A tiny dataset, configurations on it, and models of either engine with the same weights."""

import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch

from ga_scope.cli import end_well, train_net
from ga_scope.data import make_shapes
from ga_scope.engines import get_engine
from ga_scope.engines.checkpoint import Checkpointer

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
# For parametrize: a test of each engine. Without detectron2 its half is skipped, with a reason.
ENGINES = ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)]
SHAPES = [p.stem.removesuffix("_R_18_FPN") for p in sorted((CONFIGS / "shapes").glob("[!B]*.yaml"))]
# test_fast_rcnn.py trains those that read proposals.
TRAINABLE = [name for name in SHAPES if "fast_rcnn" not in name and "finetune" not in name]


def config(name):
    """Of configs/shapes."""
    return str(CONFIGS / "shapes" / f"{name}_R_18_FPN.yaml")


def main(arguments):
    """``train_net.py`` with these arguments, up to its exit: the metrics per dataset."""
    found = {}
    end_well(lambda: found.update(train_net(arguments)))
    return found


def run(name, engine, opts, *flags):
    """``train_net.py`` for a configuration of configs/shapes."""
    return main(["--config-file", config(name), "--engine", engine, *flags, *opts])


def setup(name, opts=(), engine="torchvision"):
    return get_engine(engine).setup(config(name), opts)


def built(name, opts=(), engine="torchvision"):
    """A configuration's model with fresh weights."""
    return get_engine(engine).build(setup(name, ["MODEL.DEVICE", "cpu", *opts], engine))


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """24 training and 10 validation images of 128 px."""
    return make_shapes(tmp_path_factory.mktemp("data") / "shapes", train=24, val=10, size=128, seed=5)


@pytest.fixture(scope="session")
def four_images(shapes, tmp_path_factory):
    """An annotation file with four of the training images that have objects: to be learned by heart."""
    content = json.loads((shapes / "annotations" / "instances_train.json").read_text())
    objects = [a for a in content["annotations"] if not a["iscrowd"] and min(a["bbox"][2:]) >= 12]
    wanted = list(dict.fromkeys(a["image_id"] for a in objects))[:4]
    content["images"] = [i for i in content["images"] if i["id"] in wanted]
    content["annotations"] = [a for a in objects if a["image_id"] in wanted]
    path = tmp_path_factory.mktemp("four") / "instances_four.json"
    path.write_text(json.dumps(content))
    return path


def image_size(pixels):
    """Overrides for training and testing at this size."""
    return {
        "INPUT.MIN_SIZE_TRAIN": (pixels,),
        "INPUT.MAX_SIZE_TRAIN": pixels,
        "INPUT.MIN_SIZE_TEST": pixels,
        "INPUT.MAX_SIZE_TEST": pixels,
    }


def entries(shapes):
    """DATASETS.REGISTER of the tiny dataset."""
    return [
        [f"{split}_{shapes.parent.name}", str(shapes / "annotations" / f"instances_{split}.json"), str(shapes / split)]
        for split in ("train", "val")
    ]


def overrides(shapes, output, **more):
    """Command-line overrides for a short training of a configuration of configs/shapes on the tiny dataset."""
    train, val = (entry[0] for entry in entries(shapes))
    settings = {
        "DATASETS.REGISTER": entries(shapes),
        "DATASETS.TRAIN": (train,),
        "DATASETS.TEST": (val,),
        "DATALOADER.NUM_WORKERS": 0,
        **image_size(64),
        "MODEL.DEVICE": "cpu",
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.MAX_ITER": 3,
        "SOLVER.WARMUP_ITERS": 2,
        "SOLVER.CHECKPOINT_PERIOD": 1000,  # only the final one: it is large
        "OUTPUT_DIR": str(output),
    } | more
    return [part for key, value in settings.items() for part in (key, value if isinstance(value, str) else repr(value))]


STEPS = 20


def short_training(name, shapes, output, **more):
    """Overrides for twenty steps of a narrow model."""
    settings = {
        "SOLVER.MAX_ITER": STEPS,
        "MODEL.FPN.OUT_CHANNELS": 64,  # two channels in each of GN's 32 groups
    }
    if "rcnn" in name or "finetune" in name:
        settings |= {"MODEL.ROI_BOX_HEAD.FC_DIM": 64, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 32}
    return overrides(shapes, output, **(settings | more))


@pytest.fixture
def losses(monkeypatch):
    """The total loss of every step that is trained during a test, in either engine."""
    seen, backward = [], torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda self, *args, **k: (seen.append(self.item()), backward(self)))
    return seen


def assert_trained(losses):
    """Twenty steps with finite losses. (That they fall shows in the longer trainings on four images.)"""
    assert len(losses) == STEPS and all(map(math.isfinite, losses)), losses


def overfitting(shapes, four_images, output):
    """Overrides that train and test on the same four images."""
    name = f"four_{output.name}"
    settings = {
        "DATASETS.REGISTER": [[name, str(four_images), str(shapes / "train")]],
        "DATASETS.TRAIN": (name,),
        "DATASETS.TEST": (name,),
        "INPUT.RANDOM_FLIP": "none",
        **image_size(128),
        "MODEL.FPN.OUT_CHANNELS": 64,
        "SOLVER.IMS_PER_BATCH": 4,
        "SOLVER.BASE_LR": 0.001,
        "SOLVER.MAX_ITER": 150,
        "SOLVER.WARMUP_ITERS": 20,
    }
    return overrides(shapes, output, **settings)


def randomise(model, seed=0):
    """Weights, statistics and biases at which every part of the model has something to say."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in sorted(model.state_dict().items()):
            if "running_var" in name:
                value.copy_(0.5 + torch.rand(value.shape, generator=generator))
            elif value.is_floating_point() and "pixel" not in name:
                scale = 0.3 if "head.adaption.conv_offset" in name or ".shape." in name else 0.05
                if "backbone" in name and value.dim() == 4:
                    scale = 0.3 * value.std()
                value.add_(torch.randn(value.shape, generator=generator) * scale)
        # Features of the order of one: far larger ones would saturate every score.
        model.eval()
        image = torch.randn(1, 3, 128, 128, generator=generator)
        largest = max(float(f.std()) for n, f in model.backbone(image).items() if n.startswith("p"))
        for name, value in model.backbone.state_dict().items():
            if "layer_blocks" in name or "extra_blocks.p6" in name:
                value.div_(largest)
    return model


def random_weights(name, opts, folder, seed=0, change=None, classes=None):
    """The options with MODEL.WEIGHTS: random ones everywhere, which ``change(model)`` may change further.

    ``classes`` are the names that travel with them.
    """
    engine = get_engine("torchvision")
    cfg = engine.setup(config(name), opts)
    model = randomise(engine.build(cfg), seed)
    if change is not None:
        change(model)
    checkpointer = Checkpointer(cfg, model, engine.named_state, folder, classes)
    return [*opts, "MODEL.WEIGHTS", str(checkpointer.save("random"))]


def photos(shapes):
    """Dicts of the validation images."""
    return [
        {"file_name": str(path), "image_id": i, "height": 128, "width": 128}
        for i, path in enumerate(sorted((shapes / "val").glob("*.jpg")))
    ]


def tool(name):
    """A script of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def random_rpn(shapes, tmp_path_factory):
    """A GA-RPN with random weights, and options that make it give proposals."""
    folder = tmp_path_factory.mktemp("rpn")
    opts = overrides(shapes, folder, **{"MODEL.GUIDED_ANCHORING.LOCATION.THRESHOLD": 0.0})
    return random_weights("ga_rpn", opts, folder)
