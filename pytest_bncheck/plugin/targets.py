"""Models that are checked with no test code: ``--bncheck-model package.module:factory``.

Each is a test of its own, with the mark, so that options, reports and pytest-xdist treat it as
any other.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from pytest_bncheck.errors import InputError
from pytest_bncheck.plugin import attempt as attempts
from pytest_bncheck.plugin.failing import check_failed, is_check_failed
from pytest_bncheck.plugin.marks import MARKER

ROOT = "bncheck"
"""The node that the tests hang under."""

_ALLOWED = "allowed: package.module:factory"
_SHAPES = "allowed: sizes with the samples first, such as 8x3x64x64 or int64:8x128, by commas"
_MACHINERY = {"_pytest", "pluggy", "pytest_bncheck", "importlib"}
"""Whose frames a user's error is shown without."""


class Target(NamedTuple):
    """A model to check.

    Attributes
    ----------
    spec
        ``package.module:factory``.
    inputs
        Its inputs as the user gave them; empty to find them by trying.
    name
        Of its test.
    """

    spec: str
    inputs: str
    name: str


def parse(specs: Sequence[str], inputs: Sequence[str]) -> tuple[Target, ...]:
    """The models of the options, each with its inputs.

    Raises
    ------
    InputError
        For the first option that cannot be used.
    """
    from pytest_bncheck.adapters import invented

    for spec in specs:
        module, _, name = spec.partition(":")
        parts = [*module.split("."), *name.split(".")]
        if not all(part.isidentifier() for part in parts):
            raise InputError(f"--bncheck-model={spec} cannot be used; {_ALLOWED}")
    for text in inputs:
        try:
            invented.parse(text)
        except ValueError:
            raise InputError(f"--bncheck-input={text} cannot be used; {_SHAPES}") from None
    if inputs and not specs:
        raise InputError("--bncheck-input is given without --bncheck-model, whose model takes it.")
    if len(inputs) not in (0, 1, len(specs)):
        raise InputError(
            f"--bncheck-input is given {len(inputs)} times and --bncheck-model {len(specs)} times; "
            "give it once for all models, or once for each."
        )
    each = list(inputs) if len(inputs) == len(specs) else [*inputs, ""][:1] * len(specs)
    pairs = dict.fromkeys(zip(specs, each, strict=True))
    return tuple(
        Target(spec, text, f"{spec}[{text}]" if specs.count(spec) > 1 and text else spec)
        for spec, text in pairs
    )


# collection ---------------------------------------------------------------------------------------


class Models(pytest.Collector):
    """The node of all models."""

    def collect(self) -> Iterable[pytest.Item]:
        """A test for each model."""
        from pytest_bncheck.plugin.stash import SESSION

        for target in self.config.stash[SESSION].targets:
            yield ModelTest.from_parent(self, name=target.name, target=target)


def collector(session: pytest.Session) -> pytest.Collector:
    """The node of all models, under the session."""
    node: pytest.Collector = Models.from_parent(
        session, name=ROOT, nodeid=ROOT, path=session.config.rootpath
    )
    return node


class ModelTest(pytest.Item):
    """The test of one model."""

    def __init__(self, *, target: Target, **node: Any) -> None:
        super().__init__(**node)
        self.target = target
        self._line: tuple[Path, int] | None = None
        self.add_marker(MARKER)

    def runtest(self) -> None:
        """Make the model and a batch for it, and check it."""
        __tracebackhide__ = True
        model, batch = self._model_and_batch()
        report = attempts.run_check(self, model, batch, None, {}, {})
        if not report.ok:
            raise check_failed(report)

    def _model_and_batch(self) -> tuple[Any, Any]:
        """The model as it is made, and a batch that it takes."""
        __tracebackhide__ = True
        from pytest_bncheck import adapters
        from pytest_bncheck.adapters import invented

        target = self.target
        shapes = invented.parse(target.inputs) if target.inputs else None
        with importing_from(self.config.invocation_params.dir):
            factory = load(target.spec)
            self._line = _line_of(factory, self.config.rootpath)
            vars(self).pop("location", None)  # pytest has asked already, before it was known
            if not isinstance(factory, type) and self._adapter(factory) is not None:
                raise InputError(
                    f"--bncheck-model={target.spec} is itself a model; name a function that makes "
                    "one, so that each check gets a fresh model."
                )
            make = prepared(factory, target.spec, shapes[0].sizes if shapes else None)
            with attempts.seeded(self, "function"):
                model = make()
                if inspect.iscoroutine(model):
                    model.close()
                    raise InputError(f"--bncheck-model={target.spec} is a coroutine function.")
                adapter = adapters.require(self.ihook.pytest_bncheck_adapters(model=model), model)
                made = adapter.invent(model, shapes)
            if made.ran:
                with attempts.seeded(self, "function"):
                    model = make()
        return model, made.batch

    def _adapter(self, model: Any) -> Any:
        return self.ihook.pytest_bncheck_adapters(model=model)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The message of a check or of a wrong option; of any other error the user's frames."""
        error = excinfo.value
        if isinstance(error, InputError) or is_check_failed(error):
            return excinfo.getrepr(style="value")
        last = error.__traceback__
        while last is not None and _is_machinery(last.tb_frame.f_globals):
            last = last.tb_next
        shown = pytest.ExceptionInfo.from_exception(error.with_traceback(last)) if last else excinfo
        return super().repr_failure(shown, style)

    def reportinfo(self) -> tuple[Path, int, str]:
        """Where it stands in reports: the line of the callable, once it is known."""
        path, line = self._line or (self.path, 0)  # without a line pytest cannot skip it
        return path, line, self.nodeid


def _line_of(factory: Callable[..., Any], root: Path) -> tuple[Path, int] | None:
    """File and line of a callable of the project, counted from 0; None of any other."""
    try:
        path = Path(inspect.getsourcefile(factory) or "").resolve()
        line = inspect.getsourcelines(factory)[1] - 1
    except (TypeError, OSError):
        return None
    return (path, line) if path.is_relative_to(root.resolve()) else None


def _is_machinery(names: dict[str, Any]) -> bool:
    return str(names.get("__name__", "")).split(".")[0] in _MACHINERY


# what a spec names --------------------------------------------------------------------------------


@contextmanager
def importing_from(folder: Path) -> Iterator[None]:
    """Let modules of the working directory be imported, as ``python -m pytest`` does."""
    place = str(folder)
    sys.path.insert(0, place)
    try:
        yield
    finally:
        sys.path.remove(place)


def load(spec: str) -> Callable[..., Any]:
    """The callable that a spec names.

    Raises
    ------
    InputError
        If there is none. What the module raises while it is imported is left alone.
    """
    __tracebackhide__ = True
    path, _, name = spec.partition(":")
    found: Any = _module(path, spec)
    place = path
    for part in name.split("."):
        if not hasattr(found, part):
            raise InputError(
                f"--bncheck-model={spec}: {place} has no {part!r}.{_near(part, found)}"
            )
        found, place = getattr(found, part), f"{place}.{part}"
    if isinstance(found, ModuleType) or not callable(found):
        raise InputError(
            f"--bncheck-model={spec}: {name} is a {type(found).__name__} and makes no model; "
            "name a function or a class."
        )
    return found  # type: ignore[no-any-return]


def _module(path: str, spec: str) -> ModuleType:
    __tracebackhide__ = True
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if path != missing and not path.startswith(f"{missing}."):
            raise  # something that the module itself imports
    raise InputError(
        f"--bncheck-model={spec}: there is no module {missing!r}; it is looked for in the "
        "working directory and where Python imports from."
    )


def _near(name: str, place: Any) -> str:
    import difflib

    near = difflib.get_close_matches(name, [each for each in dir(place) if each[0] != "_"], n=3)
    return f" Near: {', '.join(near)}." if near else ""


def prepared(
    factory: Callable[..., Any], spec: str, sizes: tuple[int, ...] | None
) -> Callable[[], Any]:
    """The factory with the arguments that it needs here.

    A model that would be downloaded is made without weights, as it is trained anyway; one that
    is made for a shape of its inputs, as those of ``keras.applications`` are, gets it.

    Raises
    ------
    InputError
        If it has required arguments.
    """
    __tracebackhide__ = True
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # a builtin without a signature
        return factory
    open_ended = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = [
        name
        for name, each in parameters.items()
        if each.default is each.empty and each.kind not in open_ended
    ]
    if required:
        raise InputError(
            f"--bncheck-model={spec} needs arguments ({', '.join(required)}); name a function "
            "without required arguments that returns the model."
        )
    given: dict[str, Any] = {}
    if "weights" in parameters and parameters["weights"].default is not None:
        given["weights"] = None
    if "weights" in parameters and "input_shape" in parameters and sizes:
        given["input_shape"] = sizes[1:]
    return lambda: factory(**given)
