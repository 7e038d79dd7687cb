"""The main job: can a pretrained denoiser learn a new kind of picture, and get small?

A convolutional encoder–decoder is pretrained to denoise one of scikit-learn's two
photographs and adapted to the other under stronger noise. Then the adapted model is
pruned to 80% zeros and exported for devices. Pictures are judged on a part of the new
photograph that nothing was trained or chosen on.

    python experiments/quickstart.py                                   about 2 minutes, two cores
    python experiments/quickstart.py --quick                           under a minute
    python experiments/quickstart.py --model my.keras --images DIR     your own

Writes one folder: report.html, results.json, the search, and the artifacts. Seeded: two
runs on one machine differ by rounding only.

Expected (seed 0): noisy input about 15.5 dB, zero-shot about 20, adapted at least 26.5;
80% sparse at most 0.3 dB below the dense model; int8 at most 0.5 dB below float32 and at
most 1/3.5 of its size; float32 within 1e-5 of Keras.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import resource
import sys
import time
from importlib import metadata

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's start-up notes hide the table

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from rich.console import Console

import tfkit
from tfkit.report import html, measure, plots


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides the outcome.

    Attributes:
        seed: Seeds weights, noise, shuffling and the search.
        filters: Channels of the encoder's layers.
        patch: Side of the square training patches, in pixels.
        tile: Side of the square pictures that are judged and that artifacts take.
        pretrain_noise: Standard deviation of the noise in pretraining; white is 1.
        noise: The same for the new pictures.
        pretrain_epochs: Epochs on the first photograph.
        compare_epochs: Epochs for each choice of layers.
        trials: Trials of the search.
        trial_epochs: Epochs of each trial.
        tune_epochs: Epochs of the fine-tune with warmup and cosine.
        prune_epochs: Epochs of pruning; the sparsity rises over the first half.
        sparsity: Fraction of zeros in every kernel but the first and the last, at the end.
        runs: Rounds of the latency measurement.
    """

    seed: int = 0
    filters: tuple[int, ...] = (16, 32, 64, 96)
    patch: int = 64
    tile: int = 192
    pretrain_noise: float = 0.1
    noise: float = 0.19
    pretrain_epochs: int = 10
    compare_epochs: int = 8
    trials: int = 6
    trial_epochs: int = 4
    tune_epochs: int = 24
    prune_epochs: int = 24
    sparsity: float = 0.8
    runs: int = 50


QUICK = Config(
    pretrain_epochs=4, compare_epochs=2, trials=2, trial_epochs=1, tune_epochs=4, prune_epochs=4, runs=10
)
BATCH = 8


@dataclasses.dataclass(frozen=True)
class Pictures:
    """One kind of pictures, cut into parts that share no pixel.

    Attributes:
        train: Clean patches ``(n, patch, patch, 3)`` from the left of each picture.
        validation: Clean patches from the middle.
        test: Clean tiles ``(n, tile, tile, 3)`` from the right.
        calibration: Clean tiles from the left, for what artifacts must see.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    calibration: np.ndarray


def main(arguments: list[str] | None = None) -> int:
    """Runs the job and returns the process's exit code."""
    options = _options(arguments)
    config = QUICK if options.quick else Config()
    config = dataclasses.replace(config, seed=options.seed)
    try:
        Job(config, options.output, options.model, options.images).run()
    except tfkit.TfkitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


class Job:
    """The main job, a stage a method; each stage leaves a row in the table."""

    def __init__(self, config: Config, output: pathlib.Path, model: str | None, images: str | None):
        self.config = config
        self.output = output
        self.console = Console()
        self.start = time.perf_counter()
        self.rows: list[dict] = []
        self.histories: dict[str, dict[str, list[float]]] = {}
        keras.utils.set_random_seed(config.seed)
        self.given = tfkit.models.load_base_model(model) if model else None
        side = self.given.input_shape[1] if self.given is not None else None
        if side:  # a model of fixed size sees pictures of that size
            self.config = config = dataclasses.replace(config, patch=side, tile=side)
        china, flower = _photographs()
        self.old = _cut([china], config)
        self.new = _cut(_read_folder(images), config) if images else _cut([flower], config)
        self.noisy_test = _add_noise(self.new.test, config.noise, seed=1)
        self.validation = (_add_noise(self.new.validation, config.noise, seed=2), self.new.validation)
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise tfkit.OutputPathError(
                f"--output must be a folder. Received: {output} ({error})."
            ) from error

    def run(self) -> None:
        self._row("noisy input", self.noisy_test)
        base = self.pretrain()
        self._row("zero-shot", self._denoise(base), base)
        layers = self.choose_layers(base)
        tuned = self.tune(base, layers)
        dense = self._export(tuned, "dense")
        pruned = self.prune(tuned)
        sparse = self._export(pruned, "pruned")
        self._latency({**dense, **sparse})
        self._finish(layers, sparse)

    def pretrain(self) -> keras.Model:
        """Stage 1: a denoiser of the old photograph, or the model that was given."""
        if self.given is not None:
            return self.given
        model = tfkit.models.build_encoder_decoder(
            (None, None, 3), filters=self.config.filters, output_channels=3, residual=True, name="denoiser"
        )
        self._compile(model, 2e-3)
        self._fit("pretrain", model, self.old.train, self.config.pretrain_noise, self.config.pretrain_epochs)
        return model

    def choose_layers(self, base: keras.Model) -> list[str]:
        """Stage 2: is it enough to train the top decoder layers, or must all layers learn?"""
        top = tfkit.layer_table(base).path.iloc[-2:].tolist()
        scores = {}
        for name, layers in (("top decoder layers", top), ("all layers", ["*"])):
            model = self._copy(base)
            tfkit.configure_base_model(model, layers)
            self._compile(model, 1e-3)
            self._fit(name, model, self.new.train, self.config.noise, self.config.compare_epochs)
            scores[tuple(layers)] = model.evaluate(*self.validation, verbose=0)
            self._row(f"adapted: {name}", self._denoise(model), model)
        return list(min(scores, key=scores.get))

    def tune(self, base: keras.Model, layers: list[str]) -> keras.Model:
        """Stage 3: search the rate and the decay, then fine-tune with warmup and cosine."""
        config = self.config

        def build() -> keras.Model:
            model = self._copy(base)
            tfkit.configure_base_model(model, layers)
            return self._compile(model, 1e-3)

        result = tfkit.search(
            build,
            self._stream(self.new.train, config.noise),
            validation_data=self.validation,
            space=tfkit.SearchSpace(learning_rate=(3e-4, 1e-2), weight_decay=(1e-4, 1e-1)),
            max_trials=config.trials,
            epochs=config.trial_epochs,
            directory=self.output / "search",
            seed=config.seed,
            overwrite=True,
        )
        result.plot(self.output / "search.png")
        model = build()
        self._compile(model, result.best.learning_rate, result.best.weight_decay)
        self._fit_curve("fine-tune", model, result.best.learning_rate, config.tune_epochs)
        self._row("fine-tuned", self._denoise(model), model)
        self.best = result.best
        return model

    def prune(self, model: keras.Model) -> keras.Model:
        """Stage 4: raise the zeros to 80% while the model goes on learning, then strip."""
        config = self.config
        model = self._copy(model)
        steps = config.prune_epochs * self._steps(self.new.train)
        schedule = tfkit.PolynomialDecay(
            initial_sparsity=0.3,
            final_sparsity=config.sparsity,
            begin_step=1,
            end_step=steps // 2,
            frequency=4,
        )
        first, *_, last = tfkit.layer_table(model).path  # 0.4% of the weights, and the ones that see pixels
        tfkit.prune_low_magnitude(model, schedule, layers=["*", f"!{first}", f"!{last}"])
        self._compile(model, self.best.learning_rate, self.best.weight_decay)
        self._fit_curve(
            "prune", model, self.best.learning_rate, config.prune_epochs, tfkit.UpdatePruningStep()
        )
        tfkit.strip_pruning(model)
        name = f"pruned {config.sparsity:.0%}"
        self._row(name, self._denoise(model), model)
        model.save(self.output / "pruned.keras")
        return model

    def _export(self, model: keras.Model, name: str) -> dict[str, tfkit.Artifact]:
        """Stage 5: artifacts, each proven against Keras before it gets its name."""
        data = _add_noise(self.new.calibration, self.config.noise, seed=3)
        size = (self.config.tile, self.config.tile, 3)
        artifacts = {}
        if name == "dense":
            precisions = ("float32",)
        else:
            precisions = ("float32", "float16", "int8")
            path = self.output / f"{name}_saved_model"
            artifacts[f"{name}, SavedModel"] = tfkit.export_saved_model(model, path, representative_data=data)
        for precision in precisions:
            artifacts[f"{name}, {precision}"] = tfkit.export_tflite(
                model,
                self.output / f"{name}_{precision}.tflite",
                precision=precision,
                representative_data=data,
                input_shape=size,
            )
        for label, artifact in artifacts.items():
            self._row(label, artifact.predict(self.noisy_test), model, artifact)
        return artifacts

    def _latency(self, artifacts: dict[str, tfkit.Artifact]) -> None:
        """Stage 6: latency and sizes of all artifacts, their runs interleaved."""
        table = tfkit.benchmark(artifacts, runs=self.config.runs, x=self.noisy_test[:1])
        for measured in table.to_dict("records"):
            row = next(row for row in self.rows if row["stage"] == measured["name"])
            row |= {key: measured[key] for key in ("latency_ms", "size_bytes", "gzip_bytes")}

    def _finish(self, layers: list[str], artifacts: dict[str, tfkit.Artifact]) -> None:
        """Stage 7: results.json and report.html."""
        outputs = {row["stage"]: row.pop("output") for row in self.rows}
        table = pd.DataFrame(self.rows)
        best = {name: float(self.best[name]) for name in ("learning_rate", "weight_decay", "score")}
        results = {
            "config": dataclasses.asdict(self.config),
            "versions": _versions(),
            "trained_layers": layers,
            "search": best,
            "stages": json.loads(table.to_json(orient="records")),
            "parity": {label: dataclasses.asdict(each.parity) for label, each in artifacts.items()},
            "seconds": round(time.perf_counter() - self.start, 1),
            "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        }
        (self.output / "results.json").write_text(json.dumps(results, indent=1))
        strip = {
            "noisy": outputs["noisy input"][0],
            "zero-shot": outputs["zero-shot"][0],
            "adapted": outputs["fine-tuned"][0],
            "pruned, int8": outputs["pruned, int8"][0],
            "clean": self.new.test[0],
        }
        html.write_report(
            self.output / "report.html",
            title="A pretrained denoiser, adapted, pruned and exported",
            summary=_summary(table.set_index("stage"), self.config),
            table=_readable(table),
            figures=[
                html.Figure(
                    "Pictures", plots.picture_strip(strip), "A tile that nothing was trained or chosen on."
                ),
                html.Figure(
                    "Training",
                    plots.training_curves(self.histories),
                    "Mean squared error, training dashed and validation solid; pruning raises the "
                    "loss while zeros are added and then recovers.",
                ),
                html.Figure(
                    "Search",
                    (self.output / "search.png").read_bytes(),
                    f"The best of {self.config.trials} trials, learning rate {best['learning_rate']:.2g} and "
                    f"weight decay {best['weight_decay']:.2g}, went on to the fine-tune.",
                ),
            ],
            notes=_notes(results),
        )
        self.console.print(
            f"\n[bold]{self.output / 'report.html'}[/] in {results['seconds']:.0f} s, "
            f"{results['peak_memory_gb']:.1f} GB of memory at the most"
        )

    def _row(
        self,
        stage: str,
        output: np.ndarray,
        model: keras.Model | None = None,
        artifact: tfkit.Artifact | None = None,
    ) -> None:
        """Judges pictures against the clean ones and prints the line of a stage."""
        total, nonzero = measure.count_weights(model) if model is not None else (None, None)
        row = {
            "stage": stage,
            "psnr_db": measure.psnr(self.new.test, np.clip(output, 0, 1)),
            "mae": measure.mae(self.new.test, np.clip(output, 0, 1)),
            "parameters": total,
            "nonzero": nonzero,
            "size_bytes": artifact.size_bytes if artifact else None,
            "parity_error": artifact.parity.relative_error if artifact else None,
            "output": output,
        }
        self.rows.append(row)
        size = f"{row['size_bytes'] / 1000:9.1f} kB" if artifact else " " * 12
        weights = f"{nonzero:>9,} non-zero" if nonzero is not None else " " * 18
        seconds = time.perf_counter() - self.start
        self.console.print(
            f"{seconds:5.0f} s  {stage:28} {row['psnr_db']:6.2f} dB {weights} {size}", highlight=False
        )

    def _compile(self, model: keras.Model, rate: float, decay: float | None = None) -> keras.Model:
        # XLA's convolutions take twice as long as oneDNN's on these processors
        model.compile(keras.optimizers.AdamW(rate, weight_decay=decay or 0.0), "mse", jit_compile=False)
        return model

    def _fit(
        self, name: str, model: keras.Model, clean: np.ndarray, noise: float, epochs: int, *callbacks
    ) -> None:
        history = model.fit(
            self._stream(clean, noise),
            epochs=epochs,
            validation_data=None if name == "pretrain" else self.validation,
            shuffle=False,  # the stream shuffles itself
            callbacks=list(callbacks),
            verbose=0,
        )
        if name not in ("pretrain", "top decoder layers", "all layers"):
            self.histories[name] = history.history

    def _fit_curve(self, name: str, model: keras.Model, peak: float, epochs: int, *callbacks) -> None:
        total = epochs * self._steps(self.new.train)
        curve = tfkit.WarmupCosine(peak, warmup_steps=total // 10, total_steps=total, final=peak / 100)
        self._fit(name, model, self.new.train, self.config.noise, epochs, curve, *callbacks)

    def _stream(self, clean: np.ndarray, noise: float) -> tf.data.Dataset:
        """Returns batches of (noisy, clean) patches, mirrored at random, seeded."""
        seed = self.config.seed

        def corrupt(number: tf.Tensor, patch: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            key = tf.stack([tf.constant(seed, tf.int64), number])
            patch = tf.image.stateless_random_flip_left_right(patch, key)
            patch = tf.image.stateless_random_flip_up_down(patch, key + 1)
            return tf.clip_by_value(
                patch + tf.random.stateless_normal(tf.shape(patch), key, 0, noise), 0, 1
            ), patch

        patches = tf.data.Dataset.from_tensor_slices(clean).shuffle(len(clean), seed=seed)
        return patches.enumerate().map(corrupt).batch(BATCH).prefetch(2)

    def _steps(self, clean: np.ndarray) -> int:
        return -(-len(clean) // BATCH)

    def _copy(self, model: keras.Model) -> keras.Model:
        copy = keras.models.clone_model(model)
        copy.set_weights(model.get_weights())
        return copy

    def _denoise(self, model: keras.Model) -> np.ndarray:
        return model.predict(self.noisy_test, batch_size=1, verbose=0)


def _photographs() -> list[np.ndarray]:
    from sklearn.datasets import load_sample_images

    return [picture / np.float32(255) for picture in load_sample_images().images]


def _read_folder(folder: str) -> list[np.ndarray]:
    paths = sorted(
        path for path in pathlib.Path(folder).glob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg")
    )
    if not paths:
        raise tfkit.ArgumentError(f"--images must be a folder with PNG or JPEG files. Received: {folder}.")
    return [np.asarray(keras.utils.load_img(path), "float32") / 255 for path in paths]


def _cut(pictures: list[np.ndarray], config: Config) -> Pictures:
    """Cuts each picture into a left part to train, a middle to choose, a right to judge."""
    parts = {"train": [], "validation": [], "test": [], "calibration": []}
    for picture in pictures:
        width = picture.shape[1]
        left, right = int(0.55 * width), width - max(int(0.3 * width), config.tile)
        parts["train"] += _tiles(picture[:, :left], config.patch, config.patch * 3 // 8)
        parts["validation"] += _tiles(picture[:, left:right], config.patch, config.patch // 2)
        parts["test"] += _tiles(picture[:, right:], config.tile, config.tile)
        parts["calibration"] += _tiles(picture[:, :left], config.tile, config.tile // 2)
    if missing := [name for name, tiles in parts.items() if not tiles]:
        raise tfkit.ArgumentError(
            f"The pictures must be large enough to cut {config.tile} pixel tiles from 30% of their width. "
            f"Received: pictures of shape {[picture.shape for picture in pictures][:5]}, "
            f"which give nothing for {', '.join(missing)}."
        )
    return Pictures(**{name: np.stack(tiles) for name, tiles in parts.items()})


def _tiles(picture: np.ndarray, side: int, stride: int) -> list[np.ndarray]:
    rows, columns = (range(0, size - side + 1, stride) for size in picture.shape[:2])
    return [picture[row : row + side, column : column + side] for row in rows for column in columns]


def _add_noise(clean: np.ndarray, deviation: float, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, deviation, clean.shape)
    return np.clip(clean + noise, 0, 1).astype("float32")


def _summary(stages: pd.DataFrame, config: Config) -> list[str]:
    """Says in three sentences what was gained and what was lost."""
    noisy, zero, tuned = (stages.loc[name] for name in ("noisy input", "zero-shot", "fine-tuned"))
    pruned = stages.loc[f"pruned {config.sparsity:.0%}"]
    dense, whole, small = (stages.loc[name] for name in ("dense, float32", "pruned, float32", "pruned, int8"))
    zeros = 1 - pruned.nonzero / pruned.parameters
    return [
        f"Adapting gained {tuned.psnr_db - zero.psnr_db:.1f} dB: the pretrained model brings the noisy pictures "
        f"from {noisy.psnr_db:.1f} to {zero.psnr_db:.1f} dB, the adapted one to {tuned.psnr_db:.1f} dB.",
        f"Pruning made {zeros:.0%} of all weights zero and changed the quality by "
        f"{pruned.psnr_db - tuned.psnr_db:+.2f} dB; gzipped, the float32 file shrinks "
        f"{dense.gzip_bytes / whole.gzip_bytes:.1f} times.",
        f"Full int8 changed it by a further {small.psnr_db - whole.psnr_db:+.2f} dB. The file that ships has "
        f"{small.size_bytes / 1000:.0f} kB instead of {dense.size_bytes / 1000:.0f} kB "
        f"({dense.size_bytes / small.size_bytes:.1f} times smaller; gzipped {small.gzip_bytes / 1000:.0f} kB) and "
        f"runs {dense.latency_ms / small.latency_ms:.1f} times as fast on this machine.",
    ]


def _readable(table: pd.DataFrame) -> pd.DataFrame:
    formats = {
        "stage": ("Stage", "{}"),
        "psnr_db": ("PSNR, dB", "{:.2f}"),
        "mae": ("MAE", "{:.4f}"),
        "parameters": ("Parameters", "{:,.0f}"),
        "nonzero": ("Non-zero", "{:,.0f}"),
        "size_bytes": ("Bytes", "{:,.0f}"),
        "gzip_bytes": ("Gzip bytes", "{:,.0f}"),
        "latency_ms": ("Latency, ms", "{:.2f}"),
        "parity_error": ("Error against Keras", "{:.1e}"),
    }
    return pd.DataFrame(
        {
            title: ["–" if pd.isna(value) else form.format(value) for value in table[name]]
            for name, (title, form) in formats.items()
        }
    )


def _notes(results: dict) -> list[str]:
    config, versions = results["config"], results["versions"]
    tile = config["tile"]
    return [
        "PSNR and MAE compare with the clean picture, pixel values from 0 to 1, outputs clipped to that range. "
        "Higher PSNR is better; 3 dB is half the squared error.",
        f"The left 55% of a picture trains, the middle chooses, the right is judged in {tile}×{tile} tiles.",
        f"The search tried {config['trials']} pairs of learning rate and weight decay; layers trained: "
        f"{', '.join(results['trained_layers'])}.",
        f"Latency is the median of {config['runs']} interleaved runs on one {tile}×{tile} picture, LiteRT with one "
        "thread, SavedModel on TensorFlow's own threads.",
        "Error against Keras is the largest difference over the largest output, on real noisy pictures.",
        f"Seed {config['seed']}; {results['seconds']:.0f} s in all, at most {results['peak_memory_gb']:.1f} GB of memory; "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + ".",
    ]


def _versions() -> dict[str, str]:
    packages = (
        "tfkit",
        "tensorflow",
        "keras",
        "keras-tuner",
        "tensorflow-model-optimization",
        "ai-edge-litert",
    )
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}}


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Adapt a pretrained denoiser to new pictures, prune it, export it, prove it."
    )
    parser.add_argument("--quick", action="store_true", help="a small run, under a minute")
    parser.add_argument("--model", metavar="FILE", help="a .keras model instead of the pretrained denoiser")
    parser.add_argument(
        "--images", metavar="DIR", help="a folder of PNG or JPEG files instead of the photograph"
    )
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("results/quickstart"), metavar="DIR"
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
