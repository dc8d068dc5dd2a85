"""What to paste where a PyTorch batch, model or loop cannot be understood."""

from __future__ import annotations

from pytest_bncheck.adapters.hints import Hints

_TRAIN_STEP = """\
    @pytest.fixture
    def bncheck_train_step({arguments}):
        optimizer = {optimizer}

        def train_step(model, batch):
            optimizer.zero_grad()
            loss = {loss}
            loss.backward()
            optimizer.step()
            return loss

        return train_step
"""

hints = Hints(
    _TRAIN_STEP,
    "torch.optim.Adam(bncheck_model.parameters())",
    "bncheck_model.parameters()",
    "torch.nn.functional.cross_entropy({outputs}, {targets})",
)
