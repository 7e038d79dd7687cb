"""What the main job shows: results.json, pictures, and one page that says what was gained."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tfkit.report import html, plots


def write(
    output: pathlib.Path,
    results: Mapping[str, Any],
    pictures: Mapping[str, np.ndarray],
    histories: Mapping[str, Mapping[str, Sequence[float]]],
) -> None:
    """Writes results.json, pictures.png, training.png, pareto.png and report.html into a folder.

    Args:
        output: The folder; search.png stands there already.
        results: What was measured, ready for JSON.
        pictures: For each caption one picture, values in [0, 1].
        histories: For each run Keras's history.
    """
    (output / "results.json").write_text(json.dumps(results, indent=1))
    strip, curves = plots.picture_strip(pictures), plots.training_curves(histories)
    (output / "pictures.png").write_bytes(strip)
    (output / "training.png").write_bytes(curves)
    front = pareto(results)
    (output / "pareto.png").write_bytes(front)
    table, best = pd.DataFrame(results["stages"]), results["search"]
    html.write_report(
        output / "report.html",
        title="A pretrained denoiser, adapted, pruned and exported",
        summary=_summary(table.set_index("stage")),
        table=_readable(table),
        figures=[
            html.Figure("Pictures", strip, "A tile from a band that nothing was trained or chosen on."),
            html.Figure(
                "What ships",
                front,
                "Each .tflite file by quality over gzipped size or latency, whichever differs more; area and "
                "label show the other. The line joins those that no other beats in everything.",
            ),
            html.Figure(
                "Training",
                curves,
                "Mean squared error, training dashed and validation solid; pruning raises the loss while "
                "zeros are added and then recovers.",
            ),
            html.Figure(
                "Search",
                (output / "search.png").read_bytes(),
                f"The best of {results['config']['trials']} trials, learning rate {best['learning_rate']:.2g}"
                f" and weight decay {best['weight_decay']:.2g}, went on to the fine-tune.",
            ),
        ],
        notes=_notes(results),
    )


def pareto(results: Mapping[str, Any]) -> bytes:
    """Draws the `.tflite` files by latency, gzipped size and quality, as a PNG."""
    stages = pd.DataFrame(results["stages"])
    files = stages[stages.latency_ms.notna() & ~stages.stage.str.contains("SavedModel")]
    names = {"stage": "name", "gzip_bytes": "size_bytes", "psnr_db": "score"}
    table = files[["stage", "latency_ms", "gzip_bytes", "psnr_db"]].rename(columns=names)
    return plots.trade_offs(table, score_label="PSNR, dB")


def _summary(stages: pd.DataFrame) -> list[str]:
    """Says in three sentences what was gained and what was lost."""
    noisy, zero, dense = (stages.loc[name] for name in ("noisy input", "zero-shot", "dense, float32"))
    pruned, small = stages.loc["pruned, float32"], stages.loc["pruned, int8"]
    longer = stages.loc["dense, trained on"]
    zeros = 1 - pruned.nonzero / pruned.parameters
    kilobytes = {name: f"{stages.loc[name].size_bytes / 1000:.0f} kB" for name in (dense.name, small.name)}
    return [
        f"Adapting gained {dense.psnr_db - zero.psnr_db:.1f} dB: the pretrained model brings the noisy "
        f"pictures from {noisy.psnr_db:.1f} to {zero.psnr_db:.1f} dB, the adapted one to "
        f"{dense.psnr_db:.1f} dB.",
        f"Pruning made {zeros:.0%} of all weights zero and changed the quality by "
        f"{pruned.psnr_db - dense.psnr_db:+z.2f} dB (as many more updates without zeros: "
        f"{longer.psnr_db - dense.psnr_db:+z.2f} dB); gzipped, the float32 file is "
        f"{dense.gzip_bytes / pruned.gzip_bytes:.1f} times smaller.",
        f"Full int8 changed it by {small.psnr_db - pruned.psnr_db:+z.2f} dB more. The file that ships has "
        f"{kilobytes[small.name]} instead of {kilobytes[dense.name]} "
        f"({dense.size_bytes / small.size_bytes:.1f} times less; gzipped {small.gzip_bytes / 1000:.0f} kB) "
        f"and runs {dense.latency_ms / small.latency_ms:.1f} times as fast on this machine.",
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
        "PSNR and MAE compare with the clean picture, pixel values from 0 to 1, outputs clipped to that "
        "range. Higher PSNR is better; 3 dB is half the squared error.",
        f"Pictures are judged in {tile}×{tile} tiles from a band that trained and chose nothing.",
        f"The search tried {config['trials']} pairs of learning rate and weight decay; layers trained: "
        f"{', '.join(results['trained_layers'])}.",
        f"Latency is the median of {config['runs']} interleaved runs on one {tile}×{tile} picture, LiteRT "
        "with one thread, SavedModel on TensorFlow's own threads. Zeros alone do not speed up this kind of "
        "processor.",
        "Error against Keras is the largest difference over the largest output, on real noisy pictures.",
        f"Seed {config['seed']}; {results['seconds']:.0f} s, at most {results['peak_memory_gb']:.1f} GB"
        " of memory; " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
    ]
