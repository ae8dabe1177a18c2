"""Proposal files: bit-equal round trips, what is wrong with a file, and no code run from one."""

import os
import pickle

import numpy as np
import pytest

from ga_scope.data import add_proposals, load_proposals, proposal_file, save_proposals
from ga_scope.data.coco import DatasetError
from ga_scope.integrations.torchvision.config import get_cfg


def proposals():
    rng = np.random.default_rng(3)
    found = {}
    for image, count in ((7, 5), (11, 0), ("a.jpg", 3)):
        logits = np.sort(rng.normal(size=count).astype(np.float32))[::-1]
        found[image] = (rng.uniform(0, 100, (count, 4)).astype(np.float32), logits)
    return found


@pytest.mark.parametrize("suffix", [".npz", ".pkl"])
def test_round_trip_is_bit_equal(suffix, tmp_path):
    written = proposals()
    path = save_proposals(tmp_path / "new" / f"p{suffix}", written)
    read = load_proposals(path, trust_pickle=suffix == ".pkl")
    assert list(read) == ["7", "11", "a.jpg"]
    for (boxes, logits), (b, s) in zip(written.values(), read.values()):
        assert boxes.tobytes() == b.tobytes() and logits.tobytes() == s.tobytes()
        assert b.shape == boxes.shape and b.dtype == s.dtype == np.float32
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_empty_file(tmp_path):
    assert load_proposals(save_proposals(tmp_path / "p.npz", {})) == {}


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_a_pickle_is_refused_unless_trusted(tmp_path):
    target, path = tmp_path / "pwned", tmp_path / "p.pkl"
    path.write_bytes(pickle.dumps(Malicious(target)))
    with pytest.raises(DatasetError, match=r"p.pkl: expected an .npz file .*DATASETS.TRUST_PROPOSAL_PICKLES True"):
        load_proposals(path)
    assert not target.exists()
    with pytest.raises(DatasetError, match="p.pkl: not a file of proposals"):
        load_proposals(path, trust_pickle=True)
    assert target.exists()  # why it has to be asked for


def test_a_pickle_within_an_npz_is_refused(tmp_path):
    target, path = tmp_path / "pwned", tmp_path / "p.npz"
    arrays = {"counts": np.array([0]), "boxes": np.zeros((0, 4)), "logits": np.zeros(0)}
    np.savez(path, ids=np.array([Malicious(target)], dtype=object), **arrays)
    with pytest.raises(DatasetError, match="p.npz: not a proposal file"):
        load_proposals(path, trust_pickle=True)
    assert not target.exists()


def test_broken_files_are_named(tmp_path):
    path = tmp_path / "p.npz"
    with pytest.raises(DatasetError, match="p.npz: no such proposal file"):
        load_proposals(path)
    whole = save_proposals(path, proposals()).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetError, match="p.npz: not a proposal file"):
        load_proposals(path)
    np.savez(path, ids=np.array(["1"]), boxes=np.zeros((2, 4)))
    with pytest.raises(DatasetError, match="p.npz: expected arrays ids, counts, boxes, logits, counts, logits missing"):
        load_proposals(path)
    np.savez(path, ids=np.array(["1"]), counts=np.array([3]), boxes=np.zeros((2, 4)), logits=np.zeros(2))
    with pytest.raises(DatasetError, match="p.npz: expected 3 boxes and logits of 1 images"):
        load_proposals(path)
    with pytest.raises(DatasetError, match=r"p.csv: expected a name that ends in .npz or .pkl"):
        save_proposals(tmp_path / "p.csv", {})


def test_every_image_must_have_proposals(tmp_path):
    path = save_proposals(tmp_path / "p.npz", proposals())
    records = [{"image_id": 7, "file_name": "7.jpg"}, {"image_id": 8, "file_name": "8.jpg"}]
    assert len(add_proposals(records[:1], path)[0]["proposal_boxes"]) == 5
    with pytest.raises(DatasetError, match=r"p.npz: expected proposals of every image, none of 8.jpg \(1 of 2 missing"):
        add_proposals(records, path)


def test_one_file_for_each_dataset():
    cfg = get_cfg()
    assert proposal_file(cfg, "TEST", "b") is None
    cfg.MODEL.LOAD_PROPOSALS, cfg.DATASETS.TEST = True, ("a", "b")
    cfg.DATASETS.PROPOSAL_FILES_TEST = ("a.npz", "b.npz")
    assert proposal_file(cfg, "TEST", "b") == "b.npz"
    cfg.DATASETS.PROPOSAL_FILES_TEST = ("a.npz",)
    with pytest.raises(DatasetError, match="DATASETS.PROPOSAL_FILES_TEST: expected 2 files.*got 1"):
        proposal_file(cfg, "TEST", "b")
