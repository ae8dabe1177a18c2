"""A function of tensors as a CUDA graph: one launch instead of hundreds."""

import torch
from torch.utils._pytree import tree_flatten, tree_map

WARM_UP = 3  # calls before the capture, in which libraries choose algorithms and allocate their workspaces


class Replay:
    """What a function does with inputs of fixed sizes, captured once and replayed at every call.

    For inference at batch sizes at which launching the kernels takes longer than running them. The function may
    neither wait for the device nor have results whose size depends on the data: the project's detectors with
    ``fixed_size=True`` are such functions, alone or after a backbone::

        propose = Replay(lambda *inputs: rpn(*inputs, fixed_size=True).proposals, features, image_sizes)
        proposals = propose(features, image_sizes)

    Args:
        function: its results are any nesting of tensors.
        inputs: examples: any nesting of CUDA tensors, whose sizes, strides and dtypes are then fixed. Parameters are
            read at each replay where they lie, so they may change in place, but not be replaced.

    Raises:
        RuntimeError: without a CUDA device, and where the function cannot be captured.
    """

    def __init__(self, function, *inputs):
        self._inputs, self._structure = tree_flatten(tree_map(lambda value: value.detach().clone(), inputs))
        if not all(value.is_cuda for value in self._inputs):
            raise RuntimeError("inputs: expected CUDA tensors, got one of another device")
        inputs = self._structure.unflatten(self._inputs)
        # Autocast's cache of cast weights would be freed after the capture, and the graph would still read it.
        cache = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)
        try:
            with torch.no_grad():
                stream = torch.cuda.Stream()
                stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(stream):
                    for _ in range(WARM_UP):
                        function(*inputs)
                torch.cuda.current_stream().wait_stream(stream)
                self._graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self._graph):
                    self._results = function(*inputs)
        finally:
            torch.set_autocast_cache_enabled(cache)

    def __call__(self, *inputs):
        """The function's results. They lie where the next call will write: clone what is to be kept."""
        values, structure = tree_flatten(inputs)
        if structure != self._structure:
            raise ValueError(f"inputs: expected {self._structure}, got {structure}")
        for number, (own, value) in enumerate(zip(self._inputs, values)):
            if own.shape != value.shape:
                raise ValueError(f"inputs: expected shape {list(own.shape)} at {number}, got {list(value.shape)}")
            own.copy_(value.detach(), non_blocking=True)
        self._graph.replay()
        return self._results
