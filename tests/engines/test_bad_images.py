"""DATALOADER.BAD_IMAGES: an image that cannot be read ends a training, or is left out, counted and named."""

import shutil
from types import SimpleNamespace

import pytest

from ga_scope.engines.bad_images import FAULTS, BadImages
from ga_scope.errors import DatasetError

from .conftest import ENGINES, overrides, run


def policy(what="skip", most=3):
    return BadImages(SimpleNamespace(DATALOADER=SimpleNamespace(BAD_IMAGES=what, MAX_BAD_IMAGES=most)))


def mapper(bad):
    def mapped(record):
        if record in bad:
            raise DatasetError(f"{record}.jpg: cannot be read")
        return {"image": record}

    return mapped


def test_the_next_image_takes_its_place():
    images = policy()
    assert images.mapped(mapper({2, 3}), range(6), 1) == {"image": 1}
    found = images.mapped(mapper({2, 3}), range(6), 2)
    assert found == {"image": 4, FAULTS: ["2.jpg: cannot be read", "3.jpg: cannot be read"]}
    assert images.mapped(mapper({5}), range(6), 5)["image"] == 0  # around the end
    with pytest.raises(DatasetError, match="2.jpg: cannot be read"):
        policy("error").mapped(mapper({2}), range(6), 2)


def test_each_is_counted_once_up_to_the_limit(caplog):
    images = policy(most=2)
    for index in (0, 0, 1):
        inputs = [images.mapped(mapper({0, 1, 3}), range(6), index)]
        images.count(inputs)
        assert inputs == [{"image": 2}]  # what a model is given has nothing of it
    images.report(together=False)
    assert "2 images were left out of the training: 0.jpg: cannot be read; 1.jpg: cannot be read" in caplog.text
    with pytest.raises(DatasetError, match=r"MAX_BAD_IMAGES: expected at most 2 .*, got 3; .*: 3.jpg: cannot be read"):
        images.count([images.mapped(mapper({3}), range(6), 3)])
    with pytest.raises(DatasetError, match="MAX_BAD_IMAGES: expected at most 2 images"):
        images.mapped(mapper(set(range(6))), range(6), 0)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_training_with_broken_images(engine, workers, shapes, tmp_path, capsys):
    """Without a word of a traceback where it ends; to its end, and all named, where they are skipped."""
    folder = shutil.copytree(shapes, tmp_path / "shapes")
    broken = [path for i, path in enumerate(sorted((folder / "train").iterdir())) if i % 4]
    for path in broken:
        path.write_bytes(path.read_bytes()[:200])
    more = {"DATALOADER.NUM_WORKERS": workers, "DATASETS.TEST": (), "SOLVER.MAX_ITER": 2, "SEED": 3}
    more |= {"MODEL.FPN.OUT_CHANNELS": 32}
    with pytest.raises(SystemExit) as end:
        run("rpn", engine, overrides(folder, tmp_path / "a", **more))
    line = str(end.value)
    assert line.startswith("DatasetError: ") and "cannot be read as an image" in line and "\n" not in line
    assert any(str(path) in line for path in broken)
    skip = more | {"DATALOADER.BAD_IMAGES": "skip", "DATALOADER.MAX_BAD_IMAGES": 24}
    capsys.readouterr()
    run("rpn", engine, overrides(folder, tmp_path / "b", **skip))
    assert (tmp_path / "b" / "model_final.pth").exists()
    log = tmp_path / "b" / "log.txt"  # detectron2's
    said = "".join(capsys.readouterr()) + (log.read_text() if log.exists() else "")
    final = next(line for line in said.splitlines() if "images were left out of the training" in line)
    assert any(str(path) in final for path in broken) and "cannot be read as an image" in final
    with pytest.raises(SystemExit, match="DatasetError: DATALOADER.MAX_BAD_IMAGES: expected at most 0 images"):
        run("rpn", engine, overrides(folder, tmp_path / "c", **(skip | {"DATALOADER.MAX_BAD_IMAGES": 0})))
