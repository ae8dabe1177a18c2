"""ga_scope.Detector: one line from a configuration and weights to results."""

import numpy as np
import pytest
import torch
from PIL import Image

import ga_scope
from ga_scope import Detector
from ga_scope.data import image_record, load_dataset
from ga_scope.engines import get_engine
from ga_scope.errors import CheckpointError, ConfigError, DatasetError

from .conftest import ENGINES, config, overrides, photos, random_weights

CLASSES = ["cat", "dog", "bird", "fish", "frog"]


@pytest.fixture(scope="module")
def opts(shapes, tmp_path_factory):
    """Of a Faster R-CNN with much to say, trained on classes of other names than any dataset here has."""
    folder = tmp_path_factory.mktemp("faster")
    more = {"MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.1, "INPUT.MIN_SIZE_TEST": 150, "INPUT.MAX_SIZE_TEST": 200}
    return random_weights("faster_rcnn", overrides(shapes, folder, **more), folder, classes=CLASSES)


@pytest.fixture(scope="module", params=ENGINES)
def detector(request, opts):
    return Detector(config("faster_rcnn"), overrides=opts, engine=request.param)


@pytest.fixture
def photo(shapes):
    return sorted((shapes / "val").glob("*.jpg"))[1]


def assert_same(found, other):
    assert torch.equal(found.boxes, other.boxes) and torch.equal(found.scores, other.scores)
    assert torch.equal(found.classes, other.classes) and torch.equal(found.proposals, other.proposals)


def test_it_is_at_hand():
    assert ga_scope.Detector is Detector and "Detector" in ga_scope.__all__
    with pytest.raises(AttributeError, match="module 'ga_scope' has no attribute 'Detectors'"):
        ga_scope.Detectors  # noqa: B018


def test_every_kind_of_image_gives_the_same(detector, photo):
    """A path as text or Path, PIL's image, an array, a tensor of bytes and one of floats."""
    with Image.open(photo) as file:
        image = file.convert("RGB")
    array = np.array(image)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    expected = detector(photo)
    assert len(expected.boxes) > 3
    for kind in (
        str(photo),
        image,
        array,
        array[:, ::-1][:, ::-1],
        tensor,
        tensor.float() / 255,
        tensor.double() / 255,
    ):
        assert_same(detector(kind), expected)


def test_lists(detector, shapes):
    files = sorted((shapes / "val").glob("*.jpg"))[:3]
    found = detector(files)
    assert isinstance(found, list) and len(found) == 3 and detector([]) == []
    for file, result in zip(files, found):
        assert_same(result, detector(file))
        assert result.record["file_name"] == str(file)
    mixed = detector((files[0], Image.open(files[1]), np.asarray(Image.open(files[2]))))
    for a, b in zip(mixed, found):
        assert_same(a, b)


def test_what_a_result_says(detector, photo):
    """Boxes in pixels of the file, best first, by the names that travelled with the weights."""
    found = detector(photo)
    assert detector.classes == tuple(CLASSES)
    assert found.boxes.shape == (len(found.scores), 4) and found.boxes.device.type == "cpu"
    assert (found.scores.diff() <= 0).all() and found.boxes.min() >= 0 and found.boxes.max() <= 128
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all() and found.boxes[:, 2:].max() > 100
    assert found.names == [CLASSES[label] for label in found.classes.tolist()]
    assert len(found.proposals) == len(found.proposal_logits) > len(found.boxes) / 5
    assert found.anchors == found.locations * 3 and found.guided is None and found.scopes is None


def test_images_of_other_shapes(detector):
    """Grey ones of 8 and 16 bits, with transparency, of one pixel."""
    grey = np.random.default_rng(0).integers(0, 255, (40, 70), dtype=np.uint8)
    expected = detector(np.stack([grey] * 3, 2))
    assert_same(detector(grey), expected)
    assert_same(detector(grey.astype(np.uint16) * 257), expected)
    assert_same(detector(Image.fromarray(grey)), expected)
    assert_same(detector(Image.fromarray(grey.astype(np.uint16) * 257)), expected)
    assert_same(detector(Image.fromarray(grey).convert("RGBA")), expected)
    assert detector(np.zeros((1, 1, 3), dtype=np.uint8)).boxes.shape[1] == 4


def test_an_image_that_exif_turns_is_the_same_as_its_file(detector, photo, tmp_path):
    tags = Image.Exif()
    tags[0x0112] = 6
    with Image.open(photo) as file:
        file.resize((100, 60)).save(tmp_path / "turned.png", exif=tags)
    from_file = detector(tmp_path / "turned.png")
    assert from_file.image.size == (60, 100)
    with Image.open(tmp_path / "turned.png") as image:
        found = detector(image)
    assert found.image.size == (60, 100)
    assert_same(found, from_file)


def test_a_broken_file_that_nobody_has_read_yet_is_named(detector, photo, tmp_path):
    (tmp_path / "a.jpg").write_bytes(photo.read_bytes()[:900])
    with (
        Image.open(tmp_path / "a.jpg") as image,
        pytest.raises(DatasetError, match="image: cannot be read as an image"),
    ):
        detector(image)


@pytest.mark.parametrize(
    "image, message",
    [
        (np.zeros((8, 8, 4), dtype=np.uint8), r"image: expected an array .* got \(8, 8, 4\) of uint8"),
        (np.zeros((3, 8, 8), dtype=np.uint8), r"got \(3, 8, 8\) of uint8"),
        (np.zeros((8, 8, 3)), r"expected an array \(H, W, 3\) of uint8 or \(H, W\) of uint8 or uint16, got .* float64"),
        (np.zeros((8, 8, 3), dtype=np.uint16), r"got \(8, 8, 3\) of uint16"),
        (np.zeros((8, 8), dtype=np.int64), r"got \(8, 8\) of int64"),
        (np.zeros((0, 8, 3), dtype=np.uint8), r"got \(0, 8, 3\) of uint8"),
        (np.zeros(8, dtype=np.uint8), r"got \(8,\) of uint8"),
        (torch.zeros(8, 8, 3), r"image: expected a tensor \(3, H, W\) of uint8 or of floats .* got \(8, 8, 3\)"),
        (torch.zeros(1, 3, 8, 8), r"got \(1, 3, 8, 8\) of torch.float32"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), r"got \(3, 8, 8\) of torch.int64"),
        (torch.full((3, 8, 8), 200.0), r"image: expected floats in \[0, 1\], got others"),
        (torch.full((3, 8, 8), float("nan")), r"image: expected floats in \[0, 1\], got others"),
        (torch.zeros(3, 0, 8), r"image: expected .* got .*\(3, 0, 8\)|got \(0, 8, 3\)"),
        (Image.new("F", (8, 8)), "image: expected pixels of 8 or 16 bits, got floating-point numbers"),
        (Image.new("I", (8, 8)), "image: expected pixels of 8 or 16 bits, got 32-bit integers"),
        (7, "image: expected a path, a PIL image, an array or a tensor, got int"),
        (None, "image: expected a path, a PIL image, an array or a tensor, got NoneType"),
        (b"bytes", "image: expected a path, a PIL image, an array or a tensor, got bytes"),
        ({"file_name": "x.jpg"}, "image: expected a path, .* got dict"),
        ("nowhere.jpg", "nowhere.jpg: no such image"),
        (__file__, "test_detector.py: cannot be read as an image"),
        ("", "cannot be read as an image|no such image"),
    ],
)
def test_wrong_inputs_are_named(image, message, detector):
    for given in (image, [image]):
        with pytest.raises(DatasetError, match=message) as error:
            detector(given)
        assert "\n" not in str(error.value)


def test_streams(detector, shapes):
    """A dataset or dicts, one after the other; in batches of equal images the same results."""
    dataset = load_dataset(f"val_{shapes.parent.name}")
    one, three = list(detector.stream(dataset)), list(detector.stream(dataset, batch_size=3))
    assert len(one) == len(three) == 10
    for index, (a, b) in enumerate(zip(one, three)):
        assert a.record["image_id"] == b.record["image_id"] == dataset[index]["image_id"]
        assert len(a.boxes) == len(b.boxes)
        torch.testing.assert_close(a.boxes, b.boxes, rtol=0, atol=1e-2)
        torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=1e-4)
    (found,) = detector.stream([image_record(dataset[4]["file_name"])])
    assert_same(found, one[4])


def test_pictures(detector, photo):
    """The image with what is sure enough; the image itself stays."""
    found = detector(photo)
    plain, drawn = np.asarray(found.image), np.asarray(found.draw(0.2))
    assert drawn.shape == plain.shape == (128, 128, 3)
    assert (drawn != plain).any() and np.array_equal(found.draw(1.01), plain)
    x1, y1, x2, _ = (int(v) for v in found.boxes[0])
    assert (drawn[y1, x1:x2] != plain[y1, x1:x2]).any()
    array = np.zeros((50, 60, 3), dtype=np.uint8)
    assert detector(array).draw().size == (60, 50) and not array.any()


# ---- names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_names_of_weights_that_do_not_say(engine, shapes, tmp_path, monkeypatch):
    """Those of the dataset to test on; where that is not on this machine numbers; of a proposal network none."""
    opts = random_weights("scopenet", overrides(shapes, tmp_path), tmp_path)
    assert (
        Detector(config("scopenet"), overrides=opts, engine=engine).classes
        == load_dataset(f"val_{shapes.parent.name}").classes
    )
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nowhere"))
    away = [*opts, "DATASETS.TEST", "('coco_2017_val',)"]
    assert Detector(config("scopenet"), overrides=away, engine=engine).classes == ("0", "1", "2", "3", "4")
    rpn = random_weights("rpn", overrides(shapes, tmp_path), tmp_path)
    detector = Detector(config("rpn"), overrides=rpn, engine=engine)
    found = detector(sorted((shapes / "val").glob("*.jpg"))[0])
    assert detector.classes == () and found.names == [] and found.boxes is None and len(found.proposals) > 10
    assert (np.asarray(found.draw()) != np.asarray(found.image)).any()


@pytest.mark.parametrize("engine", ENGINES)
def test_the_dataset_need_not_be_there(engine, shapes, tmp_path, monkeypatch):
    """Names travel with weights that a training wrote, whatever is registered where they are used."""
    from .conftest import run

    run("scopenet", engine, overrides(shapes, tmp_path, **{"SOLVER.MAX_ITER": 1, "DATASETS.TEST": ()}))
    weights = tmp_path / "model_final.pth"
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nowhere"))
    more = ["DATASETS.TRAIN", "('coco_2017_train',)", "DATASETS.TEST", "('coco_2017_val',)", "DATASETS.REGISTER", "[]"]
    detector = Detector(config("scopenet"), weights, ["MODEL.DEVICE", "cpu", *more], engine)
    assert detector.classes == ("rectangle", "ellipse", "triangle", "star", "letter")


# ---- what does not fit -------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_weights_have_to_be_there_and_to_fit(engine, opts, tmp_path):
    name, cpu = config("faster_rcnn"), ["MODEL.DEVICE", "cpu"]
    with pytest.raises(CheckpointError, match="MODEL.WEIGHTS: expected a checkpoint to evaluate, got none"):
        Detector(name, overrides=cpu, engine=engine)
    with pytest.raises(CheckpointError, match="absent.pth: no such checkpoint"):
        Detector(name, tmp_path / "absent.pth", cpu, engine)
    with pytest.raises(CheckpointError, match=r"random.pth: was trained with MODEL.ROI_HEADS.NUM_CLASSES 5, not 7"):
        Detector(name, overrides=[*opts, "MODEL.ROI_HEADS.NUM_CLASSES", "7"], engine=engine)
    with pytest.raises(ConfigError, match="absent.yaml: no such configuration file"):
        Detector("absent.yaml", "x.pth", engine=engine)
    with pytest.raises(ConfigError, match="--engine: expected auto, detectron2, torchvision, got 'jax'"):
        Detector(name, engine="jax")


def test_an_engine_may_be_given_itself(opts, photo):
    engine = get_engine("torchvision")
    detector = Detector(config("faster_rcnn"), overrides=opts, engine=engine)
    assert detector.engine is engine and len(detector(photo).boxes) > 3


@pytest.mark.parametrize("engine", ENGINES)
def test_a_detector_without_a_generator_needs_proposals(engine, shapes, tmp_path, photo):
    files = {f"DATASETS.PROPOSAL_FILES_{split}": ("a.npz",) for split in ("TRAIN", "TEST")}
    opts = random_weights("fast_rcnn", overrides(shapes, tmp_path, **files), tmp_path)
    detector = Detector(config("fast_rcnn"), overrides=opts, engine=engine)
    with pytest.raises(DatasetError, match="expected proposals with the image .*with_proposals.*, got none"):
        detector(photo)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_model_is_left_in_evaluation(engine, opts, photo):
    """And a call changes nothing of it: the same again."""
    detector = Detector(config("faster_rcnn"), overrides=opts, engine=engine)
    before = {k: v.clone() for k, v in detector.model.state_dict().items()}
    assert_same(detector(photo), detector(photo))
    assert not detector.model.training
    assert all(torch.equal(v, before[k]) for k, v in detector.model.state_dict().items())
    assert not detector(photo).boxes.requires_grad


def test_photos_of_a_dataset_are_the_same_as_its_files(detector, shapes):
    for record, file in zip(photos(shapes)[:2], sorted((shapes / "val").glob("*.jpg"))):
        assert_same(next(iter(detector.stream([record]))), detector(file))
