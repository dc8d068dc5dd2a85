"""Private names and undocumented words of PyTorch and Lightning; no other file has them.

What a check cannot do without is looked for when it starts, by `require_internals` and
`attach_fabric`. Everything else has a fall-back for a version that lacks it.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_bncheck.adapters.containers import members_of, refill
from pytest_bncheck.adapters.switches import Switch, variable
from pytest_bncheck.adapters.versions import find, require

# modules ------------------------------------------------------------------------------------------

_REGISTRIES = ("_modules", "_parameters", "_buffers")


def require_internals() -> None:
    """Raise an InputError if this version of PyTorch lacks a name that every check needs."""
    module = vars(nn.Module())
    missing = [name for name in _REGISTRIES if name not in module]
    require("PyTorch", torch.__version__, (f"torch.nn.Module.{name}" for name in missing))


def registries(module: nn.Module) -> list[dict[str, Any]]:
    """The dictionaries in which a module keeps its children, parameters and buffers."""
    own = vars(module)
    return [own[name] for name in _REGISTRIES if isinstance(own.get(name), dict)]


def script_attributes(module: torch.jit.ScriptModule) -> dict[str, Any]:
    """What a compiled module keeps outside of Python besides modules; none if it hides it.

    Its mode is not among them: every module has one.
    """
    kind, held = getattr(module, "_concrete_type", None), getattr(module, "_c", None)
    if kind is None or held is None:
        return {}
    names = [name for name in kind.get_attributes() if name != "training" and held.hasattr(name)]
    values = {name: held.getattr(name) for name in names}
    plain = (bool, int, float, str, type(None), list, dict, tuple, Tensor)
    return {name: value for name, value in values.items() if isinstance(value, plain)}


def global_hooks() -> list[dict[Any, Any]]:
    """The dictionaries of hooks that every module and every optimizer calls."""
    steps = sys.modules[torch.optim.Optimizer.__module__]  # no attribute of `torch.optim`
    held = [*vars(torch.nn.modules.module).items(), *vars(steps).items()]
    return [v for name, v in held if name.startswith("_global_") and isinstance(v, dict)]


_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


def hooks_of(tensor: Tensor) -> dict[str, tuple[Any, list[Any]]]:
    """The hooks of a tensor, by the attribute that holds them: the dictionary and its items."""
    held = {name: getattr(tensor, name, None) for name in _HOOKS}
    return {name: (hooks, members_of(hooks) if hooks else []) for name, hooks in held.items()}


def set_hooks(tensor: Tensor, before: dict[str, tuple[Any, list[Any]]]) -> None:
    """Give a tensor the hooks of `hooks_of` back."""
    for name, (hooks, items) in before.items():
        now = getattr(tensor, name, None)
        if now is not hooks:
            if now is not None and not tensor.is_leaf:
                now.clear()  # the graph keeps it
            setattr(tensor, name, hooks)
        if hooks is not None:
            refill(hooks, items)


def parameters_by_name(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """The dictionary of a module's parameters, with None for those that it does without."""
    return module._parameters


def buffers_by_name(module: nn.Module) -> dict[str, Tensor | None]:
    """The dictionary of a module's buffers, with None for those that it does without."""
    return module._buffers


def is_exported(model: object) -> bool:
    """Whether a model is an exported program as a module, which refuses to change its mode."""
    return isinstance(model, torch.fx.GraphModule) and "train" in vars(model)


def has_too_few_values(error: ValueError) -> bool:
    """Whether a layer refused to train on a single value per channel."""
    return "more than 1 value per channel" in str(error)


# torch.compile ------------------------------------------------------------------------------------

_COMPILED = "_orig_mod"
"""Where `torch.compile` keeps the module that it compiled."""


def uncompiled(model: Any) -> Any:
    """The module inside what `torch.compile` returns; any other as it is."""
    inner = attribute(model, _COMPILED)
    return model if inner is None else inner


def attribute(module: Any, name: str) -> Any:
    """An attribute, or None; also of a module that raises what it wants where it has none."""
    try:
        return getattr(module, name, None)
    except Exception:
        return None


def is_compiled(module: nn.Module) -> bool:
    """Whether a call of a module runs what `torch.compile` or its method ``compile`` made."""
    in_place = getattr(module, "_compiled_call_impl", None) is not None
    return in_place or uncompiled(module) is not module


def plain_name(path: str) -> str:
    """A path in a model without what `torch.compile` puts around modules."""
    return ".".join(part for part in path.split(".") if part != _COMPILED)


@contextmanager
def as_written() -> Iterator[None]:
    """A context in which compiled modules run as they were written.

    They compute the same; and compiled code would not see the hooks that watch a pass, and would
    be compiled again for every mode.
    """
    if "torch._dynamo" not in sys.modules:
        yield  # nothing is compiled
        return
    with force_eager(), warnings.catch_warnings():
        # torch warns of the hooks that watch a pass; here they may well see the wrapper too.
        warnings.filterwarnings("ignore", "Using `torch.compile.module.` when there are global")
        yield


def force_eager() -> AbstractContextManager[Any]:
    """Compile nothing for the time of a ``with`` block; before PyTorch 2.6 it does nothing."""
    stance = getattr(torch.compiler, "set_stance", None)
    return nullcontext() if stance is None else stance("force_eager")


def leave_uncompiled(function: Callable[..., Any]) -> None:
    """Let no program start at a function, as none starts at PyTorch's own modules."""
    names = ("skip_code", "set_code_exec_strategy", "_FrameExecStrategy", "_FrameAction")
    skip, choose, strategy, action = (find(f"torch._C._dynamo.eval_frame.{name}") for name in names)
    if skip is not None:  # in older versions
        skip(function.__code__)
    elif choose is not None:
        choose(function.__code__, strategy(action.SKIP, action.DEFAULT))


_SET_COMPILER = find("torch._C._dynamo.eval_frame.set_eval_frame")


def run_uncompiled(function: Callable[..., None], *args: Any) -> None:
    """Call a function, and let no program start at whatever it calls."""
    compiler = _SET_COMPILER(None) if _SET_COMPILER is not None else None
    try:
        function(*args)
    finally:
        if _SET_COMPILER is not None:
            _SET_COMPILER(compiler)


leave_uncompiled(run_uncompiled)

_TRACING = find("torch._C._get_tracing_state")
_TRANSFORMS = find("torch._C._functorch.maybe_current_level")
_MODES = find("torch._C._len_torch_dispatch_stack")


def runs_plainly() -> bool:
    """Whether what is called now computes with real tensors, once, and for nobody who looks on.

    Not so in a trace, under the transforms of torch.func, and in a mode such as that of fake
    tensors.
    """
    return not (
        (_TRACING is not None and _TRACING() is not None)
        or (_TRANSFORMS is not None and _TRANSFORMS() is not None)
        or (_MODES is not None and _MODES())
    )


# tensors and process-wide switches ----------------------------------------------------------------


_AS_PLAIN = find("torch._C.DisableTorchFunctionSubclass")


def as_plain_tensors() -> AbstractContextManager[Any]:
    """A context in which tensors of a user's class do what plain ones do, whatever it overrides."""
    return nullcontext() if _AS_PLAIN is None else _AS_PLAIN()


def version_of(tensor: Tensor) -> int | None:
    """How often autograd saw a tensor change in place; None if PyTorch does not tell."""
    return getattr(tensor, "_version", None)


def set_version(tensor: Tensor, version: int | None) -> None:
    """Tell autograd that a tensor is what it was, so that an earlier graph can still be used.

    Without the private function such a graph refuses its backward pass; the numbers are the same.
    """
    tell = find("torch._C._autograd._unsafe_set_version_counter")
    if tell is None or version is None or version_of(tensor) == version:
        return
    try:
        tell((tensor,), (version,))
    except TypeError:  # torch 2.6 takes one of each
        tell(tensor, version)


def swap_memory(one: Tensor, other: Tensor) -> None:
    """Let two tensors exchange what they hold, and remain the same objects.

    `torch.utils.swap_tensors` would refuse where a graph holds one of them, or make that graph
    refuse its backward pass; a graph refers to what is exchanged, and not to the objects.
    """
    swap = find("torch._C._swap_tensor_impl") or torch.utils.swap_tensors
    swap(one, other)


def default_device() -> torch.device | None:
    """The device that was set as the default, or None if none was.

    `torch.get_default_device` does not tell these apart, and a default that was set slows down
    every call. It is the fall-back all the same.
    """
    holder = getattr(torch, "_GLOBAL_DEVICE_CONTEXT", None)
    if holder is None:
        return torch.get_default_device()
    context = getattr(holder, "device_context", None)
    return None if context is None else context.device


_FUNCTION_MODES = find("torch.overrides._get_current_function_mode_stack")
_DISPATCH_MODES = find("torch.utils._python_dispatch._get_current_dispatch_mode_stack")
_DEVICE_MODE: Any = find("torch.utils._device.DeviceContext")


_ENTERED: list[torch.inference_mode] = []
"""Never left: that would bring the mode back which somebody's code forgot to leave."""


def remember_modes() -> Callable[[], None]:
    """Remember the modes that see every call of a function or an operation, but the device's."""
    stacks: list[tuple[Any, Any]] = [
        (_FUNCTION_MODES, TorchFunctionMode),
        (_DISPATCH_MODES, TorchDispatchMode),
    ]
    before = [(read, kind, read()) for read, kind in stacks if read is not None]
    inference = torch.is_inference_mode_enabled()

    def others(modes: list[Any]) -> list[Any]:
        return [mode for mode in modes if _DEVICE_MODE is None or type(mode) is not _DEVICE_MODE]

    def undo() -> None:
        for read, kind, modes in before:
            now, wanted = read(), others(modes)
            if [*map(id, others(now))] != [*map(id, wanted)]:
                for mode in reversed(now):
                    kind.__exit__(mode, None, None, None)
                devices = [mode for mode in now if mode not in others(now)]
                for mode in [*devices, *wanted]:
                    kind.__enter__(mode)
        if torch.is_inference_mode_enabled() != inference:
            other = torch.inference_mode(inference)
            other.__enter__()
            _ENTERED.append(other)

    return undo


def remember_nnpack() -> Callable[[], None]:
    """Remember whether NNPACK computes convolutions; versions that do not tell are left alone."""
    read, write = find("torch._C._get_nnpack_enabled"), find("torch._C._set_nnpack_enabled")
    on = read() if read is not None and write is not None else None
    return lambda: None if on is None else write(on)


_PAIRS = (
    ("torch._C._get_sdp_priority_order", "torch._C._set_sdp_priority_order"),
    ("torch._C._is_view_replay_enabled", "torch._C._set_view_replay_enabled"),
    ("torch._C._is_fwd_grad_enabled", "torch._C._set_fwd_grad_enabled"),
    ("torch._C._get_mkldnn_deterministic", "torch._C._set_mkldnn_deterministic"),
    ("torch._C._get_graph_executor_optimize", "torch._C._set_graph_executor_optimize"),
)
_VARIABLES = (
    ("torch.nn.modules.module", "_global_is_full_backward_hook"),
    ("torch.nn.utils.parametrize", "_cache_enabled"),
)


def switches_of_the_core() -> list[Switch]:
    """Switches without a public name; those that a version lacks are left alone."""
    pairs = [(find(read), find(write)) for read, write in _PAIRS]
    variables = [(find(owner), name) for owner, name in _VARIABLES]
    stacks = (_HOOKS_OF_SAVED, _read_saved, _leave_saved), (_LEVEL, _read_level, _leave_levels)
    return [
        *((read, write) for read, write in pairs if read is not None and write is not None),
        *(variable(owner, name) for owner, name in variables if hasattr(owner, name)),
        *((read, leave) for known, read, leave in stacks if known is not None),
    ]


_LEVEL = find("torch.autograd.forward_ad._current_level")
_HOOKS_OF_SAVED = find("torch._C._autograd._top_saved_tensors_default_hooks")


def _read_saved() -> Any:
    """The innermost hooks for what graphs save, also those that are off in a trace."""
    return _HOOKS_OF_SAVED(True)


def _leave_saved(hooks: Any) -> None:
    leave = find("torch._C._autograd._pop_saved_tensors_default_hooks")
    while _read_saved() not in (None, hooks):
        leave()


def _read_level() -> int:
    return torch.autograd.forward_ad._current_level


def _leave_levels(level: int) -> None:
    """Leave the levels of forward differentiation that were entered and not left."""
    levels: Any = torch.autograd.forward_ad
    while _read_level() > level:
        levels.exit_dual_level()


# autograd graphs ----------------------------------------------------------------------------------

_VIEWS = ("View", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Select", "Alias", "Clone")
_OPERATIONS = {"LogSoftmax": "log_softmax", "Softmax": "softmax", "Sigmoid": "sigmoid"}


_CUDA = (".cuda.matmul", ".cudnn", ".cudnn.conv", ".cudnn.rnn")
_PRECISIONS = ("", *_CUDA, ".mkldnn", ".mkldnn.matmul", ".mkldnn.conv", ".mkldnn.rnn")


def remember_precision() -> Callable[[], None]:
    """Remember how exactly float32 is multiplied, by both of PyTorch's interfaces to that.

    The older one cannot be read once the newer one was written to.
    """
    parts = [find(f"torch.backends{part}") for part in _PRECISIONS]
    newer = [part for part in parts if hasattr(part, "fp32_precision")]  # the wider ones first
    before = [part.fp32_precision for part in newer]
    matmul, convolutions = _or_none(torch.get_float32_matmul_precision), _or_none(_read_tf32)

    def undo() -> None:
        if matmul not in (None, _or_none(torch.get_float32_matmul_precision)):
            torch.set_float32_matmul_precision(matmul)
        if convolutions not in (None, _or_none(_read_tf32)):
            torch.backends.cudnn.allow_tf32 = convolutions
        for part, value in zip(newer, before, strict=True):
            if part.fp32_precision != value:
                part.fp32_precision = value

    return undo


def _read_tf32() -> bool:
    return torch.backends.cudnn.allow_tf32


def _or_none(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except RuntimeError:
        return None


def remember_format() -> Callable[[], None]:
    """Remember how tensors are printed, and whether distributions look at their arguments."""
    kind: Any = torch.distributions.Distribution
    options = find("torch._tensor_str.PRINT_OPTS")
    checked = getattr(kind, "_validate_args", None)
    printed = {} if options is None else dict(vars(options))

    def undo() -> None:
        if checked is not None:
            kind.set_default_validate_args(checked)
        if options is not None:
            vars(options).update(printed)

    return undo


def last_operation(output: Tensor) -> str:
    """softmax, log_softmax, sigmoid or logits, read from the names of nodes in the autograd graph.

    Values cannot tell: most untrained networks with one output stay within [0, 1].
    """
    node: Any = output.grad_fn
    while node is not None and node.name().startswith(_VIEWS):
        node = node.next_functions[0][0] if node.next_functions else None
    name = "" if node is None else node.name()
    found = (kind for operation, kind in _OPERATIONS.items() if name.startswith(operation))
    return next(found, "logits")


# Lightning ----------------------------------------------------------------------------------------


def attach_fabric(module: Any, fabric: Any, version: str) -> None:
    """Give a LightningModule something in its Trainer's place.

    Parameters
    ----------
    version
        Lightning's, for the error.

    Raises
    ------
    InputError
        If this version of Lightning has no place for it.
    """
    missing = [name for name in ("_fabric", "_fabric_optimizers") if not hasattr(module, name)]
    require("Lightning", version, (f"LightningModule.{name}" for name in missing))
    module._fabric, module._fabric_optimizers = fabric, []


def fabric_of(module: Any) -> Any:
    """What stands in the place of a LightningModule's Trainer."""
    return module._fabric


def set_optimizers(module: Any, optimizers: list[Any]) -> None:
    """The optimizers that a LightningModule gets from ``self.optimizers()``."""
    module._fabric_optimizers = optimizers
