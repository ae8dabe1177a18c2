"""A generator of detection data in COCO format, for demos, tests and ablations where COCO is not at hand.

Images are photographs of nothing: a smooth random background with noise, and on it ellipses, polygons and
rendered letters of any colour, 8 px to most of the image in size (log-uniform), of aspect ratios up to
1:6, overlapping, cut by the border. A few images hold a crowd region (many tiny shapes under one
``iscrowd`` annotation) or nothing at all. The same settings give the same bytes.
"""

import contextlib
import functools
import json
import logging
import math
import multiprocessing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CLASSES = ("rectangle", "ellipse", "triangle", "star", "letter")
LETTERS = "ABEGHKMRSTXZ"
HALF = 0.505  # coverage from which a pixel belongs to a shape: more than half, after rounding to 1 / 255
SUPERSAMPLING = 4  # shapes are drawn larger and scaled down: smooth edges

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShapesSettings:
    """What a split looks like."""

    images: int
    size: int = 192  # side of the (square) images in pixels
    seed: int = 0
    most_objects: int = 6
    smallest: float = 8.0  # side lengths, geometric mean of width and height
    largest: float = 0.8  # of the image's side
    most_elongated: float = 6.0
    empty_fraction: float = 0.04
    crowd_fraction: float = 0.04


def make_shapes(output, train: int = 1000, val: int = 150, size: int = 192, seed: int = 0, processes: int = 1) -> Path:
    """Writes ``train/``, ``val/`` and ``annotations/instances_{train,val}.json`` under ``output``.

    A split that is already there with the same settings is left alone; one with other settings is an error. Image i of
    a split is the same however many there are, and whatever the number of ``processes`` that draw.

    Returns:
        ``output`` as a path.
    """
    output = Path(output)
    for offset, (split, images) in enumerate((("train", train), ("val", val))):
        _make_split(output, split, ShapesSettings(images, size, 2 * seed + offset), processes)
    return output


def _make_split(output, split, settings, processes):
    annotations = output / "annotations" / f"instances_{split}.json"
    if annotations.exists():
        found = json.loads(annotations.read_text())["info"].get("settings")
        if found != asdict(settings):
            raise FileExistsError(
                f"{annotations}: expected shapes of {asdict(settings)}, found {found}; delete it first"
            )
        return
    folder = output / split
    folder.mkdir(parents=True, exist_ok=True)
    annotations.parent.mkdir(parents=True, exist_ok=True)
    images, objects = [], []
    with contextlib.ExitStack() as stack:
        # No process of its own for one: a caller need not be importable for it, as multiprocessing demands.
        each = stack.enter_context(multiprocessing.Pool(processes)).imap if processes > 1 else map
        scenes = each(functools.partial(_save_scene, settings, folder), range(settings.images))
        for index, (name, found) in enumerate(scenes):
            images.append({"id": index + 1, "file_name": name, "width": settings.size, "height": settings.size})
            for item in found:
                objects.append({"id": len(objects) + 1, "image_id": index + 1, **item})
    categories = [{"id": i + 1, "name": name, "supercategory": "shape"} for i, name in enumerate(CLASSES)]
    content = {
        "info": {"description": "ga_scope shapes", "settings": asdict(settings)},
        "images": images,
        "annotations": objects,
        "categories": categories,
    }
    # Written last and in one step: a split without annotations is one that was not finished.
    partial = annotations.with_suffix(".part")
    partial.write_text(json.dumps(content))
    partial.rename(annotations)
    logger.info("made %d images with %d objects in %s", len(images), len(objects), folder)


def _save_scene(settings, folder, index):
    """The name of the file that it writes, and the image's annotations."""
    image, found = draw_scene(settings, index)
    name = f"{index:06d}.jpg"
    image.save(folder / name, quality=92)
    return name, found


def draw_scene(settings: ShapesSettings, index: int):
    """Image ``index`` of a split and its annotations (COCO's fields but ``id`` and ``image_id``)."""
    rng = np.random.default_rng([settings.seed, index])
    canvas = _background(rng, settings.size)
    if rng.random() < settings.empty_fraction:
        return _finish(rng, canvas), []
    objects = []
    if rng.random() < settings.crowd_fraction:
        objects.append(_draw_crowd(rng, canvas, settings))
    covered = np.full((settings.size, settings.size), -1, dtype=np.int16)
    for _ in range(int(rng.integers(1, settings.most_objects + 1))):
        _draw_object(rng, canvas, covered, objects, settings)
    return _finish(rng, canvas), objects


def _background(rng, size):
    """Smooth colour with a few soft waves, as float (size, size, 3) in [0, 255]."""
    grey = rng.uniform(40, 215, (4, 4, 1))
    low = (0.5 * grey + 0.5 * rng.uniform(0, 255, (4, 4, 3))).astype(np.uint8)
    smooth = np.asarray(Image.fromarray(low).resize((size, size), Image.BICUBIC), dtype=np.float64)
    y, x = np.mgrid[0:size, 0:size] / size
    for _ in range(3):
        angle, frequency, phase = rng.uniform(0, math.pi), rng.uniform(2, 14), rng.uniform(0, 2 * math.pi)
        wave = np.sin(2 * math.pi * frequency * (x * math.cos(angle) + y * math.sin(angle)) + phase)
        smooth += wave[..., None] * rng.uniform(-12, 12, 3)
    return smooth


def _finish(rng, canvas):
    noisy = canvas + rng.normal(0, 6, canvas.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _draw_object(rng, canvas, covered, objects, settings):
    """Draws one more object, unless it would hide most of an earlier one or is cut down to a sliver."""
    category = int(rng.integers(len(CLASSES)))
    for _ in range(10):
        side = math.exp(rng.uniform(math.log(settings.smallest), math.log(settings.largest * settings.size)))
        aspect = math.exp(rng.uniform(-1, 1) * math.log(settings.most_elongated))
        width, height = side * math.sqrt(aspect), side / math.sqrt(aspect)
        if max(width, height) > settings.size:
            continue
        # Centres lie on the image; the border may cut up to half of an object.
        center = rng.uniform(0, settings.size, 2)
        mask, outline = _render(rng, CLASSES[category], center, width, height, settings.size)
        solid = mask > HALF
        area = int(solid.sum())
        if area < 0.6 * 0.4 * width * height or area < 12:
            continue
        hidden, counts = np.unique(covered[solid], return_counts=True)
        if any(i >= 0 and n > 0.35 * objects[i]["area"] for i, n in zip(hidden, counts)):
            continue
        colour = _contrasting_colour(rng, canvas, solid)
        canvas += mask[..., None] * (colour + _texture(rng, settings.size) - canvas)
        covered[solid] = len(objects)
        ys, xs = np.nonzero(solid)
        x1, y1, x2, y2 = int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1
        objects.append(
            {
                "category_id": category + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": area,
                "iscrowd": 0,
                "segmentation": [outline],
            }
        )
        return


def _contrasting_colour(rng, canvas, solid):
    """A colour that can be told from what it covers."""
    behind = canvas[solid].mean(0)
    for _ in range(50):
        colour = rng.uniform(0, 255, 3)
        if np.abs(colour - behind).max() > 70:
            return colour
    return 255 - behind


def _texture(rng, size):
    """Stripes or nothing, faint."""
    if rng.random() < 0.5:
        return np.zeros((size, size, 1))
    y, x = np.mgrid[0:size, 0:size]
    angle, period = rng.uniform(0, math.pi), rng.uniform(4, 16)
    return 18 * np.sin(2 * math.pi * (x * math.cos(angle) + y * math.sin(angle)) / period)[..., None]


def _polygon(rng, kind, width, height):
    """Corners of a shape in a box of width x height about the origin, touching all four sides."""
    if kind == "rectangle":
        points = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    elif kind == "triangle":
        tip = rng.uniform(-0.6, 0.6)
        points = [(tip, -1), (1, 1), (-1, 1)]
        if rng.random() < 0.5:
            points = [(x, -y) for x, y in points]
    elif kind == "star":
        radius = [1.0, 0.45] * 5
        angles = [math.pi * i / 5 - math.pi / 2 for i in range(10)]
        points = [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radius, angles)]
    else:
        points = [(math.cos(2 * math.pi * i / 40), math.sin(2 * math.pi * i / 40)) for i in range(40)]
    xy = np.array(points)
    low, high = xy.min(0), xy.max(0)
    return (2 * (xy - low) / (high - low) - 1) * (width / 2, height / 2)


def _render(rng, kind, center, width, height, size):
    """Coverage (size, size) in [0, 1], and the outline as COCO's [x, y, x, y, ...]."""
    scale = SUPERSAMPLING
    sheet = Image.new("L", (size * scale, size * scale), 0)
    if kind == "letter":
        _paste_letter(rng, sheet, center * scale, width * scale, height * scale)
        mask = _shrink(sheet, size)
        return mask, _outline(mask > HALF)
    corners = _polygon(rng, kind, width, height) + center
    # PIL counts from the centres of pixels and draws the outline, too.
    ImageDraw.Draw(sheet).polygon([(float(x), float(y)) for x, y in corners * scale - 0.5], fill=255)
    return _shrink(sheet, size), [round(float(v), 2) for point in _clip(corners, size) for v in point]


def _clip(corners, size):
    """A polygon cut at the border of the image, side by side (Sutherland and Hodgman)."""
    points = [tuple(point) for point in corners]
    for axis in (0, 1):
        for limit, sign in ((0, 1), (size, -1)):
            kept = []
            for before, point in zip([*points[-1:], *points[:-1]], points):
                inside, was_inside = sign * (point[axis] - limit) >= 0, sign * (before[axis] - limit) >= 0
                if inside != was_inside:
                    t = (limit - before[axis]) / (point[axis] - before[axis])
                    kept.append(tuple(b + t * (p - b) for b, p in zip(before, point)))
                if inside:
                    kept.append(point)
            points = kept
    return points


def _shrink(sheet, size):
    return np.asarray(sheet.resize((size, size), Image.BOX), dtype=np.float64) / 255


def _paste_letter(rng, sheet, center, width, height):
    letter = LETTERS[int(rng.integers(len(LETTERS)))]
    font = ImageFont.load_default(64)
    left, top, right, bottom = font.getbbox(letter)
    glyph = Image.new("L", (right - left, bottom - top), 0)
    # Outlined, so that thin strokes survive at small sizes.
    ImageDraw.Draw(glyph).text((-left, -top), letter, fill=255, font=font, stroke_width=2, stroke_fill=255)
    glyph = glyph.resize((max(1, round(width)), max(1, round(height))), Image.BILINEAR)
    sheet.paste(glyph, (round(center[0] - width / 2), round(center[1] - height / 2)))


def _outline(solid):
    """A polygon around a mask: down its left edge, up its right."""
    rows = np.nonzero(solid.any(1))[0]
    if len(rows) == 0:
        return []
    first, last = solid.argmax(1), solid.shape[1] - solid[:, ::-1].argmax(1)
    down = [(int(first[y]), int(y) + dy) for y in rows for dy in (0, 1)]
    up = [(int(last[y]), int(y) + dy) for y in rows[::-1] for dy in (1, 0)]
    return [v for point in down + up for v in point]


def _draw_crowd(rng, canvas, settings):
    """Many tiny shapes in a patch, under one annotation."""
    side = settings.size
    width, height = rng.uniform(0.2, 0.35, 2) * side
    x0, y0 = rng.uniform(0, side - width), rng.uniform(0, side - height)
    kind = int(rng.integers(len(CLASSES) - 1))
    union = np.zeros((side, side), dtype=bool)
    for _ in range(25):
        center = np.array([rng.uniform(x0, x0 + width), rng.uniform(y0, y0 + height)])
        small = rng.uniform(4, 9, 2)
        mask, _ = _render(rng, CLASSES[kind], center, *small, side)
        canvas += mask[..., None] * (rng.uniform(0, 255, 3) - canvas)
        union |= mask > HALF
    ys, xs = np.nonzero(union)
    x1, y1, x2, y2 = int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1
    return {
        "category_id": kind + 1,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": int(union.sum()),
        "iscrowd": 1,
        "segmentation": _run_lengths(union),
    }


def _run_lengths(mask):
    """COCO's uncompressed run lengths: column by column, starting with zeros."""
    flat = mask.T.flatten()
    edges = np.nonzero(np.diff(flat))[0] + 1
    runs = np.diff([0, *edges, flat.size]).tolist()
    return {"counts": ([0] if flat[0] else []) + runs, "size": list(mask.shape)}
