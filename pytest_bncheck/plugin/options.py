"""Command line and ini file."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from pytest_bncheck import settings
from pytest_bncheck.errors import InputError

if TYPE_CHECKING:
    from pytest_bncheck.plugin.targets import Target

OFF = "checks train models and are off; turn them on with --bncheck"
"""Why a test was skipped."""

SWITCH = "Train the models of tests marked bn_consistency and check them (default: skip them)."
JSON = "Write a JSON report of all checks to this file; turns the checks on."
HTML = "Write an HTML report of all checks to this file; turns the checks on."
WATCH = (
    "Look at how the tests train and predict, and report loops that do it in the wrong mode; no "
    "test's outcome changes, and none is needed for it (default: off)."
)
MODEL = (
    "Check the model that this callable makes, with no test code: package.module:factory. "
    "Repeatable; on the command line it turns the checks on."
)
INPUT = (
    "Inputs of a model of --bncheck-model, samples first: 8x3x64x64, several by commas, integers "
    "as int64:8x128. Once for all models, or once for each."
)
EXPLAIN = "Print the page of a rule, given by code, name or prefix, and exit."

# Native values of TOML need a union, which pytest has from 9.2 on; before, all ini values are text.
_INI_TYPE: Any = str | int | float if pytest.version_tuple >= (9, 2) else "string"


class Session(NamedTuple):
    """What the plugin knows in one run.

    Attributes
    ----------
    enabled
        Whether models are trained and checked.
    sources
        The options of the command line and of the ini file.
    json
        Where the JSON report goes, or None.
    html
        Where the HTML report goes, or None.
    targets
        The models that are checked with no test code.
    watch
        Whether tests are watched.
    """

    enabled: bool
    sources: tuple[settings.Source, ...]
    json: Path | None
    html: Path | None
    targets: tuple[Target, ...] = ()
    watch: bool = False


def add(parser: pytest.Parser) -> None:
    """Declare every option, on the command line and in the ini file with the same help."""
    group = parser.getgroup("bncheck", "batch-norm consistency of models")
    toggle = argparse.BooleanOptionalAction
    group.addoption("--bncheck", action=toggle, default=None, help=SWITCH)
    parser.addini("bncheck", SWITCH, type="bool", default=None)
    for name, option in settings.OPTIONS.items():
        flag = _flag(name)
        if option.in_code:
            continue
        if not option.metavar:
            group.addoption(flag, action=toggle, default=None, help=option.help)
            parser.addini(f"bncheck_{name}", option.help, type="bool", default=None)
            continue
        action = "append" if option.repeatable else "store"
        group.addoption(flag, action=action, default=None, metavar=option.metavar, help=option.help)
        kind: Any = "linelist" if option.repeatable else _INI_TYPE
        parser.addini(f"bncheck_{name}", option.help, type=kind, default=None)
    group.addoption("--bncheck-json", default=None, metavar="PATH", help=JSON)
    parser.addini("bncheck_json", JSON, type="string", default=None)
    group.addoption("--bncheck-html", default=None, metavar="PATH", help=HTML)
    parser.addini("bncheck_html", HTML, type="string", default=None)
    group.addoption("--bncheck-watch", action=toggle, default=None, help=WATCH)
    parser.addini("bncheck_watch", WATCH, type="bool", default=None)
    for name, metavar, text in (("model", "SPEC", MODEL), ("input", "SHAPES", INPUT)):
        group.addoption(_flag(name), action="append", default=None, metavar=metavar, help=text)
        parser.addini(f"bncheck_{name}", text, type="linelist", default=None)
    group.addoption("--bncheck-explain", default=None, metavar="RULE", help=EXPLAIN)


def _flag(name: str) -> str:
    return "--bncheck-" + name.replace("_", "-")


def read(config: pytest.Config) -> Session:
    """Everything from command line and ini file.

    Raises
    ------
    pytest.UsageError
        One line for the first option that cannot be used.
    """
    try:
        json, html = _report_path(config, "json"), _report_path(config, "html")
        sources = (_command_line(config), _ini_file(config))
        enabled = _enabled(config)
        if json and json == html:
            raise InputError(f"the JSON and the HTML report cannot be the same file: {json}.")
        targets = _targets(config)
        asked = config.getoption("bncheck_watch")
        watch = bool(_ini(config, "bncheck_watch") if asked is None else asked)
        if html and (enabled or watch):
            _require_html(config)
    except InputError as error:
        raise pytest.UsageError(str(error)) from None
    files = (json, html) if enabled or watch else (None, None)
    return Session(enabled, sources, *files, targets, watch)


def header(session: Session) -> str:
    """One line that says that models are trained, with the options that are not the default."""
    merged, default = settings.merge(*session.sources), settings.merge()
    changed = []
    for name in merged.origins:
        value = getattr(merged, name)
        if value != getattr(default, name):
            changed.append(f"{name}={_listed(value)}")
    return f"bncheck: on ({', '.join(changed)})" if changed else "bncheck: on"


def _listed(value: Any) -> str:
    if isinstance(value, (dict, tuple)):
        return " ".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def explain(text: str) -> str:
    """The pages of the rules that a code, name or prefix stands for.

    Raises
    ------
    pytest.UsageError
        If no rule matches.
    """
    from pytest_bncheck import rules
    from pytest_bncheck.reports import page

    try:
        codes = sorted(rules.resolve(text))
    except InputError as error:
        raise pytest.UsageError(f"--bncheck-explain: {error}") from None
    return "\n\n\n".join(page.render(rules.RULES[code].page) for code in codes)


def _command_line(config: pytest.Config) -> settings.Source:
    given: dict[str, settings.Given] = {}
    for name, option in settings.OPTIONS.items():
        if not option.in_code:
            given |= settings.source({name: config.getoption(f"bncheck_{name}")}, _flag(name))
    return given


def _ini_file(config: pytest.Config) -> settings.Source:
    given: dict[str, settings.Given] = {}
    file = config.inipath.name if config.inipath else "ini"
    for name, option in settings.OPTIONS.items():
        if not option.in_code:
            origin = f"bncheck_{name} in {file}"
            given |= settings.source({name: _ini(config, f"bncheck_{name}")}, origin)
    return given


def _ini(config: pytest.Config, name: str) -> Any:
    """One ini value, or None. Only from version 9.2 on does pytest raise UsageError itself."""
    try:
        return config.getini(name)
    except (TypeError, ValueError, pytest.UsageError) as error:
        raise InputError(f"{name} in the ini file cannot be used: {error}") from None


def _enabled(config: pytest.Config) -> bool:
    paths = [config.getoption(f"bncheck_{kind}") for kind in ("json", "html")]
    ini_paths = [_ini(config, f"bncheck_{kind}") for kind in ("json", "html")]
    answers = (
        config.getoption("bncheck"),
        True if paths != [None, None] or config.getoption("bncheck_model") else None,
        _ini(config, "bncheck"),
        True if ini_paths != [None, None] else None,
    )
    return next((answer for answer in answers if answer is not None), False)


def _targets(config: pytest.Config) -> tuple[Target, ...]:
    """The models of the command line, or else those of the ini file, each with its inputs."""
    specs, inputs = config.getoption("bncheck_model"), config.getoption("bncheck_input")
    if specs is None and inputs is None:
        specs, inputs = _ini(config, "bncheck_model"), _ini(config, "bncheck_input")
    elif specs is None:
        specs = _ini(config, "bncheck_model")
    if not specs and not inputs:
        return ()
    from pytest_bncheck.plugin import targets

    return targets.parse(specs or [], inputs or [])


def _report_path(config: pytest.Config, kind: str) -> Path | None:
    """A report's path, relative to the working directory or to the ini file; it can be written."""
    option, ini = config.getoption(f"bncheck_{kind}"), _ini(config, f"bncheck_{kind}")
    if option is not None:
        text, base = option, config.invocation_params.dir
        setting = f"--bncheck-{kind}={text}"
    elif ini is not None:
        text, base = ini, config.inipath.parent if config.inipath else config.rootpath
        setting = f"bncheck_{kind}={text} (from {config.inipath.name if config.inipath else 'ini'})"
    else:
        return None
    path = Path(base, text)
    from pytest_bncheck.plugin import internals

    # A worker of pytest-xdist writes nothing, and may run where the path does not exist.
    if not internals.is_worker(config):
        from pytest_bncheck.reports import wire

        problem = wire.why_not_writable(path) if text else "the path is empty; name a file"
        if problem:
            raise InputError(f"{setting} cannot be written: {problem}.")
    return path


def _require_html(config: pytest.Config) -> None:
    from pytest_bncheck.plugin import internals

    if not internals.is_worker(config) and importlib.util.find_spec("jinja2") is None:
        raise InputError("the HTML report needs jinja2: pip install 'pytest-bncheck[html]'.")
