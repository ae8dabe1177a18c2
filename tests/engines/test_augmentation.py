"""Augmentation: objects stay where they are in the picture, and both engines have the same switches."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from ga_scope.engines import get_engine
from ga_scope.errors import ConfigError

from .conftest import ENGINES, setup

WIDTH, HEIGHT = 96, 64


def mapper(engine, **keys):
    opts = [str(part) for pair in keys.items() for part in pair]
    cfg = setup("ga_rpn", ["MODEL.DEVICE", "cpu", "INPUT.FORMAT", "RGB", *opts], engine)
    if engine == "torchvision":
        from ga_scope.engines.torchvision.data import TrainMapper
    else:
        from ga_scope.engines.detectron2.data import TrainMapper
    return TrainMapper(cfg)


def record(box):
    """An image of the record format that is black but for a red rectangle, which is its object."""
    image = Image.new("RGB", (WIDTH, HEIGHT))
    x, y, w, h = box
    ImageDraw.Draw(image).rectangle([x, y, x + w - 1, y + h - 1], fill=(200, 40, 40))
    return {
        "pixels": image, "file_name": "drawn", "image_id": 1, "height": HEIGHT, "width": WIDTH,
        "annotations": [{"bbox": list(box), "bbox_mode": 1, "category_id": 0, "iscrowd": 0}],
        "ignore_boxes": np.zeros((0, 4)),
    }  # fmt: skip


def mapped(mapping, item):
    out = mapping(item)
    if "instances" in out:
        return out["image"], out["instances"].gt_boxes.tensor
    return out["image"], out["boxes"]


def drawn_box(image):
    """Of the pixels that are more red than black, to half a pixel's accuracy of a resized edge."""
    ys, xs = np.where(image[0].numpy() > 80)
    return [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] if len(xs) else None


AUGMENTED = {
    "INPUT.MIN_SIZE_TRAIN": (48, 128),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "range",
    "INPUT.MAX_SIZE_TRAIN": 160,
    "INPUT.RANDOM_FLIP": "both",
    "INPUT.CROP.ENABLED": True,
    "INPUT.CROP.SIZE": [0.5, 0.6],
    "INPUT.COLOR_JITTER": [0.3, 0.2, 0.1],
}


@pytest.mark.parametrize("engine", ENGINES)
def test_boxes_follow_their_objects(engine):
    """Through crops, flips, sizes and colours; what is cut off altogether is no object any more."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  (detectron2's)
    mapping, left, sizes = mapper(engine, **AUGMENTED), 0, set()
    for _ in range(60):
        image, boxes = mapped(mapping, record((30, 20, 25, 30)))
        sizes.add(tuple(image.shape))
        found = drawn_box(image)
        assert (found is None) == (len(boxes) == 0)
        if found is not None:
            left += 1
            torch.testing.assert_close(boxes[0].tolist(), [float(v) for v in found], rtol=0, atol=1.6)
    assert left > 50 and len(sizes) > 40
    assert all(min(size[1:]) >= 30 and max(size[1:]) <= 160 for size in sizes)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "flip, places", [("none", {(10, 5)}), ("horizontal", {(10, 5), (61, 5)}), ("vertical", {(10, 5), (10, 29)}),
                     ("both", {(10, 5), (61, 5), (10, 29), (61, 29)})],
)  # fmt: skip
def test_flips(engine, flip, places):
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  (detectron2's)
    mapping = mapper(engine, **{"INPUT.RANDOM_FLIP": flip, "INPUT.MIN_SIZE_TRAIN": (0,), "INPUT.MAX_SIZE_TRAIN": 999})
    seen = [mapped(mapping, record((10, 5, 25, 30)))[1][0].tolist() for _ in range(60)]
    assert {(x1, y1) for x1, y1, _, _ in seen} == places
    assert all((x2 - x1, y2 - y1) == (25, 30) for x1, y1, x2, y2 in seen)
    share = np.mean([x1 == 10 and y1 == 5 for x1, y1, _, _ in seen])
    assert abs(share - 1 / len(places)) < 0.2


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "kind, size, heights, widths",
    [
        ("relative", [0.5, 0.25], {32}, {24}),
        ("absolute", [20.0, 500.0], {20}, {WIDTH}),
        ("absolute_range", [10.0, 50.0], set(range(10, 51)), set(range(10, 51))),
        ("relative_range", [0.5, 0.9], set(range(32, 65)), set(range(86, 97))),
    ],
)
def test_crops_have_the_sizes_of_the_keys(engine, kind, size, heights, widths):
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  (detectron2's)
    keys = {"INPUT.CROP.ENABLED": True, "INPUT.CROP.TYPE": kind, "INPUT.CROP.SIZE": size}
    keys |= {"INPUT.RANDOM_FLIP": "none", "INPUT.MIN_SIZE_TRAIN": (0,), "INPUT.MAX_SIZE_TRAIN": 999}
    mapping = mapper(engine, **keys)
    found = [mapped(mapping, record((0, 0, WIDTH, HEIGHT)))[0].shape[1:] for _ in range(150)]
    assert {h for h, _ in found} <= heights and {w for _, w in found} <= widths
    assert len({h for h, _ in found}) > len(heights) / 2 and len({w for _, w in found}) > len(widths) / 2


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("which", range(3))
def test_colours(engine, which):
    """Brightness, contrast and saturation, each alone, by factors of 0.5 to 1.5."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  (detectron2's)
    jitter = [0.0, 0.0, 0.0]
    jitter[which] = 0.5
    keys = {"INPUT.COLOR_JITTER": jitter, "INPUT.RANDOM_FLIP": "none"}
    mapping = mapper(engine, **keys, **{"INPUT.MIN_SIZE_TRAIN": (0,), "INPUT.MAX_SIZE_TRAIN": 999})
    image = record((30, 20, 25, 30))["pixels"]
    pixels = np.asarray(image).astype(float)
    gray = pixels @ [0.299, 0.587, 0.114]
    middle = {0: 0.0, 1: gray.mean() if engine == "torchvision" else pixels.mean(), 2: gray[..., None]}[which]
    factors = []
    for _ in range(30):
        seen = mapped(mapping, record((30, 20, 25, 30)))[0].permute(1, 2, 0).double().numpy()
        # The one factor that explains every pixel that is neither clipped nor where nothing changes.
        offset = np.broadcast_to(pixels - middle, pixels.shape)
        usable = (abs(offset) > 20) & (seen > 2) & (seen < 253)
        ratio = ((seen - middle) / np.where(usable, offset, 1))[usable]
        factors.append(np.median(ratio))
        assert abs(ratio - factors[-1]).max() < 0.1
    assert 0.45 < min(factors) < 0.75 and 1.25 < max(factors) < 1.55


@pytest.mark.parametrize("engine", ENGINES)
def test_the_order_of_channels_is_the_networks(engine):
    """Colours are jittered in RGB, whatever INPUT.FORMAT is."""
    found = {}
    for order in ("RGB", "BGR"):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002  (detectron2's)
        keys = {"INPUT.FORMAT": order, "INPUT.COLOR_JITTER": [0.2, 0.2, 0.4], "INPUT.RANDOM_FLIP": "none"}
        found[order] = mapped(mapper(engine, **keys), record((30, 20, 25, 30)))[0]
    assert found["RGB"].flip(0).equal(found["BGR"]) and not found["RGB"].equal(found["BGR"])


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"INPUT.CROP.SIZE": [0.5, 0.5]}, "INPUT.CROP.SIZE: .*only INPUT.CROP.ENABLED True reads it"),
        ({"INPUT.CROP.ENABLED": True, "INPUT.CROP.SIZE": [0.5, 1.5]}, "INPUT.CROP.SIZE: expected shares of the sides"),
        ({"INPUT.CROP.ENABLED": True, "INPUT.CROP.TYPE": "absolute"}, "INPUT.CROP.SIZE: expected whole numbers"),
        (
            {"INPUT.CROP.ENABLED": True, "INPUT.CROP.TYPE": "absolute_range", "INPUT.CROP.SIZE": [50.0, 10.0]},
            "INPUT.CROP.SIZE: expected the lower limit first",
        ),
        ({"INPUT.COLOR_JITTER": [0.1, 0.1]}, "INPUT.COLOR_JITTER: expected"),
        ({"INPUT.COLOR_JITTER": [0.1, 0.1, 2.0]}, "INPUT.COLOR_JITTER: expected"),
        ({"INPUT.RANDOM_FLIP": "diagonal"}, "INPUT.RANDOM_FLIP: expected"),
    ],
)
def test_wrong_settings_are_named(keys, message):
    with pytest.raises(ConfigError, match=message):
        get_engine("torchvision").setup(str(_config()), [str(part) for pair in keys.items() for part in pair])


def _config():
    from .conftest import config

    return config("ga_rpn")
