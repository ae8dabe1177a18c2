"""Files that tools/export.py writes, and the programs of examples/ that use them."""

import copy
import importlib.util
import os
import shutil
import subprocess
import sys
import types

import pytest
import torch
import torchvision
from PIL import Image
from torchvision.transforms.v2.functional import resize

import ga_scope.ops._library
from ga_scope import Detector
from ga_scope.data import image_record, read_image
from ga_scope.data.images import resized_shape, to_network
from ga_scope.errors import ConfigError
from ga_scope.export import export, read_description

from ..engines.conftest import ROOT, config, image_size, overrides, random_weights, shapes, tool  # noqa: F401
from .models import CLASSES, MEAN, STD, awake, batch, faster_rcnn, scopenet
from .same import assert_same
from .test_programs import eager

# Locations of a level, and proposals: fewer than a trained model has, and enough to be wrong.
SMALL = {
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.GUIDED_ANCHORING.LOCATION.THRESHOLD": 0.0,
    "MODEL.GUIDED_ANCHORING.LOCATION.TOPK_TEST": 40,
    "MODEL.ROI_HEADS.PROPOSALS_PER_IMAGE": 50,
    "INPUT.FORMAT": "BGR",
    **image_size(160),
}
NAMES = ["disc", "cross", "ring", "star", "triangle"]


@pytest.fixture(scope="module")
def options(shapes, tmp_path_factory):  # noqa: F811
    """Of a GA-Faster R-CNN with random weights, and with names of its classes."""
    folder = tmp_path_factory.mktemp("exported")
    return random_weights("ga_faster_rcnn", overrides(shapes, folder, **SMALL), folder, classes=NAMES)


@pytest.fixture(scope="module")
def pictures(shapes):  # noqa: F811
    return sorted((shapes / "val").iterdir())[:3]


def write(format, path, options):
    tool("export").main(
        ["--config-file", config("ga_faster_rcnn"), "--format", format, "--output", str(path), *options]
    )


def padded(parts):
    """One image's boxes, scores and class numbers as a batch."""
    return [*(torch.as_tensor(part)[None] for part in parts), torch.tensor([len(parts[0])])]


def expected(options, picture):
    found = Detector(config("ga_faster_rcnn"), overrides=options, engine="torchvision")(picture)
    assert len(found.boxes) > 3
    return padded([found.boxes, found.scores, found.classes])


def as_batch(lines):
    """Of (name, score, box) each."""
    names, scores, boxes = zip(*lines)
    return padded([torch.tensor(boxes), torch.tensor(scores), torch.tensor([NAMES.index(name) for name in names])])


def test_onnx_and_its_example(options, pictures, tmp_path):
    """The example needs none of this project and no torch, and gives the detector's boxes."""
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (the extra 'export')")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed (the extra 'export')")
    path = tmp_path / "model.onnx"
    write("onnx", path, options)
    description = read_description(path)
    assert description["classes"] == NAMES and description["format"] == "BGR" and description["short_side"] == 160
    specification = importlib.util.spec_from_file_location("onnx_predict", ROOT / "examples" / "onnx_predict.py")
    example = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(example)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for picture, size in zip(pictures, ((128, 128), (300, 170), (90, 200))):
        image = Image.open(picture).convert("RGB").resize(size)
        assert_same(as_batch(example.predict(session, image)), expected(options, image))
    blocked = "import sys; sys.modules.update(dict.fromkeys(['torch', 'ga_scope', 'torchvision']));"
    code = f"{blocked} import runpy; runpy.run_path('onnx_predict.py', run_name='__main__')"
    command = [sys.executable, "-c", code, path, pictures[0], "0"]
    printed = subprocess.run(command, cwd=ROOT / "examples", capture_output=True, text=True, check=True).stdout
    assert len(printed.splitlines()) == len(expected(options, str(pictures[0]))[0][0])


@pytest.mark.long
def test_a_program_of_torch_and_its_description(tmp_path):
    """Read back in a process that knows the operators alone; more images than it was written with."""
    model, path = awake(scopenet()), tmp_path / "model.pt2"
    inputs = types.SimpleNamespace(MIN_SIZE_TEST=160, MAX_SIZE_TEST=320, FORMAT="RGB")
    detector = types.SimpleNamespace(model=model, cfg=types.SimpleNamespace(INPUT=inputs), classes=("a", "b", "c"))
    assert (
        export(detector, "pt2", path)
        == read_description(path)
        == {
            "short_side": 160,
            "longest": 320,
            "format": "RGB",
            "stride": 32,
            "smallest": 160,
            "mean": list(MEAN),
            "std": list(STD),
            "outputs": ["boxes", "scores", "classes", "count"],
            "classes": ["a", "b", "c"],
        }
    )
    pixels, sizes = batch(3, 192, 256)
    torch.save([pixels, sizes], tmp_path / "inputs.pth")
    code = "import torch, ga_scope.ops; model = torch.export.load('model.pt2').module(); "
    code += "torch.save(list(model(*torch.load('inputs.pth'))), 'outputs.pth')"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, env=environment)
    found = torch.load(tmp_path / "outputs.pth")
    assert_same(found, eager(model, pixels, sizes, ["boxes", "scores", "classes", "count"]))


@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")
def test_a_compiled_package_in_a_program_without_python(pictures, tmp_path):
    """A GA-Faster R-CNN, and with it this project's operators and torchvision's ROIAlign, in examples/cpp."""
    model, path = awake(faster_rcnn()), tmp_path / "model.pt2"
    inputs = types.SimpleNamespace(MIN_SIZE_TEST=160, MAX_SIZE_TEST=250, FORMAT="BGR")
    names = NAMES[:CLASSES]
    detector = types.SimpleNamespace(model=copy.deepcopy(model), cfg=types.SimpleNamespace(INPUT=inputs), classes=names)
    assert export(detector, "aoti", path) == read_description(path)
    build = tmp_path / "build"
    configure = ["cmake", "-S", ROOT / "examples" / "cpp", "-B", build, f"-DTORCH={os.path.dirname(torch.__file__)}"]
    for command in (configure, ["cmake", "--build", build]):
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
    folder = os.path.dirname(torchvision.__file__)
    library = next(name for name in sorted(os.listdir(folder)) if name.startswith("_C"))
    for picture, size in zip(pictures, ((128, 128), (300, 170), (90, 200))):
        ppm = tmp_path / "picture.ppm"
        Image.open(picture).convert("RGB").resize(size).save(ppm)
        command = [build / "predict", path, ppm, "0", ga_scope.ops._library.LIBRARY, os.path.join(folder, library)]
        environment = {**os.environ, "LD_DEBUG": "files"}  # the loader names every library on stderr
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert result.returncode == 0, result.stderr[-2000:]
        assert "lib/libtorch_cpu" in result.stderr  # torch's; of Python neither its library nor torch's for it
        assert "libpython" not in result.stderr and "lib/libtorch_python" not in result.stderr
        rows = [line.split() for line in result.stdout.splitlines()]
        found = as_batch([(row[0], float(row[1]), [float(side) for side in row[2:]]) for row in rows])

        # Resized by torch, which differs from Pillow by one level in some pixels.
        image = read_image(image_record(ppm))
        height, width = resized_shape(image.height, image.width, 160, 250)
        pixels = torch.from_numpy(to_network(image, image.height, image.width, "BGR"))
        pixels = resize(pixels, [height, width], antialias=True).float()
        sizes, outputs = torch.tensor([[height, width]]), ["boxes", "scores", "classes", "count"]
        boxes, scores, classes, count = eager(model, pixels[None], sizes, outputs)
        boxes = boxes * torch.tensor([image.width / width, image.height / height] * 2)
        assert_same(found, [part[:, : count[0]] for part in (boxes, scores, classes)] + [count])


def test_what_cannot_be_written(options, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"output: expected a name that ends in .pt2 for an AOTInductor package"):
        write("aoti", tmp_path / "model.so", options)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"format onnx: needs onnx, which is not installed: pip install ga_scope"):
        export(types.SimpleNamespace(), "onnx", tmp_path / "model.onnx")
    with pytest.raises(ConfigError, match="format: expected pt2, aoti, onnx, got 'tflite'"):
        export(types.SimpleNamespace(), "tflite", tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())


def test_a_file_without_a_description(tmp_path):
    torch.export.save(torch.export.export(torch.nn.ReLU(), (torch.zeros(1),)), tmp_path / "other.pt2")
    with pytest.raises(ConfigError, match=r"other\.pt2: expected a file that tools/export\.py wrote"):
        read_description(tmp_path / "other.pt2")
