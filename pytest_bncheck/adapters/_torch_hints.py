"""What to paste where a PyTorch batch, model or loop cannot be understood."""

from __future__ import annotations

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

_FORWARD = """\
    @pytest.fixture
    def bncheck_forward():
        def forward(model, batch):
            return {outputs}

        return forward
"""

_LOSS = """\
    @pytest.fixture
    def bncheck_loss():
        def loss(outputs, targets):
            return {loss}

        return loss
"""

_OUTPUTS = "model(...)  # its predictions: a tensor, or a container of tensors"


def no_step(problem: str, loss: str = "...  # your own, from model and batch") -> InputError:
    """The error where the training step has to come from the user."""
    return _error(problem, "bncheck_train_step", _TRAIN_STEP.format(loss=loss))


def no_forward(problem: str, outputs: str = _OUTPUTS) -> InputError:
    """The error where the call of the model has to come from the user."""
    return _error(problem, "bncheck_forward", _FORWARD.format(outputs=outputs))


def no_forward_and_step(problem: str, outputs: str = _OUTPUTS) -> InputError:
    """The error where the batch means something to the user alone."""
    text = _FORWARD.format(outputs=outputs) + "\n" + _TRAIN_STEP.format(loss="...  # your own")
    return _error(problem, "bncheck_forward and bncheck_train_step", text)


def no_loss(problem: str) -> InputError:
    """The error where the loss has to come from the user."""
    text = _LOSS.format(loss="torch.nn.functional.cross_entropy(outputs, targets)  # your own")
    return _error(problem, "bncheck_loss", text)


def _error(problem: str, hook: str, code: str) -> InputError:
    return InputError(f"{problem}; override {hook}, for example in conftest.py:\n\n{code}")
