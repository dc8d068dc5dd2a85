"""The options of a check: one table for call, marker, command line and ini file alike.

Each surface gives a `Source`, the options that it sets with their origin; `merge` and `recipe` put
sources together, strongest first. An option that is None is not given.
"""

from __future__ import annotations

import inspect
import math
import numbers
import operator
import reprlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from pytest_bncheck.errors import InputError

if TYPE_CHECKING:
    from pytest_bncheck.types import Recipe, Settings

INTENDED = (
    "stochastic-eval",
    "batch-statistics-in-eval",
    "frozen-batchnorm",
    "mode-dependent-path",
)


class Given(NamedTuple):
    """A value that the user gave, and its origin: ``"call"``, ``"--bncheck-seed"``."""

    value: Any
    origin: str


Source: TypeAlias = Mapping[str, Given]
"""The options that one place sets, by name."""


class Option(NamedTuple):
    """One row of the table.

    Attributes
    ----------
    parse
        Turns what the user wrote into the value; raises TypeError or ValueError.
    allowed
        What the user may write, as error messages say it.
    help
        One sentence for ``--help``, the ini file and the reference.
    metavar
        The value's placeholder in ``--help``.
    repeatable
        Whether the command line collects several values.
    in_code
        Whether only code gives it: command line and ini file have no such option.
    """

    parse: Callable[[Any], Any]
    allowed: str
    help: str
    metavar: str = ""
    repeatable: bool = False
    in_code: bool = False


# parsing ----------------------------------------------------------------------------------------


def _whole(low: int, high: float = math.inf) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        if isinstance(value, bool):
            raise TypeError
        number = int(value) if isinstance(value, str) else operator.index(value)
        if not low <= number <= high:
            raise ValueError
        return number

    return parse


def _steps(value: Any) -> int | str:
    if isinstance(value, str) and value == "auto":
        return value
    return _whole(0, 10**9)(value)  # more than anybody waits for


def _tolerance(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (str, numbers.Real)):
        raise TypeError
    number = float(value)
    if not 0 < number < math.inf:
        raise ValueError
    return number


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    words = {"true": True, "yes": True, "on": True, "1": True}
    words |= {"false": False, "no": False, "off": False, "0": False}
    return words[value.lower()]


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise TypeError
    return value.strip()


def _texts(value: Any) -> list[str]:
    if isinstance(value, Mapping) or not isinstance(value, Iterable):
        raise TypeError
    items = value.split(",") if isinstance(value, str) else value
    return [_text(item) for item in items]


def _select(value: Any) -> tuple[str, ...]:
    texts = [text for item in _texts(value) for text in _texts(item)]
    return tuple(_known_rule(text) for text in texts)


def _ignore(value: Any) -> dict[str, str | None]:
    if isinstance(value, str):
        value = [value]
    if isinstance(value, Mapping):
        pairs = [(_text(rule), reason) for rule, reason in value.items()]
    else:
        pairs = [_split_reason(text) for text in _texts(value)]
    return {_known_rule(rule): _text(reason) if reason else None for rule, reason in pairs}


def _split_reason(text: str) -> tuple[str, str]:
    if text.startswith("{"):  # A table in an ini file arrives as the text of a dict.
        raise ValueError
    rule, _, reason = text.partition(":")
    return rule.strip(), reason.strip()


def _known_rule(text: str) -> str:
    from pytest_bncheck import rules

    rules.resolve(text)
    return text


def _intended(value: Any) -> tuple[str, ...]:
    names = _texts(value)
    if not set(names) <= set(INTENDED):
        raise ValueError
    return tuple(names)


def _function(arguments: int) -> Callable[[Any], Any]:
    """A function that can be called with this many positional arguments."""

    def parse(value: Any) -> Any:
        if not callable(value) or isinstance(value, type):  # nn.MSELoss in place of nn.MSELoss()
            raise TypeError
        if inspect.isroutine(value) and not _takes(value, arguments):
            raise TypeError
        return value

    return parse


def _forward(value: Any) -> Any:
    """A function of model and batch, and perhaps of the mode."""
    if not callable(value):
        raise TypeError
    fits = _takes(value, 2) or _takes(value, 3) or _takes(value, 2, training=True)
    if inspect.isroutine(value) and not fits:
        raise TypeError
    return value


def _takes(function: Any, arguments: int, **named: Any) -> bool:
    try:
        inspect.signature(function).bind(*range(arguments), **named)
    except TypeError:
        return False
    except ValueError:  # a builtin without a signature
        return True
    return True


def _optimizer(value: Any) -> Any:
    if not (callable(value) or hasattr(value, "step") or hasattr(value, "apply_gradients")):
        raise TypeError
    return value


# the table --------------------------------------------------------------------------------------

_RULES = "codes, names or prefixes of rules, such as BN101, running-stats-invalid or BN3"

OPTIONS: Mapping[str, Option] = {
    "steps": Option(
        _steps,
        'a whole number from 0 to 10**9, or "auto"',
        "Training steps of a check: a whole number, or auto (default) to train until the running "
        "statistics have settled.",
        "N|auto",
    ),
    "planned_updates": Option(
        _whole(1, 2**53),  # beyond it not every number of updates is a float
        "a whole number from 1 to 2**53",
        "How many updates the real training makes; the verdict is then about the running "
        "statistics at its end.",
        "N",
    ),
    "device": Option(
        _text,
        'a device as the framework names it, such as "cpu" or "cuda:1", or "auto"',
        "Where to run: cpu, cuda, cuda:1, mps or auto (default: where the model is).",
        "DEVICE",
    ),
    "seed": Option(
        _whole(0, 2**32 - 1),
        "a whole number from 0 to 2**32 - 1",
        "Seed of every random generator during a check (default: 0).",
        "N",
    ),
    "select": Option(
        _select,
        _RULES,
        "Report only these rules: codes, names or prefixes, separated by commas.",
        "RULES",
        repeatable=True,
    ),
    "ignore": Option(
        _ignore,
        f'{_RULES}, each alone or as "RULE: reason"',
        "Do not count a rule's findings: a code, name or prefix, alone or as 'RULE: reason'.",
        "RULE[: REASON]",
        repeatable=True,
    ),
    "gap_tolerance": Option(
        _tolerance,
        "a finite number > 0",
        "Largest relative difference between eval and training predictions (default: 0.25).",
        "X",
    ),
    "distortion_tolerance": Option(
        _tolerance,
        "a finite number > 0",
        "Largest distortion of a layer, in standard deviations of its normalised output "
        "(default: 0.10).",
        "X",
    ),
    "strict": Option(_flag, "true or false", "Warnings fail too."),
    "intended": Option(
        _intended,
        ", ".join(f'"{name}"' for name in INTENDED),
        "Designs that look like a fault and are none; the rules about them fall silent, all others "
        "still apply.",
        in_code=True,
    ),
    "restore": Option(
        _flag,
        "True or False",
        "Whether the model gets its weights back; with False it keeps those that the check's "
        "steps gave it.",
        in_code=True,
    ),
    "loss": Option(
        _function(2),
        "a function loss(outputs, targets)",
        "What training minimises, where outputs and targets suggest something else.",
        in_code=True,
    ),
    "optimizer": Option(
        _optimizer,
        "a function optimizer(params) or an optimizer of the model's framework",
        "What makes the training steps, where Adam with a learning rate of 0.001 is not right.",
        in_code=True,
    ),
    "train_step": Option(
        _function(2),
        "a function train_step(model, batch) that returns the loss",
        "The whole training step, where it is more than a loss and an optimizer.",
        in_code=True,
    ),
    "forward": Option(
        _forward,
        "a function forward(model, batch) or forward(model, batch, training) that "
        "returns the outputs",
        "How the model predicts a batch, where it is not called on the inputs.",
        in_code=True,
    ),
}

RECIPE = ("loss", "optimizer", "train_step", "forward")


def parse(name: str, value: Any, origin: str) -> Any:
    """The normalised value of an option.

    Parameters
    ----------
    name, value
        The option and what the user wrote for it.
    origin
        Where it came from: ``"call"``, ``"marker"``, ``"--bncheck-seed"``.

    Raises
    ------
    InputError
        Names the option, the value, where it came from and what is allowed.
    """
    if name not in OPTIONS:
        raise InputError(_unknown(name, origin))
    try:
        return OPTIONS[name].parse(value)
    except InputError as error:
        reason = str(error)
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
        reason = f"allowed: {OPTIONS[name].allowed}"
    raise InputError(f"{name}={_short(value)} (from {origin}) cannot be used; {reason}")


def _unknown(name: str, origin: str) -> str:
    import difflib

    close = difflib.get_close_matches(name, OPTIONS, n=1)
    hint = f'did you mean "{close[0]}"?' if close else f"known are {', '.join(OPTIONS)}."
    return f'unknown option "{name}" (from {origin}); {hint}'


def _short(value: Any) -> str:
    """A repr that stays on one line; values can be tensors, or hold whole models."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 80
    return " ".join(short.repr(value).split())


# sources ----------------------------------------------------------------------------------------


def source(options: Mapping[str, Any], origin: str) -> Source:
    """The options that one place sets, validated; None means not set.

    Raises
    ------
    InputError
        For the first option that cannot be used.
    """
    return {
        name: Given(parse(name, value, origin), origin)
        for name, value in options.items()
        if value is not None or name not in OPTIONS
    }


def merge(*sources: Source) -> Settings:
    """Settings from sources, strongest first.

    The first source that sets an option decides; `ignore` and `intended` add up.
    """
    from pytest_bncheck.types import Settings

    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for name in OPTIONS:
        given = [source[name] for source in sources if name in source]
        if not given or name in RECIPE:
            continue
        values[name] = given[0].value
        origins[name] = given[0].origin
        if name == "ignore":
            values[name] = {k: v for item in reversed(given) for k, v in item.value.items()}
        elif name == "intended":
            values[name] = tuple(dict.fromkeys(text for item in given for text in item.value))
        if name in ("ignore", "intended"):
            origins[name] = ", ".join(dict.fromkeys(item.origin for item in given))
    return Settings(**values, origins=origins)


def recipe(*sources: Source) -> Recipe:
    """What the user supplies about training, from sources, strongest first."""
    from pytest_bncheck.types import Recipe

    values: dict[str, Any] = {}
    for name in RECIPE:
        values[name] = next((each[name].value for each in sources if name in each), None)
    return Recipe(**values)
