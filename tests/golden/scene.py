"""Weights by name, and a batch, that are the same for every engine and at every time."""

import re
import zlib
from pathlib import Path

import torch
from torch import nn

SIZES = ((160, 192), (128, 176))  # of the images


def _generator(seed: int):
    return torch.Generator().manual_seed(seed)


def weight(name: str, value: torch.Tensor) -> torch.Tensor:
    """What the tensor of that name (detectron2's) is set to: large enough for every part to have something to say."""
    if ".between." in name:  # which RPN + iterative did not have: it passes on what it gets
        return nn.init.dirac_(torch.empty_like(value)) if value.dim() == 4 else torch.zeros_like(value)
    r = torch.randn(value.shape, generator=_generator(zlib.crc32(name.encode())))
    norm = re.search(r"(norm\.|tower\.\d+\.|subnet\.\d+\.)", name) and value.dim() == 1
    if norm or "running" in name:
        if name.endswith("running_var"):
            return 1 + 0.2 * r.abs()
        return 1 + 0.1 * r if name.endswith("weight") else 0.1 * r
    if "log_anchors" in name:
        return value + 0.05 * r
    if "conv_offset" in name:
        return 0.3 * r / (value[0].numel() / 2) ** 0.5
    if value.dim() >= 2:
        gain = 0.4 if re.search(r"res\d\.\d+\.conv3", name) else 1.2
        if re.search(r"(bbox_pred|deltas|borders|regression\.predict)", name):
            gain = 0.5
        if "box_predictor.bbox_pred" in name:
            gain = 2.0
        return gain * r / value[0].numel() ** 0.5
    rare = re.search(r"(location|cls_score|classes|classification\.predict)\.bias", name) and "predictor" not in name
    return 0.1 * r - (1.5 if rare else 0)


def images() -> list[torch.Tensor]:
    found = []
    for i, (height, width) in enumerate(SIZES):
        coarse = torch.randint(200, (3, height // 16, width // 16), generator=_generator(i))
        noise = torch.randint(56, (3, height, width), generator=_generator(10 + i))
        smooth = coarse.repeat_interleave(16, 1).repeat_interleave(16, 2)
        found.append((smooth + noise).to(torch.uint8))
    return found


def objects() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Boxes (5, 4) and classes (5,) per image, sides of 11 to 100 px."""
    found = []
    for i, (height, width) in enumerate(SIZES):
        generator = _generator(100 + i)
        side = torch.exp(torch.rand(5, 2, generator=generator) * 2.2 + 2.4)
        corner = torch.rand(5, 2, generator=generator) * torch.tensor([width - 20.0, height - 20.0])
        end = (corner + side).minimum(torch.tensor([float(width), float(height)]))
        found.append((torch.cat([corner, end], 1), torch.arange(5) % 5))
    return found


def proposals() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Boxes (K, 4) near the objects and logits (K,) per image, best first."""
    found = []
    for i, ((height, width), (boxes, _)) in enumerate(zip(SIZES, objects())):
        generator = _generator(200 + i)
        near = boxes.repeat(8, 1) + 6 * torch.randn(40, 4, generator=generator)
        near = near.clamp(min=0).minimum(torch.tensor([width, height, width, height], dtype=torch.float32))
        near = near[(near[:, 2:] > near[:, :2] + 2).all(1)]
        found.append((near, torch.randn(len(near), generator=generator).sort(descending=True).values))
    return found


def inputs(with_proposals: bool) -> list[dict]:
    """As the built-in engine takes them in training."""
    batch = []
    for i, (image, (boxes, classes), found) in enumerate(zip(images(), objects(), proposals())):
        x = {"image": image, "height": image.shape[1], "width": image.shape[2], "file_name": str(i), "image_id": i}
        batch.append(x | {"boxes": boxes, "labels": classes} | ({"proposals": found} if with_proposals else {}))
    return batch


# Every anchor, location and proposal is in the sample: nothing is random.
WHOLE_SAMPLE = {
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 100_000,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 10_000,
    "MODEL.GUIDED_ANCHORING.SHAPE.BATCH_SIZE_PER_IMAGE": 100_000,
}
SETTINGS = {"MODEL.DEVICE": "cpu", "MODEL.WEIGHTS": "", "MODEL.PIXEL_STD": [58.0] * 3, "INPUT.MIN_SIZE_TEST": 0}


def build(engine, config_file, dtype=torch.float32, more=None):
    """A model with the weights above, and a function that puts them back (training changes BatchNorm's statistics)."""
    options = SETTINGS | files(config_file) | (more or {})
    options |= {key: value for key, value in WHOLE_SAMPLE.items() if read(engine, config_file, key)}
    cfg = setup(engine, config_file, options)
    model = engine.build(cfg).to(dtype)
    state = {k: v for k, v in engine.named_state(model).items() if not re.search("pixel_|anchor_generator|batches", k)}
    fixed = {name: weight(before(name, cfg), value.detach().clone()) for name, value in state.items()}

    def reset():
        with torch.no_grad():
            for name, value in state.items():
                value.copy_(fixed[name])

    reset()
    return cfg, model, reset


def setup(engine, config_file, options: dict):
    return engine.setup(config_file, [part for key, value in options.items() for part in (key, value)])


def files(config_file) -> dict:
    """Fast R-CNN's configurations are not whole without proposals; the models here are given theirs."""
    if not re.search("fast_rcnn|finetune", Path(config_file).name):
        return {}
    return {f"DATASETS.PROPOSAL_FILES_{split}": ["proposals.npz"] for split in ("TRAIN", "TEST")}


def read(engine, config_file, key) -> bool:
    """Whether the model of a configuration reads a key."""
    from ga_scope.config import SCHEMA

    return SCHEMA.is_read(setup(engine, config_file, {"MODEL.DEVICE": "cpu"} | files(config_file)), key)


def before(name: str, cfg) -> str:
    """Table 1's baselines had names of their own when the outputs were recorded."""
    found = re.fullmatch(r"proposal_generator\.rpn_head\.(second\.)?(lateral\.\d|\w+)\.(weight|bias)", name)
    if cfg.MODEL.PROPOSAL_GENERATOR.NAME != "StagedRPN" or not found:
        return name
    part = {"objectness_logits": "objectness", "anchor_deltas": "deltas"}.get(found[2], found[2])
    stage = "" if part.startswith("lateral") else ".1" if found[1] else ".0"
    return f"proposal_generator.rpn.head.{part}{stage}.{found[3]}"
