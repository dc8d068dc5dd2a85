"""Values that strict JSON and another process can hold."""

from __future__ import annotations

import math
from typing import Any


def exact(value: Any) -> Any:
    """`value` in exact builtins, ready for strict JSON and for another process.

    A subclass of str, int or float (a numpy scalar, an enum) becomes its plain base, a mapping a
    dict, a sequence or array a list; "nan", "inf" and "-inf" stand for non-finite numbers.

    Raises
    ------
    TypeError
        For anything else.
    """
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if hasattr(value, "tolist"):
        return exact(value.tolist())
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        number = float(value)
        return number if math.isfinite(number) else str(number)
    if isinstance(value, dict):
        return {str(key): exact(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [exact(item) for item in value]
    raise TypeError(f"a report cannot hold a {type(value).__name__}: {value!r}")
