"""Files of unknown origin: pickles of which nothing is run, archives that do not swell, files that are files.

Readers raise InputError without the file's name; who calls them knows what the file was to be, and says so.
"""

import math
import os
import pickle
import stat
import sys
import types
import zipfile
from collections import OrderedDict

import numpy as np
import torch

from .errors import InputError

# What is packed may unpack to so many times its size: floating-point numbers hardly shrink, and a megabyte of zeros
# to the thousandth part.
SWELLING = 50
SMALL = 64 << 20  # bytes that are no harm whatever they come from


def check_file(path):
    """Neither a pipe, of which reading never ends, nor a device, which has no end.

    Raises:
        InputError: it is one. (A file that is not there is the reader's affair.)
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise InputError("expected a file, got a pipe or a device")


def check_archive(path):
    """The members of a zip archive, by what its directory says of them, are no more than the archive can mean.

    Raises:
        InputError: they would fill the memory.
        zipfile.BadZipFile: it is none.
    """
    with zipfile.ZipFile(path) as archive:
        total = sum(member.file_size for member in archive.infolist())
    most = max(SMALL, SWELLING * os.path.getsize(path))
    if total > most:
        raise InputError(f"expected an archive of at most {most} bytes unpacked, got {total}: a zip bomb")


def check_sums(path):
    """The checksums of a zip archive's members are right; torch itself does not look at them.

    Raises:
        InputError: one is not.
    """
    with zipfile.ZipFile(path) as archive:
        altered = archive.testzip()
    if altered:
        raise InputError(f"damaged: {altered} has not the checksum that it was written with")


def check_tensors(tensors, path):
    """Tensors may repeat what is stored once, but not without end: a view of one number can claim any shape.

    Raises:
        InputError: they claim far more than their file, or are of a kind that no weights are.
    """
    for tensor in tensors:
        if tensor.layout != torch.strided or tensor.is_complex() or tensor.is_quantized:
            raise InputError(f"expected tensors of real numbers, got {tensor.dtype}, {tensor.layout}")
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    most = max(SMALL, SWELLING * os.path.getsize(path))
    if total > most:
        raise InputError(f"expected tensors of at most {most} bytes, got {total}")


# ---- pickles ----------------------------------------------------------------------------------------


class Placeholder:
    """Stands for whatever a pickle asks for beside arrays: takes all that unpickling does to it, and does nothing."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __call__(self, *args, **kwargs):
        return Placeholder()

    def __setitem__(self, key, value):
        pass

    def append(self, item):
        pass

    def extend(self, items):
        pass

    def add(self, item):
        pass


class _DType:
    """A dtype that learns its order of bytes after it has been handed out, as pickles have it."""

    def __init__(self, name, *_):
        self._name, self._order = name, "="

    def build(self, state):
        self._order = state[1] if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">") else "="

    def plain(self) -> np.dtype:
        """Numbers and text alone: arrays of objects hold addresses, those of records descriptions of their own."""
        found = np.dtype(self._name) if isinstance(self._name, str) and len(self._name) < 16 else None
        if found is None or found.kind not in "biufcSU":
            raise pickle.UnpicklingError(f"expected arrays of numbers, got one of {found or 'something else'}")
        return found.newbyteorder(self._order)


def _fill(array: np.ndarray, state):
    """What BUILD gives an array: version, shape, dtype, order, bytes."""
    _, shape, dtype, fortran, content = state
    if not all(type(n) is int and n >= 0 for n in shape) or not isinstance(content, (bytes, str)):
        raise pickle.UnpicklingError("expected the bytes of an array")
    array.__setstate__((1, tuple(shape), dtype.plain(), bool(fortran), _bytes(content)))


def _bytes(content) -> bytes:
    return content.encode("latin1") if isinstance(content, str) else content


def _scalar(dtype, content):
    return np.frombuffer(_bytes(content), dtype.plain(), 1)[0]


def _from_buffer(buffer, dtype, shape, order="C"):
    return np.frombuffer(buffer, dtype.plain()).reshape(shape, order=order)


def _encode(text, *_):
    """Bytes, as protocol 2 has them."""
    return text.encode("latin1")


def _tensor(storage, offset, size, stride, *_):
    numbers = [offset, *size, *stride]
    if not isinstance(storage, torch.storage.TypedStorage) or not all(type(n) is int and n >= 0 for n in numbers):
        raise pickle.UnpicklingError("expected a tensor of a storage")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) and last >= storage._size():
        raise pickle.UnpicklingError(f"expected a tensor within its {storage._size()} numbers, got one up to {last}")
    return torch._utils._rebuild_tensor(storage, offset, tuple(size), tuple(stride))


_KNOWN = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
    ("builtins", "bytes"): lambda: b"",  # empty ones, in protocol 2
    ("__builtin__", "bytes"): lambda: b"",
    ("numpy", "dtype"): _DType,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    ("torch._tensor", "_rebuild_from_type_v2"): lambda function, kind, arguments, *_: function(*arguments),
    ("detectron2.structures.boxes", "BoxMode"): int,
}
for _core in ("numpy.core", "numpy._core"):
    _KNOWN[f"{_core}.multiarray", "_reconstruct"] = lambda *_: np.zeros(0)
    _KNOWN[f"{_core}.multiarray", "scalar"] = _scalar
    _KNOWN[f"{_core}.numeric", "_frombuffer"] = _from_buffer


class ArraysAlone(pickle._Unpickler):
    """Builds arrays, tensors, containers, numbers and text; every other class or function becomes a placeholder.

    Of Python's own unpickler this is the one in Python: the one in C reserves what a file's numbers ask for.
    """

    def __init__(self, file, **kwargs):
        super().__init__(file, **kwargs)
        here = file.tell()
        self._left = max(SMALL, SWELLING * file.seek(0, os.SEEK_END))
        file.seek(here)

    def find_class(self, module, name):
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        return type(Placeholder)(name.rpartition(".")[2], (Placeholder,), {"__module__": module})

    def get_extension(self, code):
        raise pickle.UnpicklingError("expected names of classes, got numbers")

    def load_reduce(self):
        super().load_reduce()
        self._left -= sys.getsizeof(self.stack[-1])
        if self._left < 0:
            raise pickle.UnpicklingError("what it makes of its content is far more than the file")

    def load_build(self):
        state, made = self.stack.pop(), self.stack[-1]
        if isinstance(made, _DType):
            made.build(state)
        elif type(made) is np.ndarray:
            _fill(made, state)

    dispatch = pickle._Unpickler.dispatch | {pickle.REDUCE[0]: load_reduce, pickle.BUILD[0]: load_build}


def load_arrays(file, **kwargs):
    """A pickle's arrays and plain containers (:class:`ArraysAlone`); as ``pickle.load``, but nothing is run."""
    return ArraysAlone(file, **kwargs).load()


# What torch.load takes for the module pickle.
PICKLE = types.SimpleNamespace(__name__=__name__, Unpickler=ArraysAlone, load=load_arrays)
