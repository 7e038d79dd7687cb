"""Training a smaller model towards the outputs of the unpruned one, by Keras's Distiller."""

import functools
from typing import Any

import keras

from tfkit.errors import ArgumentError, ArgumentTypeError
from tfkit.prune.batches import inputs_of
from tfkit.training import compile_settings

PROPER = "LogitsDistillation(temperature=3.0, loss=keras.losses.KLDivergence())"


def read_distillation(distillation: Any, weight: float) -> list[Any]:
    """Returns losses of distillation as a list, empty for none.

    Raises:
        ArgumentTypeError: If one is no loss of keras.distillation.
        ArgumentError: If one takes logits for probabilities, or their weight is outside (0, 1].
    """
    if distillation is None:
        return []
    losses = list(distillation) if isinstance(distillation, list | tuple) else [distillation]
    if not losses or not all(isinstance(each, keras.distillation.DistillationLoss) for each in losses):
        raise ArgumentTypeError(
            "`distillation` must be a loss of keras.distillation or a list of them. "
            f"Received: distillation={distillation!r}. "
            f"Write keras.distillation.{PROPER}."
        )
    for each in losses:
        of_logits = isinstance(each, keras.distillation.LogitsDistillation)
        if of_logits and keras.losses.kl_divergence in keras.tree.flatten(each.loss):
            raise ArgumentError(
                "A divergence is of probabilities, which Keras makes of logits for its class alone. By its "
                "name 'kl_divergence', LogitsDistillation's default, it compares logits as they are. "
                f"Received: distillation={type(each).__name__} with a loss by that name. Write {PROPER}."
            )
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= 1:
        raise ArgumentError(
            "`distillation_weight` is the share of distillation in the loss, in (0, 1]. "
            f"Received: distillation_weight={weight!r}."
        )
    return losses


def require_distillable(teacher: keras.Model, losses: list[Any], x: Any) -> None:
    """Checks that each loss can compare the model's outputs, before anything is trained."""
    outputs = teacher(inputs_of(teacher, x), training=False)
    for loss in losses:
        if getattr(loss, "teacher_layer_name", None) is not None:
            continue
        try:
            loss.compute_loss(outputs, outputs)
        except Exception as error:  # whatever a loss of one's own may raise
            raise ArgumentError(
                "A loss of `distillation` must fit the model's outputs. "
                f"Received: {type(loss).__name__}, which fails on them: {str(error)[:200]} "
                "For several outputs give `loss` in their structure: LogitsDistillation(loss={'name': …})."
            ) from error


def distill(
    student: keras.Model,
    teacher: keras.Model,
    losses: list[Any],
    weight: float,
    x: Any,
    y: Any,
    fit: dict[str, Any],
) -> None:
    """Trains a compiled student, in place; `fit` holds more arguments of that name."""
    distiller = Distiller(teacher, student, losses, [1.0] * len(losses), student_loss_weight=1 - weight)
    settings = compile_settings(student)
    metrics = settings["metrics"]
    distiller.compile(
        student.optimizer,
        settings["loss"],
        metrics if isinstance(metrics, list | tuple) else None,  # Keras takes no dict here
        jit_compile=settings["jit_compile"],
        run_eagerly=settings["run_eagerly"],
    )
    forwarded = [_OnStudent(each, student) for each in fit["callbacks"]]
    distiller.fit(x, y, **fit | {"callbacks": forwarded})


class _OnStudent(keras.callbacks.Callback):
    """Hands what happens to a Distiller on to a callback whose model is the student."""

    def __init__(self, callback: keras.callbacks.Callback, student: keras.Model):
        super().__init__()
        self._callback, self._student = callback, student
        for name in dir(keras.callbacks.Callback):
            if name.startswith("on_"):
                setattr(self, name, functools.partial(self._hand_on, name))

    def set_params(self, params: dict[str, Any]) -> None:
        """Hands the parameters on."""
        self._callback.set_params(params)

    def set_model(self, model: keras.Model) -> None:
        """Keeps the Distiller, and gives the callback the student."""
        super().set_model(model)
        self._callback.set_model(self._student)

    def _hand_on(self, name: str, *args: Any, **kwargs: Any) -> None:
        self._student.stop_training = self.model.stop_training
        getattr(self._callback, name)(*args, **kwargs)
        self.model.stop_training = self._student.stop_training


class Distiller(keras.distillation.Distiller):
    """Keras's Distiller, whose student keeps all of its own loss.

    Keras computes the student's loss from its loss functions alone: without sample weights,
    without loss weights, and without penalties on weights.
    """

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Returns the loss of the student and of distillation, each by its share."""
        share = self.student_loss_weight
        own = self.student.compute_loss(x, y, y_pred, sample_weight, training) if share else 0.0
        others = super().compute_loss(x, None, y_pred, None, training)
        total = share * own + others
        # Keras has counted a student's loss of 0; a second entry puts both means right
        self.student_loss_tracker.update_state(2.0 * own)
        self.total_loss_tracker.update_state(2.0 * total - others)
        return total
