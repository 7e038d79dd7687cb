"""tfkit: a pretrained Keras model to a small, fast, verified artifact on a device.

Choose layers, adapt, search, prune, strip, export, prove. Importing the package loads
neither TensorFlow nor Keras; a name's first use does. `tfkit.curves` never does.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["errors", "export", "models", "optim", "prune", "report", "transfer", "tune"],
    submod_attrs={
        "errors": [
            "ArgumentError",
            "ArgumentTypeError",
            "DownloadError",
            "ExportError",
            "LayerNotFoundError",
            "NonFiniteWeightsError",
            "OutputPathError",
            "ParityError",
            "PruningError",
            "SearchError",
            "TfkitError",
            "UnbuiltModelError",
            "UnsafeModelError",
        ],
        "export": [
            "Artifact",
            "ExportReport",
            "Parity",
            "benchmark",
            "check_parity",
            "explain_deployment",
            "explain_tflite",
            "export_saved_model",
            "export_tflite",
            "make_sparse_ready",
            "quantization_error",
            "quantize_weights",
            "zeros_kept",
        ],
        "optim": [
            "LearningRateCurve",
            "LearningRateSearch",
            "ReduceLROnPlateau",
            "WarmupCosine",
            "add_weight_penalty",
            "curves",
            "find_learning_rate",
            "set_learning_rate_multipliers",
            "set_weight_decay",
            "training_table",
        ],
        "prune": [
            "ChannelPlan",
            "ConstantSparsity",
            "GradualPruning",
            "PolynomialDecay",
            "PrunableLayer",
            "PruningSchedule",
            "PruningSummaries",
            "UpdatePruningStep",
            "flops_table",
            "layer_sensitivity",
            "plan_channel_pruning",
            "plot_sensitivity",
            "prune_channels",
            "prune_channels_gradually",
            "prune_low_magnitude",
            "prune_now",
            "prune_scope",
            "recalibrate_batch_norm",
            "sparsity_table",
            "strip_pruning",
        ],
        "select": ["Selection", "layer_table", "select_layers"],
        "transfer": [
            "GradualUnfreezing",
            "Recommendation",
            "compare_unfreezing",
            "configure_base_model",
            "fit_cached",
            "recommend_trainable_layers",
        ],
        "tune": ["SearchResult", "SearchSpace", "search"],
    },
)
