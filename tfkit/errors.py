"""Every exception that tfkit raises on purpose.

Each one is also a builtin exception, so code that does not know tfkit can still
catch what it expects::

    TfkitError
    ├── ArgumentError (ValueError)         a value outside its range, or values that contradict
    │   ├── LayerNotFoundError (LookupError)   a pattern that names no layer
    │   ├── UnbuiltModelError              a model whose weights do not exist yet
    │   ├── NonFiniteWeightsError          NaN or infinity where weights must be numbers
    │   ├── PruningError                   a pruning call in the wrong order or on the wrong weights
    │   └── UnsafeModelError               a model file that could run code
    ├── ArgumentTypeError (TypeError)      an object of the wrong kind, such as no Keras model
    ├── OutputPathError (OSError)          a place where nothing can be written
    ├── DownloadError (OSError)            weights that could not be fetched
    ├── ExportError (RuntimeError)         a conversion or a runtime that failed
    │   └── ParityError                    an artifact that does not compute what Keras computes
    └── SearchError (RuntimeError)         a search that has no result to give

A message states the rule, then ``Received: name=value``, then the valid choices
or the fix.
"""


class TfkitError(Exception):
    """Base of every exception that tfkit raises on purpose."""


class ArgumentError(TfkitError, ValueError):
    """A value outside its range, or values that contradict each other."""


class LayerNotFoundError(ArgumentError, LookupError):
    """A pattern that names no layer of the model."""


class UnbuiltModelError(ArgumentError):
    """A model whose weights do not exist yet."""


class NonFiniteWeightsError(ArgumentError):
    """NaN or infinity where weights must be numbers."""


class PruningError(ArgumentError):
    """A pruning call in the wrong order, or on weights that it does not fit."""


class UnsafeModelError(ArgumentError):
    """A model file that could run code when it is loaded."""


class ArgumentTypeError(TfkitError, TypeError):
    """An object of the wrong kind, such as something that is no Keras model."""


class OutputPathError(TfkitError, OSError):
    """A place where nothing can be written."""


class DownloadError(TfkitError, OSError):
    """Weights that could not be fetched, or arrived damaged."""


class ExportError(TfkitError, RuntimeError):
    """A conversion or a runtime that failed."""


class ParityError(ExportError):
    """An artifact that does not compute what the Keras model computes."""


class SearchError(TfkitError, RuntimeError):
    """A search that has no result to give."""
