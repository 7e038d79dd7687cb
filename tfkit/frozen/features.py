"""Features of a data set, computed once and kept in memory or on disk."""

import contextlib
import hashlib
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import keras
import numpy as np
import tensorflow as tf

from tfkit.errors import ArgumentError
from tfkit.frozen.split import NotSplittable

Batch = tuple[Any, Any, Any]
FORWARD_SAMPLES, FORWARD_BYTES = 128, 2**24  # of inputs to compute at once


class Source:
    """A data set that can be gone through more than once.

    Args:
        x: Arrays or tensors in any structure, a tf.data.Dataset or a keras PyDataset.
        y: Targets, where `x` holds none.
        sample_weight: Weights, where `x` holds none.
        batch_size: Samples a batch of arrays.
        shuffle: Whether arrays and a PyDataset are shuffled in training.
        steps: Steps an epoch, from which Keras takes the batch size where there is none.

    Attributes:
        shuffle: Whether the samples come in a new order in every epoch.
        reorders: Whether they do so by themselves.
        batch_size: Samples a training batch of arrays; None where the data has its own batches.

    Raises:
        NotSplittable: If going through it again would give other samples.
        ArgumentError: If targets or weights stand beside a data set.
    """

    def __init__(
        self,
        x: Any,
        y: Any,
        sample_weight: Any,
        batch_size: int | None,
        shuffle: bool,
        steps: int | None = None,
    ):
        self.shuffle = shuffle
        self.reorders = False
        self.batch_size: int | None = None
        self._step = 0
        if isinstance(x, tf.data.Dataset | keras.utils.PyDataset):
            if y is not None or sample_weight is not None:
                raise ArgumentError(
                    "`y` and `sample_weight` must be left out beside a data set, which holds its own. "
                    f"Received: x of type {type(x).__name__} and one of them."
                )
            self._read(x)
            return
        leaves = keras.tree.flatten(x)
        if hasattr(x, "__next__") or not all(leaf is None or hasattr(leaf, "shape") for leaf in leaves):
            raise NotSplittable(f"data of type {type(x).__name__} can be gone through only once")
        if any(
            isinstance(leaf, tf.SparseTensor | tf.RaggedTensor) or hasattr(leaf, "tocsr") for leaf in leaves
        ):
            raise NotSplittable("the data is sparse or ragged")
        arrays = keras.tree.map_structure(
            _as_keras_takes_it, cut((x, y, sample_weight), slice(None)), none_is_leaf=False
        )
        lengths = {len(leaf) for leaf in keras.tree.flatten(arrays) if leaf is not None}
        if len(lengths) != 1 or not (length := lengths.pop()):
            raise NotSplittable("the arrays are empty or of different lengths")
        self.batch_size = self._step = batch_size or (-(-length // steps) if steps else 32)
        self._inputs = arrays[0]
        self._batches: Callable[[], Iterator[Any]] = lambda: (
            cut(arrays, slice(start, start + self._step)) for start in range(0, length, self._step)
        )

    def _read(self, x: tf.data.Dataset | keras.utils.PyDataset) -> None:
        if isinstance(x, tf.data.Dataset):
            if x.cardinality() == tf.data.INFINITE_CARDINALITY:
                raise NotSplittable("the data set has no end")
            self._batches = lambda: iter(x)
            self.shuffle = False  # as Keras: its own order counts
        else:
            if x.num_batches is None:
                raise NotSplittable("the data set has no end")
            if type(x).on_epoch_end is not keras.utils.PyDataset.on_epoch_end:
                raise NotSplittable("the data set changes itself after every epoch")
            self._batches = lambda: (x[number] for number in range(x.num_batches))
        self.reorders = self._changes_order()
        self.shuffle |= self.reorders

    def enlarge(self) -> None:
        """Lets arrays be computed in larger batches than they train in, within reason.

        Without gradients nothing has to be kept, and large batches use the processor better.
        """
        if self.batch_size:
            sample = (
                sum(leaf[:1].nbytes for leaf in keras.tree.flatten(self._inputs) if leaf is not None) or 1
            )
            most = min(FORWARD_SAMPLES, FORWARD_BYTES // sample)
            self._step = self.batch_size * max(1, most // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return map(keras.utils.unpack_x_y_sample_weight, self._batches())

    def _changes_order(self) -> bool:
        """Tells whether the samples come in another order every time; other samples are refused."""
        once, again = ([digest for batch in self for digest in _digests(batch)] for _ in range(2))
        if not once:
            raise NotSplittable("the data set is empty")
        if sorted(once) != sorted(again):
            raise NotSplittable("the data set gives other samples at every pass, as augmentation does")
        return once != again


def cut(arrays: Any, part: slice) -> Any:
    """Returns a part of every array in a structure; None stays None."""
    return keras.tree.map_structure(lambda array: np.asarray(array)[part], arrays, none_is_leaf=False)


def _as_keras_takes_it(array: np.ndarray) -> np.ndarray:
    """Returns floating-point numbers in Keras's default precision, as `fit` does with arrays."""
    wanted = keras.config.floatx()
    if array.dtype == object:  # texts
        return array
    return array.astype(wanted, copy=False) if keras.backend.is_float_dtype(str(array.dtype)) else array


def _digests(batch: Batch) -> list[bytes]:
    """Returns a digest for each sample of a batch."""
    leaves = [np.asarray(leaf) for leaf in keras.tree.flatten(batch) if leaf is not None]
    return [
        hashlib.blake2b(b"".join(_bytes(leaf[row]) for leaf in leaves)).digest()
        for row in range(len(leaves[0]))
    ]


def _bytes(values: Any) -> bytes:
    values = np.asarray(values)
    if values.dtype == object:  # texts, of which NumPy holds only the addresses
        return repr(values.tolist()).encode()
    return np.ascontiguousarray(values).tobytes()


class Storage:
    """Where features are kept: in memory up to a budget, then on disk.

    Args:
        budget: Bytes that may stay in memory.
        directory: Where files go; None for the system's temporary folder.
        lifetime: When it closes, the files are deleted.
    """

    def __init__(
        self, budget: float, directory: str | os.PathLike[str] | None, lifetime: contextlib.ExitStack
    ) -> None:
        self.budget = budget
        self._directory, self._lifetime = directory, lifetime

    def folder(self) -> pathlib.Path:
        made = tempfile.TemporaryDirectory(prefix="tfkit-features-", dir=self._directory)
        return pathlib.Path(self._lifetime.enter_context(made))


class Features:
    """What a frozen part gives for every sample, with the targets, ready for `fit`.

    Args:
        source: The data set.
        compute: Takes a batch of inputs and returns a list of arrays.
        storage: Where to keep them.
        progress: Called after every batch.

    Attributes:
        sizes: The number of samples of each batch.
        leaves: All samples, an array for each feature, target and sample weight.
        shuffle: Whether they are shuffled in every epoch.
        on_disk: Whether they are on disk.
    """

    def __init__(
        self,
        source: Source,
        compute: Callable[[Any], list[Any]],
        storage: Storage,
        progress: Callable[[], None],
    ):
        self.shuffle, self._reorders = source.shuffle, source.reorders
        self.sizes: list[int] = []
        store = _Store(storage)
        for x, y, weight in source:
            features = [np.asarray(feature) for feature in compute(x)]
            rows = len(next(leaf for leaf in keras.tree.flatten(x) if leaf is not None))
            if any(feature.shape[:1] != (rows,) for feature in features):
                raise NotSplittable("a feature has no row of its own for each sample")
            if any(feature.dtype == object for feature in features):
                raise NotSplittable("a feature is text")
            self._structure = (features, y, weight)
            store.append(
                [np.asarray(leaf) for leaf in keras.tree.flatten(self._structure) if leaf is not None]
            )
            self.sizes.append(len(features[0]))
            progress()
        self.leaves = store.finish()
        if size := source.batch_size:  # arrays are computed in larger batches than they train in
            count = sum(self.sizes)
            self.sizes = [min(size, count - start) for start in range(0, count, size)]
        self.on_disk = store.folder is not None

    def training_data(self) -> dict[str, Any]:
        """Returns the arguments of `fit` that stand for the data."""
        size = self.sizes[0]
        if (
            self.on_disk
            or self._reorders
            or any(each != size for each in self.sizes[:-1])
            or self.sizes[-1] > size
            or any(leaf.dtype == "float64" for leaf in self.leaves)  # which `fit` would round
        ):
            return {"x": _Stored(self), "shuffle": False}
        x, y, weight = self.pack(self.leaves)
        return {"x": x, "y": y, "sample_weight": weight, "batch_size": size, "shuffle": self.shuffle}

    def validation_data(self) -> dict[str, Any]:
        """Returns the arguments of `fit` that stand for the validation data."""
        data = self.training_data()
        if isinstance(data["x"], _Stored):
            return {"validation_data": data["x"]}
        given = _without_trailing_none((data["x"], data["y"], data["sample_weight"]))
        batches = tf.data.Dataset.from_tensor_slices(keras.tree.lists_to_tuples(given))
        return {"validation_data": batches.batch(data["batch_size"])}  # begins sooner than Keras's of arrays

    def pack(self, leaves: list[Any]) -> Batch:
        """Returns leaves as features, targets and sample weights."""
        rest = iter(leaves)
        return keras.tree.map_structure(lambda leaf: None if leaf is None else next(rest), self._structure)


class _Store:
    """Arrays that grow by batches."""

    def __init__(self, storage: Storage):
        self.folder: pathlib.Path | None = None
        self._storage = storage
        self._bytes = self._rows = 0
        self._chunks: list[list[np.ndarray]] = []
        self._files: list[BinaryIO] = []

    def append(self, leaves: list[np.ndarray]) -> None:
        if not self._rows:
            self._kinds = [(leaf.dtype, leaf.shape[1:]) for leaf in leaves]
        elif self._kinds != [(leaf.dtype, leaf.shape[1:]) for leaf in leaves]:
            raise NotSplittable("the samples have different shapes")
        self._rows += len(leaves[0])
        self._bytes += sum(leaf.nbytes for leaf in leaves)
        self._chunks.append(leaves)
        if self.folder is None and self._bytes > self._storage.budget:
            self.folder = self._storage.folder()
            self._files = [open(self.folder / f"{place}.bin", "wb") for place in range(len(leaves))]  # noqa: SIM115
        if self.folder is not None:
            for chunk in self._chunks:
                for file, leaf in zip(self._files, chunk, strict=True):
                    file.write(leaf.tobytes())
            self._chunks = []

    def finish(self) -> list[np.ndarray]:
        if self.folder is None:
            self._storage.budget -= self._bytes
            columns = [list(column) for column in zip(*self._chunks, strict=True)]
            self._chunks = []
            return [np.concatenate(columns.pop(0)) for _ in range(len(columns))]
        for file in self._files:
            file.close()
        return [
            np.memmap(self.folder / f"{place}.bin", dtype, "r", shape=(self._rows, *shape))
            for place, (dtype, shape) in enumerate(self._kinds)
        ]


class _Stored(keras.utils.PyDataset):
    """Features on disk, or in batches of different sizes, in their order or shuffled."""

    def __init__(self, features: Features):
        super().__init__()
        self._features = features
        self._ends = np.cumsum(features.sizes)
        self._order = np.arange(self._ends[-1])
        self._mix()

    def _mix(self) -> None:
        if self._features.shuffle:
            np.random.default_rng(np.random.randint(2**31)).shuffle(self._order)  # Keras's seed decides

    def on_epoch_end(self) -> None:
        self._mix()

    @property
    def num_batches(self) -> int:
        return len(self._ends)

    def __getitem__(self, number: int) -> Batch:
        rows = self._order[self._ends[number] - self._features.sizes[number] : self._ends[number]]
        if self._features.shuffle:
            rows = np.sort(rows)  # a batch's own order does not matter, and disks read forwards
        leaves = [np.ascontiguousarray(leaf[rows]) for leaf in self._features.leaves]
        return keras.tree.lists_to_tuples(_without_trailing_none(self._features.pack(leaves)))


def _without_trailing_none(batch: Batch) -> tuple[Any, ...]:
    return batch[: max(place for place, each in enumerate(batch) if each is not None) + 1]
