"""What to paste where a PyTorch batch, model or loop cannot be understood."""

from __future__ import annotations

from typing import Any

from pytest_bncheck.adapters import hints
from pytest_bncheck.adapters.hints import UNKNOWN_LOSS, UNKNOWN_OUTPUTS
from pytest_bncheck.types import InputError

_TRAIN_STEP = """\
    @pytest.fixture
    def bncheck_train_step(bncheck_model):
        optimizer = torch.optim.Adam(bncheck_model.parameters())

        def train_step(model, batch):
            optimizer.zero_grad()
            loss = {loss}
            loss.backward()
            optimizer.step()
            return loss

        return train_step
"""


def no_step(problem: str, loss: str = UNKNOWN_LOSS) -> InputError:
    """The error where the training step has to come from the user."""
    return hints.error(problem, "bncheck_train_step", _TRAIN_STEP.format(loss=loss))


def no_forward(problem: str, outputs: str = UNKNOWN_OUTPUTS) -> InputError:
    """The error where the call of the model has to come from the user."""
    return hints.error(problem, "bncheck_forward", hints.FORWARD.format(outputs=outputs))


def no_forward_and_step(
    problem: str, outputs: str = UNKNOWN_OUTPUTS, loss: str = UNKNOWN_LOSS
) -> InputError:
    """The error where the batch means something to the user alone."""
    return hints.error(
        problem,
        "bncheck_forward and bncheck_train_step",
        hints.FORWARD.format(outputs=outputs),
        _TRAIN_STEP.format(loss=loss),
    )


def no_loss(problem: str, outputs: Any = None, targets: Any = None) -> InputError:
    """The error where the loss has to come from the user; it is of what these hold."""
    arguments = f"{hints.part('outputs', outputs)}, {hints.part('targets', targets)}"
    loss = f"torch.nn.functional.cross_entropy({arguments})"
    return hints.error(problem, "bncheck_loss", hints.LOSS.format(loss=loss))
