"""Malicious files: what they would run is not run, what they would fill the memory with is not made.

Each reader of a user's files is shown every file that could reach it, in a process whose memory is limited; what would
have been run writes a file, which must not be there.
"""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ga_scope.config.files import read_yaml
from ga_scope.data import load_proposals, open_image
from ga_scope.data.coco import load_coco_json
from ga_scope.data.importers import ImportOptions, import_dataset
from ga_scope.engines import get_engine, mmdetection
from ga_scope.engines.checkpoint import Checkpointer
from ga_scope.engines.weights import read_checkpoint
from ga_scope.errors import ConfigError, InputError
from ga_scope.untrusted import load_arrays

ROOT = Path(__file__).parents[1]
GIGABYTE = 1 << 30


class Evil:
    """Writes a file where it is unpickled."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


class EvilState(dict):
    """The same when its state is set, or its items are."""

    def __init__(self, target):
        super().__init__(a=1)
        self.target = target

    def __reduce__(self):
        return dict, (), {"x": Evil(self.target)}, iter([Evil(self.target)]), iter([("a", Evil(self.target))])


def pickles(target) -> dict[str, bytes]:
    """Pickles by what they try."""
    command = f"touch {target}".encode()
    found = {
        f"call, protocol {protocol}": pickle.dumps({"model": Evil(target), "__author__": "x"}, protocol)
        for protocol in range(6)
    }
    found |= {
        "beside the arrays": pickle.dumps({"model": {"w": np.zeros(3)}, "__author__": Evil(target)}),
        "state and items": pickle.dumps({"blobs": {"w": EvilState(target)}}),
        "the whole": pickle.dumps(Evil(target)),
        "INST": b"(S'" + command + b"'\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\nS'" + command + b"'\no.",
        "STACK_GLOBAL": b"\x8c\x02os\x8c\x06system\x93\x8c" + bytes([len(command)]) + command + b"\x85R.",
        "attribute of an allowed one": b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__class__\x93.",
        "builtins": b"cbuiltins\nexec\n(S'import os; os.system(" + repr(command.decode()).encode() + b")'\ntR.",
        "getattr": b"cbuiltins\ngetattr\n(cos\nsystem\nS'__call__'\ntR(S'" + command + b"'\ntR.",
        "array of objects": pickle.dumps({"w": np.array([Evil(target)], dtype=object)}),
        "extension": b"\x80\x02\x82\x01.",
        "persistent": b"P" + command + b"\n.",
        "function's own": b"cnumpy\ndtype\n}S'__init__'\ncos\nsystem\nsb.",
    }
    return found


def bombs() -> dict[str, bytes]:
    """Pickles of a few bytes that ask for gigabytes."""
    return {
        "memo": b"]r\xff\xff\xff\xff.",
        "bytes": b"\x8e" + struct.pack("<Q", 40 * GIGABYTE) + b"x.",
        "text": b"\x8d" + struct.pack("<Q", 40 * GIGABYTE) + b"x.",
        "frame": b"\x80\x04\x95" + struct.pack("<Q", 40 * GIGABYTE) + b"].",
        "digits": b"I" + b"9" * 100_000 + b"\n.",
        "copies": b"\x80\x02(c_codecs\nencode\nq\x00X" + struct.pack("<I", 1_000_000) + b"x" * 1_000_000
        + b"q\x01" + b"h\x00h\x01\x85R" * 5000 + b"l.",
        "array": pickle.dumps(np.zeros(3)).replace(b"K\x03\x85", b"\x8a\x06\x00\x00\x00\x00\x00\x01\x85"),
    }  # fmt: skip


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "was_run"
    yield path
    assert not path.exists(), "it was run"


def read(path, content: bytes, reader):
    """What a reader makes of a file, or its one line."""
    path.write_bytes(content)
    try:
        return reader(path)
    except InputError as error:
        assert path.name in str(error) and str(error).isprintable(), error
        return None


def test_the_pickles_do_run_elsewhere(tmp_path):
    """Or the tests below could not fail."""
    ran = 0
    for name, content in pickles(tmp_path / "was_run").items():
        (tmp_path / "p.pkl").write_bytes(content)
        code = f"import pickle; pickle.load(open({str(tmp_path / 'p.pkl')!r}, 'rb'))"
        if name in ("call, protocol 4", "INST", "builtins", "array of objects"):
            subprocess.run([sys.executable, "-c", code], capture_output=True)
            ran += (tmp_path / "was_run").exists()
            (tmp_path / "was_run").unlink(missing_ok=True)
    assert ran == 4


READERS = {"weights.pkl": read_checkpoint, "weights.pth": read_checkpoint, "proposals.pkl": load_proposals,
           "proposals.npz": load_proposals, "mmengine.pth": mmdetection.read_checkpoint}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_pickles_run_nothing(name, target, tmp_path):
    for content in pickles(target).values():
        read(tmp_path / name, content, READERS[name])
        assert not target.exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["weights.pth", "mmengine.pth"])
def test_checkpoints_run_nothing(name, zipped, target, tmp_path):
    weights = {"w": torch.ones(3)}
    for content in (
        {"model": {"w": Evil(target)}},
        {"state_dict": weights, "meta": Evil(target)},
        {"model": weights, "optimizer": {"state": EvilState(target)}},
        Evil(target),
        [Evil(target)],
    ):
        file = io.BytesIO()
        torch.save(content, file, _use_new_zipfile_serialization=zipped)
        found = read(tmp_path / name, file.getvalue(), READERS[name])
        if found is not None and "state_dict" in found:
            assert torch.equal(found["state_dict"]["w"], weights["w"])  # what is arrays is read
        assert not target.exists()


def test_arrays_of_every_protocol_are_read():
    arrays = [
        np.arange(6.0).reshape(2, 3), np.arange(6, dtype=">i4"), np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.zeros((0, 4), np.float32), np.array(["ab", "c"]), np.array(True), np.float32(3), np.int64(7),
    ]  # fmt: skip
    for protocol in range(6):
        content = pickle.dumps({"arrays": [*arrays, arrays[0]], "n": 1, "t": ("x", None)}, protocol)
        found, expected = load_arrays(io.BytesIO(content), encoding="latin1"), pickle.loads(content)
        assert (found["n"], found["t"]) == (1, ("x", None)) and found["arrays"][0] is found["arrays"][-1]
        for ours, theirs in zip(found["arrays"], expected["arrays"]):
            assert type(ours) is type(theirs) and ours.dtype == theirs.dtype and np.array_equal(ours, theirs)
            assert np.shape(ours) == np.shape(theirs)


def test_an_altered_checkpoint_is_noticed(tmp_path):
    """torch itself does not look at the checksums that it writes."""
    path = tmp_path / "m.pth"
    torch.save({"model": {"w": torch.arange(1000.0)}}, path)
    content = bytearray(path.read_bytes())
    place = bytes(content).index(struct.pack("<f", 500.0))
    content[place] ^= 1
    path.write_bytes(bytes(content))
    assert not torch.equal(torch.load(path, weights_only=True)["model"]["w"], torch.arange(1000.0))
    for reader in (read_checkpoint, mmdetection.read_checkpoint):
        with pytest.raises(InputError, match=r"m.pth: .*damaged: .*data/0 has not the checksum"):
            reader(path)


@pytest.mark.parametrize(
    "tensor, message",
    [
        (torch.tensor([1.0, float("nan")]), "expected finite numbers, got others in 1 of 1 tensors, .* w:"),
        (torch.ones(3, dtype=torch.complex64), "expected tensors of real numbers, got torch.complex64"),
        (torch.ones(3).to_sparse(), "expected tensors of real numbers, got torch.float32, torch.sparse_coo"),
        (torch.ones(1).expand(1 << 34), "expected tensors of at most .* bytes"),
    ],
)
def test_tensors_that_are_no_weights(tensor, message, tmp_path):
    torch.save({"model": {"w": tensor}}, tmp_path / "m.pth")
    with pytest.raises(InputError, match=f"m.pth: {message}"):
        read_checkpoint(tmp_path / "m.pth")


# ---- yaml --------------------------------------------------------------------------------------------


def yamls(target) -> dict[str, str]:
    command = f'["touch {target}"]'
    nested = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
    )
    return {
        "apply": f"SEED: !!python/object/apply:os.system {command}\n",
        "new": f"SEED: !!python/object/new:os.system {command}\n",
        "base": f"_BASE_: !!python/object/apply:os.system {command}\n",
        "key": f"? !!python/object/apply:os.system {command}\n: 1\n",
        "name": "SEED: !!python/name:os.system\n",
        "module": "SEED: !!python/module:os\n",
        "eval": f'SEED: !!python/object/apply:eval [\'__import__("os").system("touch {target}")\']\n',
        "laughs": nested,
        "laughs of a key": nested + "SEED: *a9\n",
        "cycle": "a: &a [*a]\n",
        "depth": "SEED: " + "[" * 50_000,
        "text": f"OUTPUT_DIR: __import__('os').system('touch {target}')\nX: 1\n",
    }


@pytest.mark.parametrize("engine", ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)])
def test_configurations_run_nothing(engine, target, tmp_path):
    for name, text in yamls(target).items():
        path = tmp_path / "c.yaml"
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"c\.yaml: ") as error:
            get_engine(engine).setup(path)
        assert str(error.value).isprintable() and len(str(error.value)) < 1100, name


def test_overrides_run_nothing(target):
    with pytest.raises(ConfigError, match="SEED: expected a whole number, got "):
        get_engine("torchvision").setup(
            ROOT / "configs/shapes/rpn_R_18_FPN.yaml", ["SEED", f"__import__('os').system('touch {target}')"]
        )


def test_aliases_of_ordinary_size_are_fine(tmp_path):
    (tmp_path / "c.yaml").write_text("A: &a [1, 2]\nB: *a\nC: [*a, *a]\n")
    assert read_yaml(tmp_path / "c.yaml")[1] == {"A": [1, 2], "B": [1, 2], "C": [[1, 2], [1, 2]]}


@pytest.mark.detectron2
def test_detectron2s_own_readers_are_not_reached(target, tmp_path, monkeypatch):
    """They unpickle and run yaml's tags; this project reads the files itself, in that engine, too."""
    import yaml
    from detectron2.checkpoint import detection_checkpoint
    from detectron2.data import build

    def refuse(*args, **kwargs):
        raise AssertionError("detectron2's own reader")

    for module in (detection_checkpoint, build):
        monkeypatch.setattr(module.pickle, "load", refuse)
    monkeypatch.setattr(yaml, "unsafe_load", refuse)
    path = tmp_path / "zoo.pkl"
    engine = get_engine("detectron2")
    cfg = engine.setup(ROOT / "configs/shapes/rpn_R_18_FPN.yaml", ["MODEL.DEVICE", "cpu"])
    model = engine.build(cfg)
    state = {k: v.detach().numpy() for k, v in engine.named_state(model).items()}
    path.write_bytes(pickle.dumps({"model": state, "__author__": "zoo", "more": Evil(target)}))
    Checkpointer(cfg, model, engine.named_state).load(path)


# ---- bombs -------------------------------------------------------------------------------------------


def deflated(path, name: str, size: int):
    """A zip archive of one member of so many zeros, made without holding them."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(name, "w", force_zip64=True) as member,
    ):
        block = bytes(1 << 24)
        for _ in range(size >> 24):
            member.write(block)


def npy(shape, dtype="<f4") -> bytes:
    """An array's header without its content."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


def png(width, height) -> bytes:
    """A picture of a few bytes that says it is as large, all of it one colour."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer, rows = zlib.compressobj(1), b""
    for _ in range(height if width < 20_000 else 500):
        rows += packer.compress(bytes(1 + width))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows + packer.flush()) + chunk(b"IEND", b"")


LIMITED = """
import pathlib, resource, sys, tempfile
import torch
from ga_scope.engines.weights import read_checkpoint
from ga_scope.engines.mmdetection import read_checkpoint as read_mmdetection
from ga_scope.data import load_proposals, open_image, image_record
from ga_scope.data.importers.pictures import read_picture
from ga_scope.config.files import read_yaml
from ga_scope.errors import InputError

with tempfile.NamedTemporaryFile(suffix=".pth") as file:  # what torch imports when it loads its first file
    torch.save({"model": {"w": torch.ones(3)}}, file.name)
    read_checkpoint(file.name), read_mmdetection(file.name)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    readers = {".pkl": [read_checkpoint, load_proposals], ".pth": [read_checkpoint, read_mmdetection],
               ".npz": [load_proposals], ".yaml": [read_yaml]}.get(path.suffix, [open_image, read_picture])
    for reader in readers:
        try:
            reader(path)
            print(path.name, "was read")
        except (InputError, ValueError) as error:
            print(path.name, "refused", len(str(error)), str(error)[:200].replace("\\n", "?"))
print("peak", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


def test_bombs_do_not_fill_the_memory(tmp_path, target):
    folder = tmp_path / "bombs"
    folder.mkdir()
    for name, content in bombs().items():
        (folder / f"{name}.pkl").write_bytes(content)
    deflated(folder / "zeros.npz", "boxes.npy", 1 << 28)
    deflated(folder / "zeros.pth", "zeros/data/0", 1 << 28)
    for shape, name in (((1 << 40,), "long"), ((1 << 31, 1 << 31), "wide"), ((1 << 33, 0), "none")):
        with zipfile.ZipFile(folder / f"{name}.npz", "w") as archive:
            for member in ("ids", "counts", "boxes", "logits"):
                archive.writestr(f"{member}.npy", npy(shape))
    with zipfile.ZipFile(folder / "objects.npz", "w") as archive:
        for member in ("ids", "counts", "boxes", "logits"):
            archive.writestr(f"{member}.npy", npy((1,), "|O") + pickle.dumps([Evil(target)]))
    with tarfile.open(folder / "tar.pth", "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())
    torch.save({"state_dict": {"w": torch.ones(1).expand(1 << 40)}}, folder / "view.pth")
    (folder / "large.png").write_bytes(png(60_000, 60_000))
    (folder / "larger.png").write_bytes(png(10_000, 9_999))  # which Pillow would only warn of
    (folder / "laughs.yaml").write_text(yamls(target)["laughs"])
    bitmap = io.BytesIO()
    Image.new("L", (4, 4)).save(bitmap, "BMP")
    (folder / "claims.bmp").write_bytes(
        bitmap.getvalue()[:18] + struct.pack("<ii", 2**31 - 1, 2**31 - 1) + bitmap.getvalue()[26:]
    )
    script = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) (w) file\nshowpage\n"
    (folder / "script.jpg").write_text(script)  # which Pillow would give to Ghostscript
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", LIMITED, str(folder)], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    *lines, peak = done.stdout.splitlines()
    assert not [line for line in lines if "was read" in line], lines
    assert {line.split()[0].split(".")[0] for line in lines} == {path.stem for path in folder.iterdir()}
    assert all(int(line.split(" refused ")[1].split()[0]) < 1100 for line in lines)
    assert int(peak.split()[1]) < 220, f"{peak} MB"  # any of them is more


def test_pipes_and_devices_are_no_files(tmp_path):
    """Of which reading would not end."""
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    for reader in (
        lambda path: load_coco_json(path, tmp_path), read_yaml, open_image, read_checkpoint, load_proposals,
        mmdetection.read_checkpoint,
    ):  # fmt: skip
        for path in (pipe, Path("/dev/zero")):
            with pytest.raises(InputError, match=f"{path.name}: .*(expected a file, got a pipe or a device|no such)"):
                reader(path)


def test_xml_does_not_swell(tmp_path):
    """Entities within entities in a label of Pascal VOC."""
    entities = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 12))
    (tmp_path / "in").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "in" / "a.jpg")
    (tmp_path / "in" / "a.xml").write_text(
        f'<!DOCTYPE x [<!ENTITY a0 "xxxxxxxxxx">{entities}]><annotation><filename>&a11;</filename></annotation>'
    )
    with pytest.raises(InputError, match="in: no xml file could be read"):
        import_dataset("voc", tmp_path / "in", tmp_path / "out", ImportOptions())


def test_json_of_any_depth_is_refused(tmp_path):
    for text in ("[" * 200_000, '{"images": ' + "[" * 200_000, '{"a":' * 100_000):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(InputError, match=r"a\.json: not a JSON file"):
            load_coco_json(tmp_path / "a.json", tmp_path)
    (tmp_path / "a.json").write_text(json.dumps({"images": 1}))
    with pytest.raises(InputError, match=r"a\.json: expected COCO annotations with a list 'images'"):
        load_coco_json(tmp_path / "a.json", tmp_path)
