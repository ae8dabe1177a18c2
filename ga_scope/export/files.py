"""Writes a trained model as one file, with all that must be known to use it."""

import importlib.util
import json
import zipfile
from pathlib import Path

import torch
from torch.export import ExportedProgram

from ..api import Detector
from ..errors import ConfigError
from ..optimize import fold_norms
from .program import SMALLEST, Program, export_program

FORMATS = ("pt2", "aoti", "onnx")
OPSET = 19  # the first with DeformConv
KEY = "ga_scope"  # of the description among a file's metadata


def export(detector: Detector, format: str, path) -> dict:
    """Writes a model of the built-in engine to ``path``; its description (:func:`describe`) goes into the file.

    Args:
        format: ``"pt2"``, a program for ``torch.export.load``; ``"aoti"``, compiled for the machine's processor, for
            ``torch._inductor.aoti_load_package`` or a C++ program; ``"onnx"``, of standard operators.

    Raises:
        ConfigError: the format cannot hold the model, or what writes it is not installed.
    """
    if format not in FORMATS:
        raise ConfigError(f"format: expected {', '.join(FORMATS)}, got {format!r}")
    if format == "aoti" and Path(path).suffix != ".pt2":
        raise ConfigError(f"output: expected a name that ends in .pt2 for an AOTInductor package, got {path}")
    if format == "onnx":
        _needs("onnx", "onnxscript")
    program = Program(fold_norms(detector.model))
    description = describe(detector, program)
    write = {"pt2": write_pt2, "aoti": write_aoti, "onnx": write_onnx}[format]
    write(program, export_program(program), description, Path(path))
    return description


def describe(detector: Detector, program: Program) -> dict:
    """What turns a picture into the program's inputs, and its outputs into names and pixels of the picture.

    The picture, upright, is resized (bilinear, antialiased) so that its shorter side is ``short_side`` (0: not at all),
    unless the longer would exceed ``longest``; in the order of channels ``format``, 0 to 255: the program subtracts the
    mean and divides itself. Then padded, right and below, to multiples of ``stride``; for a program of torch at least
    to ``smallest``.
    """
    inputs, model = detector.cfg.INPUT, program.model
    return {
        "short_side": inputs.MIN_SIZE_TEST,
        "longest": inputs.MAX_SIZE_TEST,
        "format": inputs.FORMAT,
        "stride": program.stride,
        "smallest": SMALLEST * program.stride,
        "mean": model.pixel_mean.flatten().tolist(),
        "std": model.pixel_std.flatten().tolist(),
        "outputs": list(program.outputs),
        "classes": list(detector.classes),
    }


def read_description(path) -> dict:
    """Of a file that :func:`export` wrote.

    Raises:
        ConfigError: the file has none.
    """
    if Path(path).suffix == ".onnx":
        import onnx

        found = {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}
    elif (found := _metadata_of_package(path)) is None:
        found = {KEY: ""}
        torch.export.load(path, extra_files=found)
    if not found.get(KEY):
        raise ConfigError(f"{path}: expected a file that tools/export.py wrote, got one without a description")
    return json.loads(found[KEY])


def _metadata_of_package(path) -> dict | None:
    """Of an AOTInductor package, without loading what it has compiled; None of another file."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as package:
        names = [name for name in package.namelist() if "/aotinductor/" in name and name.endswith("_metadata.json")]
        parts = [json.loads(package.read(name)) for name in names]
    return {key: value for part in parts for key, value in part.items()} if parts else None


def _needs(*modules: str):
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"format onnx: needs {module}, which is not installed: pip install ga_scope[export]")


# ---- formats -----------------------------------------------------------------------------------------


def write_pt2(program: Program, exported: ExportedProgram, description: dict, path: Path):
    torch.export.save(exported, path, extra_files={KEY: json.dumps(description)})


def write_aoti(program: Program, exported: ExportedProgram, description: dict, path: Path):
    from torch._inductor import aoti_compile_and_package

    # And for a C++ program strings, that it needs no more to read than they are: lists line by line.
    lines = {key: "\n".join(map(str, v)) if isinstance(v, list) else str(v) for key, v in description.items()}
    options = {"aot_inductor.metadata": lines | {KEY: json.dumps(description)}}
    aoti_compile_and_package(exported, package_path=str(path), inductor_configs=options)


def write_onnx(program: Program, exported: ExportedProgram, description: dict, path: Path):
    from .onnx_operators import translations

    written = torch.onnx.export(
        exported,
        dynamo=True,
        opset_version=OPSET,
        input_names=["images", "sizes"],
        output_names=list(program.outputs),
        custom_translation_table=translations(program.sparse, max(len(description["classes"]), 1)),
        verbose=False,
    )
    written.model.metadata_props[KEY] = json.dumps(description)
    written.save(path)
