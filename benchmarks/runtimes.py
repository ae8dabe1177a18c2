"""Models as ONNX files in ONNX Runtime and OpenVINO, with torch's number of threads.

For benchmarks alone: ``pip install 'ga_scope[bench]'``. A runtime that is not installed is named and left out.
"""

import functools
import importlib.util
import re
import warnings
from pathlib import Path

import torch

from ga_scope.errors import ConfigError


def onnx_runtime(path):
    """A function of the model's inputs, as arrays in their order, to a list of arrays."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    return lambda *inputs: session.run(None, dict(zip(names, inputs, strict=True)))


def openvino(path):
    """Likewise.

    Raises:
        ConfigError: OpenVINO lacks an operator: it has no DeformConv.
    """
    from openvino import Core, convert_model
    from openvino.frontend import OpConversionFailure

    try:
        model = convert_model(path)
    except OpConversionFailure as error:
        missing = re.findall(r"No conversion rule found for operations: (.+)", str(error))
        raise ConfigError(f"OpenVINO: has no {', '.join(missing) or error}") from error
    compiled = Core().compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": torch.get_num_threads()})
    return lambda *inputs: [*compiled(list(inputs)).values()]


RUNTIMES = {"ONNX Runtime": ("onnxruntime", onnx_runtime), "OpenVINO": ("openvino", openvino)}


def installed():
    """Name of a runtime to what opens a file with it."""
    found = {}
    for name, (package, opened) in RUNTIMES.items():
        if importlib.util.find_spec(package) is None:
            print(f"{name}: left out, as {package} is not installed: pip install 'ga_scope[bench]'")
        else:
            found[name] = opened
    return found


def of_torchvision(detector, image, folder):
    """A detector of torchvision for images of this size: name of a runtime to a function without arguments.

    Written by tracing, the only way that it can be: torch.export refuses its sizes, which depend on the data.
    """
    path = Path(folder) / "torchvision.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(detector, ([image],), path, dynamo=False, opset_version=17)
    return {name: functools.partial(opened(path), image.numpy()) for name, opened in installed().items()}
