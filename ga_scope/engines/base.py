"""What an engine is: one way of building, training and running the project's models."""

import contextlib
import itertools
import logging
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as LoaderDataset
from tqdm import tqdm

from ..config import class_key, get, load_config
from ..data import Dataset, Records, check_classes, load_dataset, loaded_proposals, read_image, register_datasets
from ..data.images import resized_shape, to_network
from ..errors import CheckpointError, ConfigError, DatasetError
from ..evaluation import Evaluation, write_detections, write_text
from ..modeling.results import ImageResult, Results, image_results
from . import processes
from .checkpoint import Checkpointer, classes_of
from .solver import parameter_groups
from .trainer import Trainer

logger = logging.getLogger(__name__)


class Batch(NamedTuple):
    """What a model says of a batch."""

    results: Results
    sizes: list[tuple[int, int]]  # (height, width) of the images in the network, without padding
    outputs: list | None = None  # the framework's own, for its own evaluators


class Loaded(NamedTuple):
    """A model with its weights."""

    model: nn.Module
    classes: list[str] | None  # that travelled with them


class TestMapper:
    """A dataset dict to a model's input.

    ``image`` (3, H, W) uint8 in INPUT.FORMAT; ``height`` and ``width`` of the file; ``proposals``, boxes (K, 4) in
    pixels of the input and logits (K,), where the dict has some.
    """

    def __init__(self, cfg):
        self.short_side, self.longest = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
        self.format = cfg.INPUT.FORMAT
        self.proposals = cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST if cfg.MODEL.LOAD_PROPOSALS else 0

    def __call__(self, record: dict) -> dict:
        image = read_image(record)
        height, width = resized_shape(record["height"], record["width"], self.short_side, self.longest)
        found = {key: record[key] for key in ("file_name", "image_id", "height", "width")}
        found["image"] = torch.from_numpy(to_network(image, height, width, self.format))
        if self.proposals:
            found["proposals"] = self._proposals(record, height, width)
        return found

    def _proposals(self, record, height, width):
        if "proposal_boxes" not in record:
            raise DatasetError(
                f"{record['file_name']}: expected proposals with the image (ga_scope.data.with_proposals), got none"
            )
        factor = torch.tensor([width / record["width"], height / record["height"]]).repeat(2)
        boxes = torch.as_tensor(record["proposal_boxes"]) * factor
        boxes = boxes.clamp(min=0).minimum(torch.tensor([width, height] * 2, dtype=boxes.dtype))
        kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
        logits = torch.as_tensor(record["proposal_objectness_logits"])
        return boxes[kept][: self.proposals], logits[kept][: self.proposals]


class _Mapped(LoaderDataset):
    """Records through a mapper; those of this process where there are several."""

    def __init__(self, records, mapper):
        self.records, self.mapper = records, mapper
        self.indices = range(processes.rank(), len(records), processes.world())

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, index):
        return self.mapper(self.records[self.indices[index]])


def output_folder(cfg) -> Path:
    """OUTPUT_DIR, which is made where it is missing.

    Raises:
        ConfigError: it cannot be, or not be written to: said before a training, and not at its first checkpoint.
    """
    path = Path(cfg.OUTPUT_DIR)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # the latter of a name with a zero byte
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"OUTPUT_DIR: expected a folder, got {path}: {why}") from None
    try:
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"to see whether there is room")
    except OSError as error:
        raise ConfigError(f"OUTPUT_DIR: expected a folder to write to, got {path}: {error.strerror}") from None
    return path


class Engine(ABC):
    """The interface that train_net.py, the tools and :class:`ga_scope.Detector` use."""

    name: str
    builtin: bool

    # ---- what an implementation has -------------------------------------------------------------

    @abstractmethod
    def defaults(self):
        """A configuration node with the framework's defaults."""

    @abstractmethod
    def build(self, cfg) -> nn.Module:
        """The model of a configuration, on its device, with fresh weights."""

    @abstractmethod
    def named_state(self, model: nn.Module) -> dict:
        """The model's own tensors, by detectron2's names."""

    @abstractmethod
    def run(self, model: nn.Module, inputs: list[dict], maps: bool = False) -> Batch:
        """The model on inputs of :class:`TestMapper`; with what the results come from where ``maps`` are wanted."""

    @abstractmethod
    def mapper(self, cfg) -> Callable[[dict], dict]:
        """From a dataset dict to an input of a training, augmented with numbers of the global generators."""

    @abstractmethod
    def losses(self, model: nn.Module, inputs: list[dict], iteration: int) -> dict[str, Tensor]:
        """Of a model in training, which may be wrapped for several processes."""

    # ---- what an implementation may have --------------------------------------------------------

    carried: tuple[str, ...] = ()  # numbers that modules keep of the batches they saw, and no state_dict has

    def carried_state(self, model: nn.Module) -> dict[str, float | Tensor]:
        return {
            f"{name}:{key}": value
            for name, module in model.named_modules()
            for key in self.carried
            if isinstance(value := getattr(module, key, None), (float, Tensor))
        }

    def carry(self, model: nn.Module, state: dict[str, float | Tensor]):
        """Sets what :meth:`carried_state` gave."""
        modules = dict(model.named_modules())
        for place, value in state.items():
            name, _, key = place.rpartition(":")
            setattr(modules[name], key, value)

    def parameter_groups(self, cfg, model: nn.Module) -> list[dict]:
        """For the optimizer."""
        return parameter_groups(cfg, model)

    @contextlib.contextmanager
    def training(self, start: int) -> Iterator[None]:
        """Around the steps of a training."""
        yield

    def scalars(self) -> dict[str, float]:
        """What the framework has to say of the steps, for TensorBoard."""
        return {}

    def begin(self, cfg, config_file: str, eval_only: bool):
        """Before anything else of a run: logging, the configuration in OUTPUT_DIR, seeds."""
        level = logging.INFO if processes.rank() == 0 else logging.ERROR
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("[%(asctime)s] %(message)s", "%H:%M:%S"))
        log = logging.getLogger("ga_scope")  # the root's handlers are the program's that calls this
        log.handlers = [handler]
        log.setLevel(level)
        if processes.rank() == 0:
            write_text(output_folder(cfg) / "config.yaml", cfg.dump())

    def launch(self, function: Callable, args):
        """``function(args)`` in the processes that the command line, or torchrun's environment, asks for."""
        if processes.under_torchrun():
            self.join()
            try:
                return function(args)
            finally:
                torch.distributed.destroy_process_group()
        processes.check_arguments(args)
        if args.num_gpus * args.num_machines == 1:
            return function(args)
        return processes.launch(function, args, self.start)

    start = staticmethod(processes.start)

    def join(self):
        """Of a process that torchrun started."""
        numbers = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        processes.join(*numbers)

    # ---- training -------------------------------------------------------------------------------

    def train(self, cfg, resume: bool = False) -> dict[str, dict[str, float]]:
        """Trains to SOLVER.MAX_ITER and returns the last metrics per dataset of DATASETS.TEST."""
        output_folder(cfg)
        records = self.training_records(cfg)
        classes = records.datasets[0].classes if class_key(cfg) else None
        return Trainer(self, cfg, records, classes, resume or processes.restarted()).train()

    # ---- configuration, data, weights -----------------------------------------------------------

    unknown_key = ""  # what a message on an unknown key ends with

    def setup(self, config_file, overrides=()):
        """The configuration of a yaml and overrides, checked; the datasets that it registers are known from then on.

        Raises:
            ConfigError, DatasetError: naming the file or the key.
        """
        cfg = load_config(self.defaults(), config_file, overrides, self.builtin, self.unknown_key)
        register_datasets(cfg.DATASETS.REGISTER)
        return cfg

    def find_dataset(self, name: str, extras: bool) -> Dataset:
        """A dataset by name, with outlines and keypoints if ``extras``."""
        return load_dataset(name, extras)

    def dataset(self, name: str, cfg) -> Dataset:
        """A dataset by name that has as many classes as the model."""
        found = self.find_dataset(name, cfg.MODEL.MASK_ON or cfg.MODEL.KEYPOINT_ON)
        key = class_key(cfg)
        if key and get(cfg, key) != len(found.classes):
            raise DatasetError(f"{key}: expected {len(found.classes)}, the categories of {name}, got {get(cfg, key)}")
        return found

    def training_sets(self, cfg) -> list[Dataset]:
        """Of DATASETS.TRAIN, checked to have the same classes, as those of DATASETS.TEST."""
        if not cfg.DATASETS.TRAIN:
            raise DatasetError("DATASETS.TRAIN: expected at least one dataset, got none")
        found = [self.dataset(name, cfg) for name in cfg.DATASETS.TRAIN]
        for dataset in found:
            if not dataset.annotated:
                raise DatasetError(f"{dataset.source}: expected COCO annotations with a list 'annotations' to train on")
        tested = self.test_sets(cfg)
        if class_key(cfg):
            check_classes(found, tested)
        return found

    def test_sets(self, cfg) -> list[Dataset]:
        """Of DATASETS.TEST; looked at before training, and not after hours of it."""
        found = []
        for name in cfg.DATASETS.TEST:
            found.append(self.dataset(name, cfg))
            loaded_proposals(cfg, "TEST", name, found[-1])
        return found

    def training_records(self, cfg) -> Records:
        """The images of DATASETS.TRAIN, with proposals if MODEL.LOAD_PROPOSALS, that there is something to learn of."""
        datasets = self.training_sets(cfg)
        tables = [loaded_proposals(cfg, "TRAIN", name, d) for name, d in zip(cfg.DATASETS.TRAIN, datasets)]
        if cfg.MODEL.MASK_ON:
            datasets = [dataset.outlined() for dataset in datasets]
        records = Records(
            datasets, tables if cfg.MODEL.LOAD_PROPOSALS else None, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        )
        if not len(records):
            raise DatasetError(f"DATASETS.TRAIN: no image of {', '.join(cfg.DATASETS.TRAIN)} has a usable annotation")
        return records

    def load(self, cfg) -> Loaded:
        """The model with MODEL.WEIGHTS, every parameter of it, in evaluation.

        Raises:
            CheckpointError: naming the file.
        """
        if not cfg.MODEL.WEIGHTS:
            raise CheckpointError("MODEL.WEIGHTS: expected a checkpoint to evaluate, got none")
        model = self.build(cfg)
        content = Checkpointer(cfg, model, self.named_state).load(cfg.MODEL.WEIGHTS)
        return Loaded(model.eval(), classes_of(content))

    # ---- inference ------------------------------------------------------------------------------

    def inputs(self, cfg, records, batch_size: int = 1) -> DataLoader:
        """Batches of inputs for :meth:`infer`; of several processes each has its share of the records."""
        return DataLoader(
            _Mapped(records, TestMapper(cfg)),
            batch_size=batch_size,
            num_workers=min(cfg.DATALOADER.NUM_WORKERS, max(len(records) - 1, 0)),
            collate_fn=list,
            worker_init_fn=processes.in_worker,
        )

    def infer(self, model: nn.Module, inputs: list[dict], maps: bool = False, precision: str = "float32") -> Batch:
        """The results of a batch, in evaluation and without gradients; the model is left as it was.

        ``precision`` is TEST.PRECISION.
        """
        training, device = model.training, next(model.parameters()).device.type
        model.eval()
        try:
            dtype = getattr(torch, precision)
            with torch.no_grad(), torch.autocast(device, dtype, enabled=dtype != torch.float32):
                return self.run(model, inputs, maps)
        finally:
            model.train(training)

    def predict(
        self, cfg, model: nn.Module, records, batch_size: int = 1, maps: bool = False
    ) -> Iterator[tuple[dict, ImageResult]]:
        """Every input and the results of its image, in order.

        Of several processes each takes its share of the images, and all get all results, with inputs that have no
        pixels.
        """
        loader = iter(self.inputs(cfg, records, batch_size))
        share = -(-len(records) // processes.world())
        for _ in range(-(-share // batch_size)):
            inputs = next(loader, [])  # a process's share may have an image less
            found = []
            if inputs:
                results = self.infer(model, inputs, maps, cfg.TEST.PRECISION)
                found = list(zip(inputs, self.image_results(inputs, results)))
            if processes.world() > 1:
                keys = ("file_name", "image_id", "height", "width")
                of_all = processes.of_all([({key: x[key] for key in keys}, result) for x, result in found])
                found = [pair for together in itertools.zip_longest(*of_all) for pair in together if pair]
            yield from found

    @staticmethod
    def image_results(inputs: list[dict], batch: Batch) -> list[ImageResult]:
        return image_results(batch.results, batch.sizes, [(x["height"], x["width"]) for x in inputs])

    def evaluators(self, cfg, name: str) -> list:
        """The framework's own of a dataset, for what only it has (masks, keypoints)."""
        return []

    def evaluate(self, cfg, model: nn.Module, classes=None) -> dict[str, dict[str, float]]:
        """The metrics of every dataset of DATASETS.TEST, by its name; writes its detections to OUTPUT_DIR.

        ``classes`` are those that the model's weights were trained with, where they are known.
        """
        found = {}
        for name, dataset in zip(cfg.DATASETS.TEST, self.test_sets(cfg)):
            if classes is not None and class_key(cfg) and tuple(classes) != dataset.classes:
                raise CheckpointError(
                    f"{cfg.MODEL.WEIGHTS or cfg.OUTPUT_DIR}: was trained on the classes {', '.join(classes)}; {name} "
                    f"has {', '.join(dataset.classes)}"
                )
            table = loaded_proposals(cfg, "TEST", name, dataset)
            records = Records([dataset], None if table is None else [table])
            evaluation = Evaluation(dataset, cfg.TEST.DETECTIONS_PER_IMAGE)
            others = self.evaluators(cfg, name)
            for other in others:
                other.reset()
            progress = tqdm(total=len(records), desc=name, mininterval=5, disable=processes.rank() > 0)
            for inputs in self.inputs(cfg, records):
                batch = self.infer(model, inputs, precision=cfg.TEST.PRECISION)
                for x, result in zip(inputs, self.image_results(inputs, batch)):
                    evaluation.add(x["image_id"], result)
                for other in others:
                    other.process(inputs, batch.outputs)
                progress.update(len(inputs) * processes.world())
            progress.close()
            evaluation.merge(processes.of_all(evaluation.results))
            found[name] = evaluation.metrics()
            for other in others:
                for task, values in (other.evaluate() or {}).items():
                    found[name] |= {f"{task}/{key}": value / 100 for key, value in values.items()}
            if class_key(cfg) and processes.rank() == 0:
                write_detections(cfg.OUTPUT_DIR, name, evaluation.detections(), len(cfg.DATASETS.TEST) == 1)
        return found
