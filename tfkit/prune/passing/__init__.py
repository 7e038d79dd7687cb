"""How channels pass through each kind of layer: the rules that couple them.

A rule is for one class as Keras wrote it; a subclass that computes or builds in its own way
has no rule. What has no rule keeps all channels that come in, and all that go out: nothing
is guessed.
"""

import keras

from tfkit import graph
from tfkit.prune.coupling import Coupling, Labels

# importing them registers their rules
from tfkit.prune.passing import channelwise, kernels, merging, moving, operations  # noqa: F401
from tfkit.prune.passing.site import RULES, RULES_BY_NAME, Rule, Site


def pass_channels(call: graph.Call, given: list[Labels], coupling: Coupling) -> list[Labels]:
    """Applies the rule of a call and returns the labels of the tensors that go out."""
    site = Site(call, given, coupling)
    operation = call.operation
    for number in site.masks:
        coupling.keep(given[number], f"{site.path} takes it as a mask")
    if getattr(operation, "quantization_mode", None) or getattr(operation, "lora_enabled", False):
        return site.stop("is quantized or has a LoRA adapter")
    known = _rule_of(operation)
    if known is None:
        return site.stop()
    answer = known(site)
    return answer if isinstance(answer, list) else [answer]


def _rule_of(operation: keras.Operation) -> Rule | None:
    """Returns the rule of the class that decides what an operation computes."""
    own = type(operation)
    for base in own.__mro__:
        if base in RULES:
            return RULES[base] if _inherits(own, base) else None
    return RULES_BY_NAME.get(own.__name__) if own.__module__.startswith("keras.src.") else None


# what a subclass may write anew without computing anything else
HARMLESS = frozenset({"__init__", "__module__", "__doc__", "get_config", "from_config", "__annotations__"})


def _inherits(own: type, base: type) -> bool:
    """Tells whether a class takes over all that decides what a class of Keras computes.

    Not only `call` and `build`: Keras offers `Conv2D.convolution_op` to subclasses, too.
    """
    between = own.__mro__[: own.__mro__.index(base)]
    return all(name in HARMLESS or not hasattr(base, name) for each in between for name in vars(each))
