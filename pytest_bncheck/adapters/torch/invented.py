"""A batch for a PyTorch model that comes with none."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from pytest_bncheck.adapters.invented import (
    CODES,
    LENGTHS,
    SAMPLES,
    SIDES,
    TOKENS,
    Invented,
    Shape,
    Shapes,
    classes,
    does_not_fit,
    none_found,
    offsets,
)
from pytest_bncheck.adapters.targets import KEYS
from pytest_bncheck.adapters.torch.loss import main_output
from pytest_bncheck.types import InputError

FIRST = 3
"""Layers whose inputs are tried: the one that is made first need not run first."""


def invent(model: nn.Module, shapes: Shapes | None) -> Invented:
    """A batch for the model; see `Adapter.invent`."""
    wanted = [shapes] if shapes else [(shape,) for shape in _guesses(model)]
    tried: list[tuple[Shapes, Exception]] = []
    for each in wanted:
        inputs = [_noise(model, shape) for shape in each]
        try:
            outputs = _outputs(model, inputs)
        except Exception as error:
            tried.append((each, error))
        else:
            return Invented(_batch(model, inputs, outputs), each, ran=True)
    if shapes:
        raise does_not_fit(shapes, tried[-1][1]) from None
    raise none_found(tried) from None


def _outputs(model: nn.Module, inputs: list[Tensor]) -> Any:
    """The outputs in training mode, in which the model has to run as well as in eval mode."""
    with torch.no_grad():
        model.eval()
        model(*inputs)
        model.train()
        return model(*inputs)


# inputs -------------------------------------------------------------------------------------------


def _guesses(model: nn.Module) -> Iterator[Shape]:
    """Inputs that the first layers of the model could take, the likely ones first."""
    candidates = (list(_taken_by(module)) for module in model.modules())
    for shapes in islice(filter(None, candidates), FIRST):
        yield from shapes


def _taken_by(layer: nn.Module) -> Iterator[Shape]:
    """Shapes of inputs that a layer takes; none of a layer that takes any, or is unknown."""
    n = SAMPLES
    sizes: list[tuple[int, ...]] = []
    match layer:
        case nn.Embedding() | nn.EmbeddingBag():
            yield Shape("int64", (n, TOKENS))
        case nn.ConvTranspose2d():
            sizes = [(n, layer.in_channels, side, side) for side in (1, 4, 8, *SIDES)]
        case nn.Conv1d() | nn.ConvTranspose1d():
            sizes = [(n, layer.in_channels or 3, length) for length in LENGTHS]
        case nn.Conv2d():
            sizes = [(n, layer.in_channels or 3, side, side) for side in SIDES]
        case nn.Conv3d() | nn.ConvTranspose3d():
            sizes = [(n, layer.in_channels or 3, side, side, side) for side in (16, 32, 64)]
        case nn.LazyLinear():
            sizes = [(n, TOKENS)]
        case nn.Linear():
            sizes = [(n, layer.in_features), (n, TOKENS, layer.in_features)]
        case nn.RNNBase() if layer.batch_first:
            sizes = [(n, TOKENS, layer.input_size)]
        case nn.TransformerEncoderLayer() if layer.self_attn.batch_first:
            sizes = [(n, TOKENS, layer.self_attn.embed_dim)]
        case nn.BatchNorm1d():
            sizes = [(n, layer.num_features or TOKENS)]
        case nn.BatchNorm2d():
            sizes = [(n, layer.num_features or 3, side, side) for side in SIDES]
        case _:
            return
    for each in sizes:
        yield Shape("float32", each)


def _noise(model: nn.Module, shape: Shape) -> Tensor:
    """An input of this shape, on the model's device; integers are rows of its embeddings."""
    parameter = next(model.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    dtype: torch.dtype = getattr(torch, shape.dtype)
    if shape.is_float:
        # A model in double precision takes no other input, and nobody should have to say so.
        own = dtype if parameter is None or shape.dtype != "float32" else parameter.dtype
        noise = torch.randn(shape.sizes, device="cpu")
        noise += torch.from_numpy(offsets(shape.sizes)).float()
        return noise.to(device, own if own.is_floating_point else dtype)
    rows = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)]
    high = 2 if shape.dtype == "bool" else min(rows[0] if rows else CODES, CODES)
    return torch.randint(0, high, shape.sizes, device="cpu").to(device, dtype)


# targets ------------------------------------------------------------------------------------------


def _batch(model: nn.Module, inputs: list[Tensor], outputs: Any) -> Any:
    """Inputs and targets, as a dict for a model that takes its targets and computes its loss."""
    targets = _targets(outputs, len(inputs[0]))
    names = list(inspect.signature(model.forward).parameters)
    free = [name for name in names[len(inputs) :] if not name.startswith("mask")]  # of attention
    named = next((name for name in KEYS if name in free), None)
    if named is not None:
        return dict(zip(names, inputs, strict=False)) | {named: targets}
    return inputs[0] if len(inputs) == 1 else tuple(inputs), targets


def _targets(outputs: Any, samples: int) -> Tensor:
    """Class indices where the output looks like logits, else noise of the output's shape."""
    output = main_output(outputs)
    if not isinstance(output, Tensor) or not output.is_floating_point():
        raise InputError(
            f"the model returns {type(outputs).__name__} and no tensor that targets could be made "
            "up for; write a test with the fixtures bncheck_model, bncheck_batch and bncheck_loss"
        )
    language = not isinstance(outputs, Tensor) and output.dim() == 3 and hasattr(outputs, "logits")
    if language or (output.dim() == 2 and output.shape[0] == samples and output.shape[1] > 1):
        indices = torch.arange(output.shape[:-1].numel(), device=output.device)
        return (indices % classes(output.shape[-1])).reshape(output.shape[:-1])
    return torch.rand_like(output)
