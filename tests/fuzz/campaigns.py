"""Mutated inputs against the readers of this package, in one process: what is used, cleaned, refused, or a fault.

``python -m tests.fuzz --help`` runs as many as are asked for; tests/fuzz/test_fuzz.py a slice of them.
"""

import contextlib
import io
import json
import logging
import pickle
import random
import re
import signal
import tempfile
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from ga_scope.cli import end_well
from ga_scope.config import SCHEMA, flat, get
from ga_scope.data import coco, image_record, read_image
from ga_scope.data.coco import load_coco_json
from ga_scope.engines import get_engine
from ga_scope.engines.checkpoint import Checkpointer
from ga_scope.engines.weights import read_checkpoint
from ga_scope.errors import InputError

from . import mutation

ROOT = Path(__file__).parents[2]
SECONDS = 60  # that one input may take


@dataclass
class Outcomes:
    """Counts of used, cleaned and refused inputs, and what none of these is."""

    counts: Counter = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def as_text(self) -> str:
        counted = ", ".join(f"{number} {what}" for what, number in sorted(self.counts.items()))
        return f"{sum(self.counts.values())} inputs: {counted}; {len(self.faults)} faults"


class _TooLongError(BaseException):
    """Passes by every ``except Exception``."""


@contextlib.contextmanager
def _deadline():
    """Of processor time; and ten times as much by the clock, for what waits."""

    def stop(*_):
        raise _TooLongError

    timers = ((signal.SIGPROF, signal.ITIMER_PROF, SECONDS), (signal.SIGALRM, signal.ITIMER_REAL, 10 * SECONDS))
    before = [signal.signal(number, stop) for number, _, _ in timers]
    for _, timer, seconds in timers:
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for (number, timer, _), handler in zip(timers, before):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


def judge(outcomes: Outcomes, name: str, attempt: Callable[[], str], named: str):
    """Runs an attempt, which says what became of the input.

    ``named`` is a pattern that the one line of a refusal has to hold: of the file, or of a key.
    """
    try:
        with _deadline():
            outcomes.counts[attempt()] += 1
    except InputError as error:
        text = str(error)
        outcomes.counts["refused"] += 1
        if not text.isprintable() or not re.search(named, text):
            outcomes.faults.append(f"{name}: a message that names nothing: {text[:300]!r}")
    except _TooLongError:
        outcomes.counts["fault"] += 1
        outcomes.faults.append(f"{name}: no end after {SECONDS} s")
    except Exception:
        outcomes.counts["fault"] += 1
        outcomes.faults.append(f"{name}: {traceback.format_exc(limit=-6)}")


@contextlib.contextmanager
def warnings_of(logger: str) -> Iterator[list[str]]:
    """The warnings of a logger, and nothing on the console."""
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())
    log = logging.getLogger(logger)
    propagate, log.propagate = log.propagate, False
    log.addHandler(handler)
    try:
        yield found
    finally:
        log.removeHandler(handler)
        log.propagate = propagate


# ---- annotations -------------------------------------------------------------------------------------


def annotation_content(folder: Path) -> dict:
    """Three images with objects of every kind."""
    images, annotations = [], []
    for i in range(3):
        name = f"{i}.png"
        if not (folder / name).exists():
            Image.new("RGB", (64, 48), (90, 90, 90)).save(folder / name)
        images.append({"id": i + 1, "file_name": name, "width": 64, "height": 48})
        for k in range(3):
            x, y, w, h = 4 + 9 * k, 5 + 3 * i, 12 + k, 10 + i
            annotations.append({
                "id": len(annotations) + 1, "image_id": i + 1, "category_id": k % 2 + 1, "bbox": [x, y, w, h],
                "area": w * h, "iscrowd": int(i == 2 and k == 2), "ignore": 0,
                "segmentation": [[x, y, x + w, y, x + w, y + h]], "keypoints": [x, y, 2],
            })  # fmt: skip
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    return {"info": {"year": 2020}, "images": images, "annotations": annotations, "categories": categories}


def annotations(count: int, seed: int = 0, first: int = 0) -> Outcomes:
    """Annotation files. Of one that is taken every annotation is an object as the file has it, or counted."""
    outcomes = Outcomes()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        content = annotation_content(folder)
        for number in range(first, first + count):
            rng = random.Random(f"annotations {seed} {number}")
            text = mutation.json_text(rng, content)
            path = folder / "a.json"
            path.write_bytes(text)
            extras = rng.random() < 0.3
            attempt = partial(_annotation_file, path, folder, extras)
            judge(outcomes, f"annotations {number}", attempt, r"a\.json|\.png")
            coco._parsed.clear()
    return outcomes


def _annotation_file(path, folder, extras):
    with warnings_of("ga_scope.data.dataset") as said:
        dataset = load_coco_json(path, folder, "a.json", extras)
    for i in range(len(dataset)):
        record = dataset[i]
        for annotation in record["annotations"]:
            x, y, w, h = annotation["bbox"]
            right = w > 0 and h > 0 and 0 <= x and 0 <= y and x + w <= record["width"] and y + h <= record["height"]
            assert right and 0 <= annotation["category_id"] < len(dataset.classes), record
    if extras:
        dataset.outlined()
    content = path.read_bytes()
    with contextlib.suppress(UnicodeDecodeError):  # in a text that nobody asks for
        content = content.decode(json.detect_encoding(content), "surrogatepass")
    text = content if isinstance(content, str) else content.decode(errors="replace")
    given = json.loads(text).get("annotations") or []
    table = dataset.annotations
    left_out = sum(int(n) for n in re.findall(r"(\d+) with [^;]*\(left out\)", " ".join(said)))
    assert int(table.usable.sum()) + left_out == len(given), (int(table.usable.sum()), len(given), said)
    # What is taken has the box that the file gives it, whatever stands around it.
    boxes = {tuple(float(v) for v in a["bbox"]) for a in given if isinstance(a, dict) and _four(a.get("bbox"))}
    assert all(tuple(box) in boxes for box in table.boxes[table.usable].tolist()), "another box than the file's"
    return "cleaned" if said else "used"


def _four(box):
    return isinstance(box, list) and len(box) == 4 and all(type(v) in (int, float) for v in box)


# ---- images ------------------------------------------------------------------------------------------

MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F", "I"]
KINDS = {
    "png": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"], "jpg": ["L", "RGB", "CMYK"], "bmp": ["1", "L", "P", "RGB"],
    "tif": MODES, "webp": ["RGB", "RGBA"], "gif": ["L", "P"], "jp2": ["L", "RGB"], "ppm": ["L", "RGB"],
}  # fmt: skip


def images(count: int, seed: int = 0, first: int = 0) -> Outcomes:
    """Image files: whatever is read is of the size that was said, and what is no image is named."""
    outcomes = Outcomes()
    with tempfile.TemporaryDirectory() as name:
        for number in range(first, first + count):
            rng = random.Random(f"images {seed} {number}")
            path, intact = _image_file(rng, Path(name))
            judge(outcomes, f"images {number}", partial(_image, path, intact), re.escape(path.name))
            path.unlink()
    return outcomes


def _image_file(rng, folder):
    """A file; and its upright pixels where it was only dressed otherwise."""
    kind = rng.choice(list(KINDS))
    mode = rng.choice(KINDS[kind])
    size = rng.choice([(1, 1), (1, 300), (64, 48), (17, 33), (200, 3)])
    noise = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    if mode == "I;16":
        image = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    elif mode in "FI":
        image = image.convert("L").convert(mode)
    else:
        image = image.quantize(8) if mode == "P" else image.convert(mode)
    exif = Image.Exif()
    orientation = rng.choice([None, 1, 3, 6, 8, 0, 9, "6", 6.0, -1, 2**15])
    options = {}
    if orientation is not None and kind in ("png", "jpg", "webp", "tif"):
        exif[0x0112] = orientation
        with contextlib.suppress(Exception):  # a value that cannot even be written
            options["exif"] = exif.tobytes()
    path = folder / f"x{rng.randrange(10**6)}.{rng.choice(list(KINDS)) if rng.random() < 0.1 else kind}"
    file = io.BytesIO()
    try:
        image.save(file, {"jpg": "JPEG", "tif": "TIFF", "jp2": "JPEG2000"}.get(kind, kind.upper()), **options)
    except Exception:
        file = io.BytesIO()
        image.save(file, {"jpg": "JPEG", "tif": "TIFF", "jp2": "JPEG2000"}.get(kind, kind.upper()))
    content = file.getvalue()
    intact = rng.random() < 0.2
    if not intact:
        for _ in range(rng.choice([1, 1, 3])):
            # The header is where most can go wrong.
            head = content[:200]
            content = mutation.data(rng, head) + content[200:] if rng.random() < 0.5 else mutation.data(rng, content)
    path.write_bytes(content)
    return path, intact and mode not in "FI" and kind in ("png", "bmp", "tif", "gif", "ppm")


def _image(path, intact):
    record = image_record(path)
    image = read_image(record)
    assert image.mode == "RGB" and image.size == (record["width"], record["height"])
    if intact:
        with Image.open(path) as file:
            pixels = np.asarray(file)
        if pixels.ndim == 3 and pixels.shape[2] == 3 and file.mode == "RGB" and not file.getexif():
            assert np.array_equal(np.asarray(image), pixels)
    return "used as it is" if intact else "used"


# ---- checkpoints -------------------------------------------------------------------------------------


def small_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Conv2d(8, 4, 1))


def tensors(model):
    return model.state_dict(keep_vars=True)


def checkpoints(count: int, seed: int = 0, first: int = 0) -> Outcomes:
    """Checkpoints: what loads strictly has the weights that were saved, bit by bit."""
    outcomes = Outcomes()
    cfg = get_engine("torchvision").setup(ROOT / "configs/shapes/rpn_R_18_FPN.yaml", ["MODEL.DEVICE", "cpu"])
    with tempfile.TemporaryDirectory() as name, warnings_of("ga_scope.engines.checkpoint"):
        folder = Path(name)
        whole = Checkpointer(cfg, small_model(), tensors, folder, ["a"]).save("m")
        content = torch.load(whole, weights_only=True)
        saved = {key: value.clone() for key, value in content["model"].items()}
        for number in range(first, first + count):
            rng = random.Random(f"checkpoints {seed} {number}")
            path = _checkpoint_file(rng, folder, whole.read_bytes(), content)
            judge(outcomes, f"checkpoints {number}", partial(_checkpoint, cfg, path, saved), re.escape(path.name))
    return outcomes


def _checkpoint_file(rng, folder, whole: bytes, content: dict) -> Path:
    kind = rng.randrange(5)
    if kind == 0:  # truncated
        path, text = folder / "cut.pth", whole[: rng.randrange(len(whole))]
    elif kind == 1:
        path, text = folder / "altered.pth", mutation.data(rng, whole)
    elif kind == 2:  # one of the archive's members
        path, file = folder / "member.pth", io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(whole)) as source, zipfile.ZipFile(file, "w") as target:
            members = source.infolist()
            chosen = rng.choice(members)
            for member in members:
                part = source.read(member)
                target.writestr(member.filename, mutation.data(rng, part) if member is chosen else part)
        text = file.getvalue()
    else:  # other content
        path, file = folder / ("other.pth" if kind == 3 else "other.pkl"), io.BytesIO()
        other = _other_content(rng, content)
        if kind == 3:
            torch.save(other, file, _use_new_zipfile_serialization=rng.random() < 0.7)
            text = file.getvalue()
        else:
            arrays = other
            if isinstance(other, dict) and isinstance(other.get("model"), dict):
                model = {k: np.asarray(v) if isinstance(v, torch.Tensor) and not v.is_sparse else v
                         for k, v in other["model"].items()}  # fmt: skip
                arrays = other | {"model": model, "__author__": "x"}
            text = pickle.dumps(arrays, rng.randrange(6))
            text = mutation.data(rng, text) if rng.random() < 0.3 else text
    path.write_bytes(text)
    return path


def _other_content(rng, content):
    model = dict(content["model"])
    name = rng.choice(list(model))
    old = model[name]
    changes = [
        lambda: model.pop(name),
        lambda: model.update({name + "x": model.pop(name)}),
        lambda: model.update({name: old.reshape(-1)[: max(old.numel() // 2, 1)]}),
        lambda: model.update({name: old.double()}),
        lambda: model.update({name: old.to(torch.complex64)}),
        lambda: model.update({name: torch.full_like(old.float(), float(rng.choice(["nan", "inf"])))}),
        lambda: model.update({name: old[None].expand(3, *old.shape)}),
        lambda: model.update({name: rng.choice([None, 1, "x", [], {}, 2.5])}),
        lambda: model.update({rng.choice([1, None, (1,), 2.5]): old}),
        lambda: model.update({name: old.to_sparse()}),
        lambda: model.clear(),
        lambda: None,
    ]
    rng.choice(changes)()
    other = dict(content) | {"model": model}
    if rng.random() < 0.3:
        key = rng.choice(["model", "ga_scope", "iteration", "state_dict", "x"])
        other[key] = mutation.value(rng, other.get(key, 1))
    if rng.random() < 0.2 and isinstance(other.get("ga_scope"), dict):
        other["ga_scope"] = mutation.tree(rng, other["ga_scope"])
    return rng.choice([other, other, other, other, other["model"], [other], mutation.value(rng, 1)])


def _checkpoint(cfg, path, saved):
    model = small_model()
    with torch.no_grad():
        for value in model.state_dict().values():
            value.zero_()
    found = Checkpointer(cfg, model, tensors).load(path)
    now = model.state_dict()
    if path.name not in ("member.pth", "other.pkl"):  # where the checksum is right, or there is none
        assert all(torch.equal(now[key], value) for key, value in saved.items()), "other weights than were saved"
    assert isinstance(found, dict) and read_checkpoint(str(path))
    return "used"


# ---- configurations ----------------------------------------------------------------------------------


def configurations(count: int, seed: int = 0, first: int = 0, engine: str = "torchvision", train_every=1) -> Outcomes:
    """Configuration files and overrides: each trains a step and is evaluated, or is refused by the name of a key."""
    outcomes = Outcomes()
    bases = sorted((ROOT / "configs/shapes").glob("[!B]*.yaml"))
    bases = [path for path in bases if not re.search("fast_rcnn|finetune", path.name)]
    with tempfile.TemporaryDirectory() as name, _no_checkpoints():
        folder = Path(name)
        (folder / "a.json").write_text(json.dumps(annotation_content(folder)))
        for number in range(first, first + count):
            rng = random.Random(f"configurations {seed} {number}")
            base = rng.choice(bases)
            path, overrides, mutated = _configuration(rng, base, folder)
            keys = r"\w+\.\w+|" + "|".join(("overrides", "SEED", "OUTPUT_DIR", "VERSION", re.escape(path.name)))
            said = f"configurations {number} ({base.name}: {mutated})"
            judge(outcomes, said[:800], partial(_train, engine, path, overrides, number % train_every == 0), keys)
    return outcomes


TINY = {
    "DATALOADER.NUM_WORKERS": 0, "MODEL.DEVICE": "cpu",
    "INPUT.MIN_SIZE_TRAIN": (64,), "INPUT.MAX_SIZE_TRAIN": 64, "INPUT.MIN_SIZE_TEST": 64, "INPUT.MAX_SIZE_TEST": 64,
    "SOLVER.IMS_PER_BATCH": 1, "SOLVER.MAX_ITER": 1, "SOLVER.WARMUP_ITERS": 1, "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 8, "MODEL.ROI_HEADS.NUM_CLASSES": 2,
    "MODEL.RETINANET.NUM_CLASSES": 2, "MODEL.SCOPENET.NUM_CLASSES": 2, "MODEL.RETINANET.NUM_CONVS": 1,
    "MODEL.SCOPENET.NUM_CONVS": 1, "SEED": 1,
}  # fmt: skip


_known: dict = {}


def _configuration(rng, base: Path, folder: Path):
    """A file that builds on ``base``, and overrides; some of it mutated."""
    settings = TINY | {
        "DATASETS.REGISTER": [[folder.name, str(folder / "a.json"), str(folder)]],
        "DATASETS.TRAIN": (folder.name,),
        "DATASETS.TEST": (folder.name,),
        "OUTPUT_DIR": str(folder / "out"),
    }
    tiny = folder / f"tiny_{base.name}"
    if not tiny.exists():
        tiny.write_text(yaml.safe_dump(_nested(settings) | {"_BASE_": str(base)}))
        (folder / "whole.yaml").write_text(f"_BASE_: {tiny.name}\nVERSION: 2\n")
        _known[tiny] = get_engine("torchvision").setup(folder / "whole.yaml")
    cfg, mutated = _known[tiny], {}
    names = [name for name in flat(cfg) if name in SCHEMA.keys]
    if rng.random() < 0.9:
        names = [name for name in names if SCHEMA.is_read(cfg, name)]
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        name = rng.choice(names)
        choices = SCHEMA.keys[name].check.choices
        if choices and rng.random() < 0.5:
            mutated[name] = rng.choice(choices)
        elif rng.random() < 0.7:
            mutated[name] = mutation.scaled(rng, get(cfg, name))
        else:
            mutated[name] = mutation.value(rng, get(cfg, name))
    path, in_file = folder / "c.yaml", rng.random() < 0.5
    nested = {"_BASE_": tiny.name} | _nested(mutated if in_file else {})
    if rng.random() < 0.05:
        nested = mutation.tree(rng, nested)
    text = yaml.safe_dump(_plain(nested), allow_unicode=True).encode()
    path.write_bytes(mutation.data(rng, text) if rng.random() < 0.1 else text)
    overrides = {} if in_file else mutated
    return path, [p for k, v in overrides.items() for p in (k, v if isinstance(v, str) else repr(v))], mutated


def _nested(settings: dict) -> dict:
    found: dict = {}
    for name, value in settings.items():
        node = found
        *parts, last = name.split(".")
        for part in parts:
            node = node.setdefault(part, {})
        node[last] = _plain(value)
    return found


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


@contextlib.contextmanager
def _no_checkpoints():
    """Weights of forty megabytes are not written for every input."""
    save, Checkpointer.save = Checkpointer.save, lambda self, name, **more: self.folder / name
    try:
        yield
    finally:
        Checkpointer.save = save


def _train(engine, path, overrides, train):
    engine = get_engine(engine)
    quiet = io.StringIO()

    def command():
        cfg = engine.setup(path, overrides)
        if train:
            engine.train(cfg)

    with warnings_of("ga_scope"), contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        try:
            end_well(command)
        except SystemExit as end:  # the line that a user sees
            raise InputError(str(end.code)) from end
    return "trained" if train else "read"
