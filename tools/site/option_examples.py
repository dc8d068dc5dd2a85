"""An example for each option of a check, as the reference shows it in all places."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """A value of an option.

    Attributes
    ----------
    value
        As Python code has it.
    typed
        As a shell has it; an ini file has it without the quotes.
    code
        What defines it, where that takes lines of its own.
    more
        Links to where it is explained.
    """

    value: str
    typed: str = ""
    code: str = ""
    more: str = ""


_TRAINING = "[your training code](../training-code.md)"
_VERDICT = "[the verdict](../concepts/verdict.md)"
_INTENDED = "[what I intend](../how-to/intended.md)"

EXAMPLES = {
    "steps": Example("50", "50"),
    "planned_updates": Example("20_000", "20000", more="[projection](../concepts/projection.md)"),
    "device": Example('"cuda:1"', "cuda:1", more="[GPU](../how-to/gpu.md)"),
    "seed": Example("7", "7"),
    "select": Example('["BN1", "stochastic-eval"]', "BN1,stochastic-eval"),
    "ignore": Example(
        '{"BN106": "tiny images on purpose"}',
        '"BN106: tiny images on purpose"',
        more=_INTENDED,
    ),
    "gap_tolerance": Example("0.3", "0.3", more=_VERDICT),
    "distortion_tolerance": Example("0.2", "0.2", more=_VERDICT),
    "strict": Example("True", "true", more="[a warning](../how-to/failing-test.md#a-warning)"),
    "intended": Example('["stochastic-eval"]', more=_INTENDED),
    "restore": Example("False"),
    "loss": Example(
        "loss",
        code="""def loss(outputs, targets):
    return torch.nn.functional.huber_loss(outputs, targets)""",
        more=_TRAINING,
    ),
    "optimizer": Example(
        "optimizer",
        code="""def optimizer(params):
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)""",
        more=_TRAINING,
    ),
    "train_step": Example(
        "train_step",
        code="""optimizer = torch.optim.AdamW(model.parameters())


def train_step(model, batch):
    images, labels = batch
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss""",
        more=_TRAINING,
    ),
    "forward": Example(
        "forward",
        code="""def forward(model, batch):
    images, masks, labels = batch
    return model(images, masks)""",
        more=_TRAINING,
    ),
}

FLAGS = {
    "--bncheck-json": "report.json",
    "--bncheck-html": "report.html",
    "--bncheck-model": "shop.nets:make_model",
    "--bncheck-input": "8x3x64x64",
    "--bncheck-explain": "BN101",
}
"""A value of each option that only command line and ini file have, but for switches."""
