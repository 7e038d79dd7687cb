"""What ``--data`` names: arrays in a file, or a folder of pictures."""

import pathlib
import zipfile
from typing import TYPE_CHECKING

from tfkit.errors import ArgumentError

if TYPE_CHECKING:
    import keras
    import numpy as np

MOST_SAMPLES = 128  # as many as an export uses
PICTURES = {".bmp", ".gif", ".jpeg", ".jpg", ".png"}
_MODES = {1: "grayscale", 3: "rgb", 4: "rgba"}


def read_arrays(
    path: pathlib.Path, names: list[str] | None = None, *, most: int = MOST_SAMPLES, targets: bool = True
) -> "list[np.ndarray]":
    """Reads a `.npy` or `.npz` file, an array an input, as many samples as are used.

    Args:
        path: The file.
        names: The model's inputs; an archive that has them all is read in their order. Otherwise, and
            without names, its arrays are taken in the archive's order.
        most: Samples at most, the first ones.
        targets: Whether an array `y` of an archive counts as any other.

    Raises:
        ArgumentError: If it is no such file, holds objects, or arrays whose counts differ.
    """
    import numpy as np

    try:
        loaded = np.load(path, allow_pickle=False, mmap_mode="r" if path.suffix == ".npy" else None)
        if isinstance(loaded, np.ndarray):
            arrays = [loaded]
        else:
            with loaded:
                order = names if names and set(names) <= set(loaded.files) else loaded.files
                order = [name for name in order if targets or name != "y"]
                arrays = [loaded[name] for name in order]
        if not all(isinstance(array, np.ndarray) for array in arrays):
            raise ValueError("it is an archive of other files")
        arrays = [np.array(array[:most]) for array in arrays]
    except (OSError, ValueError, IndexError, EOFError, zipfile.BadZipFile) as error:
        raise ArgumentError(
            "`--data` must be a .npy or .npz file of numbers, samples first, or a folder of pictures. "
            f"Received: {str(path)!r} ({type(error).__name__}: {error})."
        ) from error
    counts = [len(array) for array in arrays]
    if not counts or 0 in counts or len(set(counts)) > 1 or any(a.dtype.kind not in "biuf" for a in arrays):
        raise ArgumentError(
            "`--data` must hold numbers, at least one sample, as many for each input. "
            f"Received: {str(path)!r} with arrays of "
            f"{', '.join(f'{array.dtype} {array.shape}' for array in arrays) or 'nothing'}."
        )
    return arrays


def read_data(
    path: pathlib.Path,
    model: "keras.Model",
    input_shape: tuple[int | None, ...] | None,
    *,
    most: int = MOST_SAMPLES,
    fits: bool = False,
) -> "tuple[list[np.ndarray], str]":
    """Reads samples for a model.

    Args:
        path: A `.npy` or `.npz` file, or a folder of pictures, flat or in subfolders.
        model: The model.
        input_shape: Sizes that the model leaves open.
        most: Samples at most; of pictures, evenly from the whole folder.
        fits: Whether to check the arrays' shapes, and to leave an array `y`, the targets, out.

    Returns:
        One array for each input, and what was read in words.

    Raises:
        ArgumentError: If there is nothing to read, or it does not fit the model.
    """
    import numpy as np

    inputs = getattr(model, "inputs", None) or []
    if not path.is_dir():
        arrays = read_arrays(path, [each.name for each in inputs], most=most, targets=not fits)
        if fits and inputs:
            _require_fit(path, arrays, [tuple(each.shape[1:]) for each in inputs])
        shapes = ", ".join("x".join(map(str, array.shape[1:])) or "1" for array in arrays)
        return arrays, f"Read {_count(len(arrays[0]), 'sample')} of {shapes} from {path}."
    shape = input_shape or (tuple(inputs[0].shape[1:]) if len(inputs) == 1 else ())
    if len(shape) != 3 or None in shape or shape[2] not in _MODES:
        raise ArgumentError(
            "Pictures are read for a model with one input (height, width, channels), of 1, 3 or 4 channels, "
            f"whose sizes are known. Received: {str(path)!r} for inputs "
            f"{[tuple(each.shape[1:]) for each in inputs]}. Pass --input-shape 224,224,3, or arrays."
        )
    files = sorted(each for each in path.rglob("*") if each.suffix.lower() in PICTURES and each.is_file())
    if not files:
        raise ArgumentError(
            "A folder of data must hold pictures, itself or in subfolders. "
            f"Received: {str(path)!r} with none of {', '.join(sorted(PICTURES))}."
        )
    sizes = tuple(size for size in shape if size is not None)
    count = min(len(files), most)
    chosen = [files[place * len(files) // count] for place in range(count)]  # evenly, of every class
    array = np.stack([_picture(each, sizes) for each in chosen])
    folders = len({each.parent for each in chosen})
    of = f" of {len(files)}" if count < len(files) else ""
    where = f" in {folders} folders" if folders > 1 else ""
    return [array], (
        f"Read {count}{of} {'picture' if len(files) == 1 else 'pictures'}{where} from {path}, "
        f"resized to {shape[0]}x{shape[1]}, values from {array.min():g} to {array.max():g}."
    )


def read_targets(path: pathlib.Path, *, most: int) -> "np.ndarray":
    """Reads the targets, the array `y` of a `.npz` file.

    Raises:
        ArgumentError: If there are none.
    """
    import numpy as np

    found = np.load(path, allow_pickle=False) if path.suffix == ".npz" else {}
    if "y" not in found:
        raise ArgumentError(
            "Targets are the array `y` of a .npz file. "
            f"Received: --data {path}, which has none. Write it by np.savez('train.npz', x=x, y=y)."
        )
    return np.array(found["y"][:most])


def _require_fit(
    path: pathlib.Path, arrays: "list[np.ndarray]", wanted: list[tuple[int | None, ...]]
) -> None:
    got = [each.shape[1:] for each in arrays]
    fits = [len(a) == len(b) and all(x in (None, y) for x, y in zip(a, b)) for a, b in zip(wanted, got)]
    if len(got) != len(wanted) or not all(fits):
        raise ArgumentError(
            f"The data must hold samples shaped like the model's inputs, which are {wanted}. "
            f"Received: --data {path} with samples of shape {got}. Targets are an array `y` in a .npz file."
        )


def _picture(path: pathlib.Path, shape: tuple[int, ...]) -> "np.ndarray":
    """Reads a picture as `keras.utils.image_dataset_from_directory` does: 0 to 255, stretched."""
    import keras

    try:
        picture = keras.utils.load_img(
            path, color_mode=_MODES[shape[2]], target_size=shape[:2], interpolation="bilinear"
        )
    except (OSError, ValueError, SyntaxError) as error:  # Pillow raises all of these on torn files
        raise ArgumentError(
            f"Every picture must be readable. Received: {str(path)!r} ({type(error).__name__}: {error}). "
            "Remove it or mend it."
        ) from error
    return keras.utils.img_to_array(picture, data_format="channels_last", dtype="float32")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
