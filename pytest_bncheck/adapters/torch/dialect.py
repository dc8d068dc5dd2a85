"""Lines of PyTorch code for remedies."""

from __future__ import annotations

from torch import nn

from pytest_bncheck.types import Dialect


def _set_momentum(kind: str, rate: float) -> str:
    if hasattr(nn, kind):
        return f"nn.{kind}(..., momentum={rate:g})"
    return (
        "for module in model.modules():\n"
        f"    if isinstance(module, {kind}):\n"
        f"        module.momentum = {rate:g}"
    )


DIALECT = Dialect(
    set_momentum=_set_momentum,
    recalibrate="torch.optim.swa_utils.update_bn(train_loader, model)",
    momentum_of=lambda rate: rate,
    training_mode="model.train()",
    mode="self.training",
    freeze="Keep the frozen part in eval mode, in the model's class:\n"
    "def train(self, mode=True):\n"
    "    super().train(mode)\n"
    "    self.backbone.eval()  # the frozen part\n"
    "    return self",
    running_in_eval="Let it use running statistics in eval mode (track_running_stats=True, "
    "training=self.training)",
    copy_statistics="copy.load_state_dict(model.state_dict())  # parameters and buffers",
    per_sample="GroupNorm or LayerNorm",
    shuffle="DataLoader(..., shuffle=True)",
    drop_last="DataLoader(..., drop_last=True)",
    unbiased=True,
    counter="num_batches_tracked",
    together=(
        "Normalise over all processes, before the model is wrapped (on GPUs):\n"
        "model = nn.SyncBatchNorm.convert_sync_batchnorm(model)",
        "Or take the statistics of the first process, which is the default of "
        "broadcast_buffers and forward_sync_buffers:\n"
        "DistributedDataParallel(model)",
    ),
)


RECALIBRATE = """model.train()
with torch.no_grad():
    for inputs, _ in train_loader:  # several times over
        model(inputs)"""
"""For layers that `update_bn` passes over."""
