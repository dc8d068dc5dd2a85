"""Switches of PyTorch for the whole process that a user's code can leave changed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

from pytest_bncheck.adapters.accelerators import kinds
from pytest_bncheck.adapters.switches import Switch, remember_all, variable
from pytest_bncheck.adapters.torch.internals import (
    default_device,
    remember_format,
    remember_modes,
    remember_nnpack,
    remember_precision,
    switches_of_the_core,
)


def _autocast() -> dict[str, tuple[bool, torch.dtype]]:
    """Whether each kind of device is under autocast, and its type there."""
    found = {}
    for kind in ("cpu", *kinds()):
        with suppress(RuntimeError):  # a device without autocast
            found[kind] = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    return found


def _plain_switches() -> list[Switch]:
    """Switches that are read and written without more ado; a version may lack some."""
    backends: Any = torch.backends
    matmul, later = backends.cuda.matmul, torch.__future__
    sparse: Any = torch.sparse.check_sparse_tensor_invariants
    attributes = (
        (matmul, "allow_fp16_reduced_precision_reduction"),
        (matmul, "allow_bf16_reduced_precision_reduction"),
        (matmul, "allow_fp16_accumulation"),
        (backends.cudnn, "benchmark_limit"),
        (backends.opt_einsum, "enabled"),
        (backends.opt_einsum, "strategy"),
        (backends.quantized, "engine"),
    )
    return [
        *(variable(owner, name) for owner, name in attributes if _is_there(owner, name)),
        (
            backends.cuda.fp16_bf16_reduction_math_sdp_allowed,
            backends.cuda.allow_fp16_bf16_reduction_math_sdp,
        ),
        (sparse.is_enabled, lambda on: sparse.enable() if on else sparse.disable()),
        (
            later.get_overwrite_module_params_on_conversion,
            later.set_overwrite_module_params_on_conversion,
        ),
        (later.get_swap_module_params_on_conversion, later.set_swap_module_params_on_conversion),
        (torch.multiprocessing.get_sharing_strategy, torch.multiprocessing.set_sharing_strategy),
        *switches_of_the_core(),
    ]


def _is_there(owner: Any, name: str) -> bool:
    with suppress(AttributeError, RuntimeError):
        getattr(owner, name)
        return True
    return False


def global_flags() -> Callable[[], None]:
    """Remember the process-wide switches of PyTorch that a user's code can leave changed."""
    grad, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
    device, put_precision_back = default_device(), remember_precision()
    anomaly = torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn
    switches = (cudnn.enabled, cudnn.benchmark, cudnn.deterministic)
    autocast = _autocast()
    fill: Any = torch.utils.deterministic
    cache = torch.is_autocast_cache_enabled()
    filled, always = fill.fill_uninitialized_memory, torch.is_warn_always_enabled()
    products: Any = torch.backends.cuda
    kernels = {
        products.enable_flash_sdp: products.flash_sdp_enabled(),
        products.enable_mem_efficient_sdp: products.mem_efficient_sdp_enabled(),
        products.enable_math_sdp: products.math_sdp_enabled(),
        products.enable_cudnn_sdp: products.cudnn_sdp_enabled(),
    }
    threads, cores = torch.autograd.is_multithreading_enabled(), torch.get_num_threads()
    put_format_back = remember_format()
    onednn: Any = torch.backends.mkldnn
    mkldnn = onednn.is_available() and onednn.enabled
    attention: Any = torch.backends.mha
    fast = attention.get_fastpath_enabled()
    put_modes_back, put_nnpack_back = remember_modes(), remember_nnpack()
    put_plain_ones_back = remember_all(_plain_switches())

    def undo() -> None:
        put_modes_back()  # first: a mode that is left on changes what all others do
        if default_device() != device:
            torch.set_default_device(device)
        torch.set_grad_enabled(grad)
        torch.set_default_dtype(dtype)
        put_precision_back()
        torch.autograd.set_detect_anomaly(*anomaly)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        cudnn.enabled, cudnn.benchmark, cudnn.deterministic = switches
        for kind, (on, low) in autocast.items():
            torch.set_autocast_enabled(kind, on)
            torch.set_autocast_dtype(kind, low)
        torch.autograd.set_multithreading_enabled(threads)
        if torch.get_num_threads() != cores:
            torch.set_num_threads(cores)
        put_format_back()
        torch.set_autocast_cache_enabled(cache)
        torch.set_warn_always(always)
        fill.fill_uninitialized_memory = filled
        for switch, on in kernels.items():
            switch(on)
        if onednn.is_available() and onednn.enabled != mkldnn:
            onednn.set_flags(mkldnn)
        attention.set_fastpath_enabled(fast)
        put_nnpack_back()
        put_plain_ones_back()

    return undo
