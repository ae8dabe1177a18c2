"""Proposal files: bit-equal round trips, what is wrong with a file, and no code run from one."""

import os
import pickle

import numpy as np
import pytest
import torch

from ga_scope.data import ProposalWriter, Records, dump_proposals, load_proposals, loaded_proposals, with_proposals
from ga_scope.data.dataset import dataset_of_records
from ga_scope.engines import get_engine
from ga_scope.errors import ConfigError, DatasetError
from ga_scope.modeling.results import ImageResult


def proposals():
    rng = np.random.default_rng(3)
    found = {}
    for image, count in ((7, 5), (11, 0), ("a.jpg", 3)):
        logits = np.sort(rng.normal(size=count).astype(np.float32))[::-1]
        found[image] = (rng.uniform(0, 100, (count, 4)).astype(np.float32), logits)
    return found


def write(path, content):
    with ProposalWriter(path) as file:
        for image, (boxes, logits) in content.items():
            file.add(image, boxes, logits)
    return path


def dataset(*image_ids):
    records = [{"image_id": i, "file_name": f"{i}.jpg", "height": 100, "width": 100} for i in image_ids]
    return dataset_of_records("mine", records, ["thing"])


@pytest.mark.parametrize("suffix", [".npz", ".pkl"])
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy, lambda a: a.tolist()])
def test_round_trip_is_bit_equal(suffix, kind, tmp_path):
    written = proposals()
    path = tmp_path / "new" / f"p{suffix}"
    write(path, {image: [kind(np.ascontiguousarray(a)) for a in arrays] for image, arrays in written.items()})
    read = load_proposals(path)
    assert len(read) == 3
    for image, (boxes, logits) in written.items():
        b, s = read.of(image)
        assert boxes.tobytes() == b.tobytes() and logits.tobytes() == s.tobytes()
        assert b.shape == boxes.shape and b.dtype == s.dtype == np.float32
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".npz", ".pkl"])
def test_nothing_at_all(suffix, tmp_path):
    assert len(load_proposals(write(tmp_path / f"p{suffix}", {}))) == 0
    none = {1: (np.zeros((0, 4)), np.zeros(0))}
    assert load_proposals(write(tmp_path / f"q{suffix}", none)).of(1)[0].shape == (0, 4)


def test_a_dump_that_fails_leaves_the_file_that_was_there(tmp_path):
    path = write(tmp_path / "p.npz", proposals())
    before = path.read_bytes()
    with pytest.raises(KeyError), ProposalWriter(path) as file:
        file.add(1, [[0, 0, 1, 1]], [0.5])
        raise KeyError
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["p.npz"]


def test_dumps_keep_the_best(tmp_path):
    boxes = torch.rand(5, 4)
    results = [ImageResult(proposals=boxes, proposal_logits=torch.arange(5.0, 0, -1)) for _ in range(2)]
    dump_proposals(tmp_path / "p.npz", dataset(3, 4), iter(results), limit=2)
    read = load_proposals(tmp_path / "p.npz")
    assert read.of(4)[0].tolist() == boxes[:2].tolist() and read.of(3)[1].tolist() == [5, 4]
    with pytest.raises(ConfigError, match="MODEL.META_ARCHITECTURE: expected a model that makes proposals"):
        dump_proposals(tmp_path / "q.npz", dataset(3), [ImageResult(boxes=boxes)])
    assert not (tmp_path / "q.npz").exists()


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_nothing_of_a_pickle_is_run(tmp_path):
    """Its arrays are read, whatever else it holds."""
    target, path = tmp_path / "pwned", tmp_path / "p.pkl"
    path.write_bytes(pickle.dumps(Malicious(target)))
    with pytest.raises(DatasetError, match="p.pkl: not a proposal file: expected a dict in detectron2's format, got"):
        load_proposals(path)
    boxes = [np.arange(4, dtype=np.float32)[None]]
    content = {"ids": [7], "boxes": boxes, "objectness_logits": [np.ones(1)], "by": Malicious(target)}
    path.write_bytes(pickle.dumps(content))
    assert load_proposals(path).of(7)[0].tolist() == [[0, 1, 2, 3]]
    path.write_bytes(pickle.dumps(content | {"boxes": Malicious(target)}))
    with pytest.raises(DatasetError, match="p.pkl: not a proposal file: boxes: expected a list, .*, got mkdir"):
        load_proposals(path)
    assert not target.exists()


def test_a_pickle_within_an_npz_is_refused(tmp_path):
    target, path = tmp_path / "pwned", tmp_path / "p.npz"
    arrays = {"counts": np.array([0]), "boxes": np.zeros((0, 4)), "logits": np.zeros(0)}
    np.savez(path, ids=np.array([Malicious(target)], dtype=object), **arrays)
    with pytest.raises(DatasetError, match="p.npz: not a proposal file"):
        load_proposals(path)
    assert not target.exists()


def test_broken_files_are_named(tmp_path):
    path = tmp_path / "p.npz"
    with pytest.raises(DatasetError, match="p.npz: no such proposal file"):
        load_proposals(path)
    whole = write(path, proposals()).read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"no zip"):
        path.write_bytes(content)
        with pytest.raises(DatasetError, match="p.npz: not a proposal file"):
            load_proposals(path)
    np.savez(path, ids=np.array(["1"]), boxes=np.zeros((2, 4)))
    with pytest.raises(DatasetError, match="p.npz: expected arrays ids, counts, boxes, logits, counts, logits missing"):
        load_proposals(path)
    right = {"ids": ["1"], "counts": [2], "boxes": np.zeros((2, 4)), "logits": np.zeros(2)}
    for key, wrong, message in (
        ("counts", [3], "expected 3 boxes and logits of 1 images"),
        ("counts", [-2], "expected -1 boxes and logits of 1 images"),
        ("counts", [2.0], "expected -1 boxes and logits of 1 images"),
        ("counts", [1, 1], "expected 2 boxes and logits of 2 images, .* of 1"),
        ("boxes", np.zeros((2, 5)), r"got \(2, 5\)"),
        ("boxes", np.zeros(8), r"got \(8,\)"),
        ("logits", np.zeros(1), r"got \(2, 4\) and \(1,\)"),
    ):
        np.savez(path, **{k: np.array(v) for k, v in (right | {key: wrong}).items()})
        with pytest.raises(DatasetError, match=f"p.npz: .*{message}"):
            load_proposals(path)
    with pytest.raises(DatasetError, match=r"p.csv: expected a name that ends in .npz or .pkl"):
        ProposalWriter(tmp_path / "p.csv")


def test_every_image_must_have_proposals(tmp_path):
    table = load_proposals(write(tmp_path / "p.npz", proposals()))
    table.check(dataset(7, "a.jpg"))
    with pytest.raises(DatasetError, match=r"p.npz: expected proposals of every image, none of 8.jpg \(1 of 2 missing"):
        table.check(dataset(7, 8))


def test_records_carry_their_proposals(tmp_path):
    """Under detectron2's keys, of the right image, also where some images are left out."""
    table, written = load_proposals(write(tmp_path / "p.npz", proposals())), proposals()
    records = Records([dataset(7, 11), dataset("a.jpg")], [table, table])
    for record, image in zip(records, (7, 11, "a.jpg")):
        assert record["image_id"] == image and record["proposal_bbox_mode"] == 0
        assert np.array_equal(record["proposal_boxes"], written[image][0])
        assert np.array_equal(record["proposal_objectness_logits"], written[image][1])
    given = {"image_id": 1}
    assert with_proposals(given, [[0, 0, 1, 1]], [0.5])["proposal_boxes"].dtype == np.float32 and len(given) == 1


def test_one_file_for_each_dataset(tmp_path):
    """DATASETS.PROPOSAL_FILES_TEST goes by the order of DATASETS.TEST; without MODEL.LOAD_PROPOSALS there are none."""
    cfg = get_engine("torchvision").defaults()
    cfg.MODEL, cfg.DATASETS = type(cfg)(), type(cfg)()
    cfg.MODEL.LOAD_PROPOSALS, cfg.DATASETS.TEST = False, ("a", "b")
    assert loaded_proposals(cfg, "TEST", "b", dataset(7)) is None
    cfg.MODEL.LOAD_PROPOSALS = True
    files = [str(write(tmp_path / f"{i}.npz", {7: (np.full((i, 4), i), np.zeros(i))})) for i in (1, 2)]
    cfg.DATASETS.PROPOSAL_FILES_TEST = tuple(files)
    assert len(loaded_proposals(cfg, "TEST", "b", dataset(7)).of(7)[0]) == 2
    with pytest.raises(DatasetError, match="1.npz: expected proposals of every image, none of 8.jpg"):
        loaded_proposals(cfg, "TEST", "a", dataset(8))


def test_detectron2_1s_pickles(tmp_path):
    """Caffe2's names, any order of the proposals, doubles."""
    boxes = np.array([[0.0, 0, 1, 1], [2, 2, 5, 5]])
    content = {"indexes": [7], "boxes": [boxes], "scores": [np.array([0.1, 0.9])]}
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(content, protocol=2))
    found = load_proposals(tmp_path / "p.pkl").of(7)
    assert found[0].tolist() == boxes[::-1].tolist() and found[1].tolist() == pytest.approx([0.9, 0.1])
    (tmp_path / "q.pkl").write_bytes(pickle.dumps(content | {"bbox_mode": 1}))
    with pytest.raises(DatasetError, match=r"q.pkl: .*bbox_mode: expected 0 \(XYXY_ABS\), got 1"):
        load_proposals(tmp_path / "q.pkl")
