"""What is said of PyTorch's models."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_bncheck.watch.places import Place
from pytest_bncheck.watch.torch.layers import DROPOUT, NORMALISATION
from pytest_bncheck.watch.torch.switches import Switch
from pytest_bncheck.wording import plural

TRAIN = "model.train()  # before each epoch or step"
PREDICT = "model.eval()  # and model.train() again before the next step"


def layers(kinds: Sequence[str]) -> str:
    """``2 normalisation layers and 1 dropout layer``."""
    counts = [(kinds.count(kind), kind) for kind in (NORMALISATION, DROPOUT)]
    return " and ".join(plural(count, f"{kind} layer") for count, kind in counts if count)


def off(kinds: Sequence[str], model: str, steps: int, of: int, since: Switch | None) -> str:
    """BN305."""
    verb = "was" if len(kinds) == 1 else "were"
    after = f", since {since}" if since else ""
    return (
        f"{model} was trained in eval mode: {layers(kinds)} {verb} off in {steps} of "
        f"{plural(of, 'step')}{after}."
    )


def on(kinds: Sequence[str], model: str, calls: int, since: Place | None) -> str:
    """BN307."""
    verb = "was" if len(kinds) == 1 else "were"
    after = f", since train() in {since}" if since else ""
    return (
        f"{model} was trained and predicts in training mode: {layers(kinds)} {verb} on in "
        f"{plural(calls, 'call')} without gradients{after}."
    )


def still_on(layer: str, model: str, hidden: bool) -> str:
    """BN301."""
    why = (
        "it is no registered child of the model, so that eval() does not reach it"
        if hidden
        else "eval() of the model did not reach it"
    )
    return f"{model} is in eval mode, and its layer {layer} ran in training mode: {why}."


def of_statistics(code: str, layer: str, model: str, momentum: float | None, steps: int) -> str:
    """BN103, BN104, BN105 and BN107."""
    name = f"layer {layer} of {model}"
    why = " at momentum 0" if momentum == 0 else ""
    return {
        "BN103": f"The running statistics of {name} did not move in "
        f"{plural(steps, 'training step')}{why}.",
        "BN104": f"L{name[1:]} has momentum {momentum}, in PyTorch the weight of the new "
        "batch: its running statistics remember the last batches only.",
        "BN105": f"A running statistic of {name} is NaN, infinite or a negative variance after a "
        "training step, and its weights are finite.",
        "BN107": f"The parameters of {name} and of all before it are frozen, and its running "
        "statistics moved in training steps.",
    }[code]


def exported(model: str, kinds: Sequence[str], how: str) -> str:
    """BN403."""
    return f"{model} went through {how} in training mode, with {layers(kinds)} that are on."


def lost(model: str, names: Sequence[str]) -> str:
    """BN401."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return (
        f"A state without running statistics was loaded into {model}: {names[0]}{more} missing, "
        "the weights beside it there."
    )


REMEDIES = {
    "BN103": "nn.BatchNorm2d(..., momentum=0.1)",
    "BN104": "nn.BatchNorm2d(..., momentum=0.1)",
    "BN105": "Look at what the layer gets: a batch of NaN, or infinite values, stays in the "
    "statistics for good.",
    "BN107": "model.backbone.eval()  # after each model.train()",
    "BN301": "Register the layer: an attribute, nn.ModuleList or nn.ModuleDict; in train() of "
    "your own call super().train(mode).",
    "BN305": TRAIN,
    "BN307": PREDICT,
    "BN401": "Save and load buffers too: model.state_dict(), with strict=True.",
    "BN403": "model.eval()  # before the export",
}
