"""ResNet-50 on a GPU, in PyTorch and in Keras: the same verdicts as on the CPU, and what it costs.

    python benchmarks/gpu.py [--table FILE] [--framework torch|keras] [--smoke]

For a machine that has the frameworks already; `tox -e gpu` installs them. Runs PyTorch, and Keras
on PyTorch and on JAX, or on the backend of KERAS_BACKEND alone, and then the tests that are marked
`device` on the GPU. The exit code is 1 where a verdict is not the CPU's, or not the one that is
right, or a test fails. Where there is no GPU, and with `--smoke`, small nets go the same way on the
CPU, and their times say nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pairs import pairs, spread

from pytest_bncheck import check

STEPS = 20
ROOT = Path(__file__).parents[1]
STORY = ROOT / "fixtures" / "three_images_keras"
BACKENDS = ("torch", "jax", "tensorflow")

CASES: dict[str, tuple[dict[str, int], str]] = {
    "5 steps": ({"steps": 5}, "fail BN101"),
    "as after 1000": ({"steps": 5, "planned_updates": 1000}, "pass"),
}
"""Options of a check, and what it should find: verdict and codes."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--framework", choices=RUNS, help="one of them, in this process")
    parser.add_argument("--smoke", action="store_true", help="small nets on the CPU")
    parser.add_argument("--table", type=Path, help="write a table of the results to this file")
    options = parser.parse_args()
    if options.framework is not None:
        return RUNS[options.framework](options.smoke)
    failed, lines = 0, []
    for framework, backend in parts():  # each alone on the GPU, whose memory JAX would take whole
        command = [sys.executable, __file__, "--framework", framework]
        command += ["--smoke"] * options.smoke
        code, printed = told(command, {"KERAS_BACKEND": backend} if backend else {})
        failed, lines = failed + (code != 0), lines + printed
    if not options.smoke and gpu_of("torch") is not None:
        code, printed = told(*device_tests())
        failed, lines = failed + (code != 0), [*lines, "Tests", *printed[-1:]]
    if options.table is not None:
        options.table.write_text(table(lines), encoding="utf-8")
    return int(failed > 0)


def parts() -> list[tuple[str, str]]:
    """Every framework that is installed, with the backend of Keras."""
    there = [name for name in BACKENDS if importlib.util.find_spec(name)]
    found = [("torch", "")] if "torch" in there else []
    chosen = os.environ.get("KERAS_BACKEND")
    if importlib.util.find_spec("keras"):
        usual = [name for name in there if name != "tensorflow"] or there
        found += [("keras", backend) for backend in ([chosen] if chosen else usual)]
    for framework in RUNS:
        if framework not in dict(found):
            print(f"{framework}: skipped, it is not installed", flush=True)
    return found


def told(command: list[str], environment: dict[str, str]) -> tuple[int, list[str]]:
    """Run a command; its exit code and lines, which are printed too."""
    lines = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, **environment}
    ) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            lines.append(line.rstrip())
    return process.returncode, lines


def device_tests() -> tuple[list[str], dict[str, str]]:
    """The command that runs the tests for any device on this one, and its environment."""
    files = ("tests/adapters/torch", "tests/trust/test_left_as_found.py")
    kind = accelerator() or "cpu"
    return [sys.executable, "-m", "pytest", "-q", *files], {"BNCHECK_DEVICE": kind}


def table(lines: list[str]) -> str:
    """What was printed, as a table in Markdown: a row for each figure, under its framework."""
    rows, headline = ["| where | what | found |", "| --- | --- | --- |"], ""
    for line in filter(None, lines):
        if not line.startswith("  ") and headline != "Tests":
            headline = line
            continue
        what, _, found = line.strip().rpartition(": ")
        rows.append(f"| {headline} | {what or '-'} | {found} |")
    return "\n".join(rows) + "\n"


def three_images(small: bool) -> tuple[Any, Any]:
    """Those of the Keras story, or every fourth of their pixels."""
    sys.path.insert(0, str(STORY))
    from images import three_images as drawn

    images, labels = drawn()
    return images[:, ::4, ::4] if small else images, labels


# PyTorch ----------------------------------------------------------------------------------------


def run_torch(smoke: bool) -> int:
    import torch
    from cost import resnet
    from torch.nn import functional

    gpu = None if smoke else gpu_of("torch")
    device = "cpu" if gpu is None else f"{accelerator()}:0"
    headline(f"PyTorch {torch.__version__}", gpu, smoke)
    images, labels = three_images(gpu is None)
    images = torch.from_numpy(images).permute(0, 3, 1, 2).repeat(1, 3, 1, 1) / 255
    batch = images, torch.from_numpy(labels)
    depth = 18 if gpu is None else 50

    def net(momentum: float, depth: int) -> Any:
        model = resnet(depth)
        for module in model.modules():
            if hasattr(module, "momentum"):
                module.momentum = momentum
        return model

    def story(on: str, **options: Any) -> Any:
        return check(net(0.01, depth), batch, device=on, **options)

    def story_under_autocast(on: str, **options: Any) -> Any:
        autocast = torch.autocast(torch.device(on).type, torch.bfloat16)
        return story(on, forward=autocast(lambda model, batch: model(batch[0])), **options)

    def checked(depth: int = depth) -> Any:
        return check(net(0.4, depth).to(device), batch, steps=STEPS)

    def bare() -> None:
        model = net(0.4, depth).to(device)
        images, labels = (tensor.to(device) for tensor in batch)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for _ in range(STEPS):
            optimizer.zero_grad()
            functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
        with torch.no_grad():
            model(images)
            model.eval()(images).cpu()

    wrong = [compare(case, device, story) for case in CASES]
    wrong.append(compare("autocast", device, story_under_autocast))
    if gpu is not None:
        pairs(checked, bare, 1)  # the first calls load kernels and choose among them
    measured = pairs(checked, bare, 1 if gpu is None else 5)
    print(f"  check / bare loop of {STEPS} steps and 2 forwards: {spread(measured)}", flush=True)
    if gpu is not None:
        for layers in (50, 152):
            count_synchronisations(partial(checked, layers))
    return int(any(wrong))


# Keras ------------------------------------------------------------------------------------------


def run_keras(smoke: bool) -> int:
    installed = [name for name in BACKENDS if importlib.util.find_spec(name)]
    backend = os.environ.get("KERAS_BACKEND") or next(
        (name for name in installed if gpu_of(name) is not None), installed[0]
    )
    os.environ["KERAS_BACKEND"] = backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    gpu = None if smoke else gpu_of(backend)
    # "cuda" is the first GPU, in the words of every backend.
    kind = accelerator() if backend == "torch" else "cuda"
    device = "cpu" if gpu is None else str(kind)
    headline(f"Keras {keras.__version__} on {backend}", gpu, smoke)
    batch = three_images(gpu is None)

    def net() -> Any:
        keras.utils.set_random_seed(0)
        return small_net(keras) if gpu is None else full_net()

    def checked(on: str = device, **options: Any) -> Any:
        return check(net(), batch, device=on, **options)

    def script() -> None:
        model, (images, labels) = net(), batch
        model.fit(images, labels, epochs=5, verbose=0)
        model.predict(images, verbose=0)
        model.evaluate(images, labels, verbose=0)

    wrong = [compare(case, device, checked) for case in CASES]
    measured = pairs(partial(checked, steps=5), script, 1 if gpu is None else 3)
    print(f"  check / script (fit 5 epochs, predict, evaluate): {spread(measured)}", flush=True)
    if gpu is not None and backend == "torch":
        count_synchronisations(partial(checked, steps=5))
    return int(any(wrong))


def full_net() -> Any:
    """The ResNet-50 of the three-image repo."""
    from model import build_resnet

    return build_resnet()


def small_net(keras: Any) -> Any:
    layers = [keras.Input((50, 50, 1)), keras.layers.Rescaling(1 / 255)]
    for width in (8, 16):
        convolution = keras.layers.Conv2D(width, 3, strides=2, use_bias=False)
        layers += [convolution, keras.layers.BatchNormalization(), keras.layers.ReLU()]
    layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3, activation="softmax")]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy")
    return model


# both -------------------------------------------------------------------------------------------


def accelerator() -> str | None:
    """The kind of accelerator that PyTorch sees: ``cuda``, ``xpu``, ``mps``, a third party's."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return None if found is None else found.type


def gpu_of(backend: str) -> str | None:
    """The name of the first GPU that a backend sees."""
    if backend == "torch":
        import torch

        kind = accelerator()
        name = getattr(torch.get_device_module(kind), "get_device_name", None) if kind else None
        return name(0) if name is not None else kind
    if backend == "jax":
        import jax

        found = [d for d in jax.devices() if d.platform in ("gpu", "cuda", "rocm")]
        return str(found[0].device_kind) if found else None
    import tensorflow as tf

    return next((device.name for device in tf.config.list_physical_devices("GPU")), None)


def headline(framework: str, gpu: str | None, smoke: bool) -> None:
    print(f"{framework}, {gpu or platform.machine() + ' CPU'}", flush=True)
    if gpu is None:
        why = "--smoke asks for the small form" if smoke else "it sees no GPU"
        print(f"  The GPU part is skipped: {why}. Small nets go the same way on the CPU.")


def compare(case: str, device: str, run: Callable[..., Any]) -> bool:
    """Check on a device and on the CPU, print both; whether one is not as it should be."""
    options, right = CASES.get(case) or CASES["as after 1000"]
    wrong = False
    for on in dict.fromkeys((device, "cpu")):
        begin = time.perf_counter()
        report = run(on, **options)
        seconds = time.perf_counter() - begin
        found = " ".join([report.verdict, *(finding.code for finding in report.findings)])
        wrong |= found != right
        shown = report.predictions
        print(
            f"  {case}, {report.device}: {found}{'' if found == right else f', NOT {right}'}; "
            f"gap {shown.gap:.2f}, distortion {shown.distortion:.2f}, {seconds:.1f} s",
            flush=True,
        )
    return wrong


def count_synchronisations(run: Callable[[], Any]) -> None:
    """Print how often the host waited for the GPU during a check, as far as PyTorch tells."""
    import torch

    if accelerator() not in (None, "cuda"):
        print("  host synchronisations: PyTorch counts those of CUDA only")
        return
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            report = run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    count = sum("synchronizing" in str(warning.message) for warning in caught)
    print(
        f"  host synchronisations of a check ({report.verdict}) with {len(report.layers)} layers "
        f"and {report.steps} steps: {count}",
        flush=True,
    )


RUNS: dict[str, Callable[[bool], int]] = {"torch": run_torch, "keras": run_keras}


if __name__ == "__main__":
    sys.exit(main())
