"""The main job: can a pretrained denoiser learn a new kind of picture, and get small?

A convolutional encoder–decoder is pretrained to denoise one of scikit-learn's two
photographs and adapted to the other under stronger noise. Then the adapted model is
pruned to 80% zeros and exported for devices. Pictures are judged on a part of the new
photograph that nothing was trained or chosen on.

    python -m experiments.quickstart                                   5 to 7 minutes, two cores
    python -m experiments.quickstart --quick                           under a minute
    python -m experiments.quickstart --model my.keras --images DIR     your own

Writes one folder: report.html, results.json, the search, and the artifacts. Seeded: two
runs on one processor gave the same scores; another rounds otherwise, which training magnifies.

Expected (seed 0): noisy input about 15.5 dB, zero-shot about 20, adapted at least 26.5;
80% sparse at most 0.3 dB below the dense model; int8 at most 0.5 dB below float32 and at
most 1/3.5 of its size; float32 within 1e-5 of Keras.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
import time

import keras
import numpy as np
import pandas as pd
from rich.console import Console

import tfkit
from experiments import photographs, quickstart_report, results
from tfkit.report import measure


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides the outcome.

    Attributes:
        seed: Seeds weights, noise, shuffling and the search.
        filters: Channels of the encoder's layers.
        patch: Side of the square training patches, in pixels.
        stride: Pixels from one patch to the next.
        tile: Side of the square pictures that are judged and that artifacts take.
        pretrain_noise: Standard deviation of the noise in pretraining; white is 1.
        noise: The same for the new pictures.
        pretrain_epochs: Epochs on the first photograph.
        compare_epochs: Epochs for each choice of layers.
        trials: Trials of the search.
        trial_epochs: Epochs of each trial.
        tune_epochs: Epochs of the fine-tune with warmup and cosine.
        refine_epochs: Epochs after that, with zeros rising over the first third, or dense.
        refine_rate: Their peak learning rate; zeros are a large change, which takes a high one.
        sparsity: Fraction of zeros in every kernel but the first and the last, at the end.
        runs: Rounds of the latency measurement.
    """

    seed: int = 0
    filters: tuple[int, ...] = (16, 32, 64, 96)
    patch: int = 64
    stride: int = 16
    tile: int = 192
    pretrain_noise: float = 0.1
    noise: float = 0.205
    pretrain_epochs: int = 6
    compare_epochs: int = 3
    trials: int = 6
    trial_epochs: int = 2
    tune_epochs: int = 20
    refine_epochs: int = 20
    refine_rate: float = 2e-3
    sparsity: float = 0.8
    runs: int = 50


QUICK = Config(
    stride=32,
    pretrain_epochs=3,
    compare_epochs=1,
    trials=2,
    trial_epochs=1,
    tune_epochs=2,
    refine_epochs=3,
    runs=10,
)
BATCH = 8


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
        china, flower = photographs.load()
        sizes = {"patch": config.patch, "tile": config.tile, "stride": config.stride}
        self.old = photographs.cut([china], **sizes)
        new = photographs.read_folder(images) if images else [flower]
        self.new = photographs.cut(new, **sizes)
        self.noisy_test = photographs.add_noise(self.new.test, config.noise, seed=1)
        self.validation = (
            photographs.add_noise(self.new.validation, config.noise, seed=2),
            self.new.validation,
        )
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise tfkit.OutputPathError(
                f"--output must be a folder. Received: {output} ({error})."
            ) from error

    def run(self) -> None:
        """Runs the stages; `experiments.quickstart_notebook` makes a notebook's cells of these lines."""
        self._row("noisy input", self.noisy_test)
        base = self.pretrain()
        self._row("zero-shot", self._denoise(base), base)
        layers = self.choose_layers(base)
        tuned = self.tune(base, layers)
        self.refine(tuned, 0.0)
        pruned = self.refine(tuned, self.config.sparsity)
        dense = self.export(tuned, "dense")
        sparse = self.export(pruned, "pruned")
        self.time_artifacts({**dense, **sparse})
        self.finish(layers, sparse)

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
            photographs.noisy_patches(self.new.train, config.noise, batch_size=BATCH, seed=config.seed),
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

    def refine(self, model: keras.Model, sparsity: float) -> keras.Model:
        """Stage 4: train on, with zeros rising to `sparsity` or, for comparison, without."""
        config = self.config
        model = self._copy(model)
        if sparsity:
            steps = config.refine_epochs * self._steps(self.new.train)
            schedule = tfkit.PolynomialDecay(
                0.3, sparsity, begin_step=1, end_step=1 + 2 * (steps // 6), frequency=2
            )
            first, *_, last = tfkit.layer_table(model).path  # 0.4% of the weights, next to the pixels
            tfkit.prune_low_magnitude(model, schedule, layers=["*", f"!{first}", f"!{last}"])
        name = f"pruned {sparsity:.0%}" if sparsity else "dense, trained on"
        self._compile(model, config.refine_rate, self.best.weight_decay)
        callbacks = [tfkit.UpdatePruningStep()] if sparsity else []
        self._fit_curve(name, model, config.refine_rate, config.refine_epochs, *callbacks)
        if sparsity:
            tfkit.strip_pruning(model)
            model.save(self.output / "pruned.keras")
        self._row(name, self._denoise(model), model)
        return model

    def export(self, model: keras.Model, name: str) -> dict[str, tfkit.Artifact]:
        """Stage 5: artifacts, each proven against Keras before it gets its name."""
        data = photographs.add_noise(self.new.calibration, self.config.noise, seed=3)
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

    def time_artifacts(self, artifacts: dict[str, tfkit.Artifact]) -> None:
        """Stage 6: latency and sizes of all artifacts, their runs interleaved."""
        table = tfkit.benchmark(artifacts, runs=self.config.runs, x=self.noisy_test[:1])
        for measured in table.to_dict("records"):
            row = next(row for row in self.rows if row["stage"] == measured["name"])
            row |= {key: measured[key] for key in ("latency_ms", "size_bytes", "gzip_bytes")}

    def finish(self, layers: list[str], artifacts: dict[str, tfkit.Artifact]) -> None:
        """Stage 7: results.json and report.html."""
        outputs = {row["stage"]: row.pop("output") for row in self.rows}
        table = pd.DataFrame(self.rows)
        best = {name: float(self.best[name]) for name in ("learning_rate", "weight_decay", "score")}
        found = {
            **results.provenance(self.config, time.perf_counter() - self.start),
            "trained_layers": layers,
            "search": best,
            "stages": json.loads(table.to_json(orient="records")),
            "parity": {label: dataclasses.asdict(each.parity) for label, each in artifacts.items()},
        }
        pictures = {
            "noisy": outputs["noisy input"],
            "zero-shot": outputs["zero-shot"],
            "adapted": outputs["fine-tuned"],
            "pruned, int8": outputs["pruned, int8"],
            "clean": self.new.test,
        }
        quickstart_report.write(
            self.output, found, {caption: batch[0] for caption, batch in pictures.items()}, self.histories
        )
        self.console.print(
            f"\n[bold]{self.output / 'report.html'}[/] in {found['seconds']:.0f} s, "
            f"{found['peak_memory_gb']:.1f} GB of memory at the most"
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
            photographs.noisy_patches(clean, noise, batch_size=BATCH, seed=self.config.seed),
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

    def _steps(self, clean: np.ndarray) -> int:
        return -(-len(clean) // BATCH)

    def _copy(self, model: keras.Model) -> keras.Model:
        """Returns a copy of which all layers learn, whatever was frozen: a frozen layer gets no zeros."""
        copy = keras.models.clone_model(model)
        copy.set_weights(model.get_weights())
        return tfkit.configure_base_model(copy, "*")

    def _denoise(self, model: keras.Model) -> np.ndarray:
        return np.concatenate([model(tile[None], training=False) for tile in self.noisy_test])


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
