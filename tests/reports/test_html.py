"""The HTML report, opened in a browser: what it shows, at which sizes, and that nothing runs."""

from __future__ import annotations

import dataclasses
import functools
import math
import sys

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from opened import Page, flaws

pytest.importorskip("jinja2")

from pytest_bncheck.report import (
    AfterUpdates,
    Curves,
    LayerReport,
    Predictions,
    Projected,
    Remedies,
    Report,
    Samples,
    Scored,
    Seconds,
    Training,
    WithMomentum,
)
from pytest_bncheck.reports import html, wire
from pytest_bncheck.types import Finding, Suppressed

HOSTILE = (
    "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=2>"
    "\"'><svg onload=window.hacked=3> {{ 7 * 7 }} {% x %} $\\frac$ &amp;"
)
NAMES = [f"stage{k // 10}.block{k % 10}.with_a_rather_long_path.bn" for k in range(52)]

DISTORTIONS = [*(0.02 * 1.1**k for k in range(50)), math.nan, 0.0, None]
LAYERS = [
    LayerReport(name, "BatchNorm2d", 0.01, 0.01, 10, 0.904, 128 * (k + 1), 0.5, 0.3, bent)
    for k, (name, bent) in enumerate(zip([*NAMES, HOSTILE], DISTORTIONS, strict=True))
]
FINDING = Finding(
    code="BN101",
    name="running-stats-underconverged",
    severity="error",
    message="100 % right in training mode, 33 % in eval mode. On the same 3 samples they differ.",
    cause="After 10 updates, 90.4 % of every running statistic is still the initial value.",
    layers=NAMES,
    remedy="- Train for more updates.\n- Or shorten the memory:\nnn.BatchNorm2d(..., momentum=0.1)"
    "\n- Or re-estimate:\nfor inputs, _ in batches:\n    model(inputs)",
    evidence={"momentum": 0.01, "gap": math.nan},
)
FAILING = Report(
    nodeid="test_model.py::TestNet::test_resnet[small]",
    framework="torch",
    backend="torch",
    device="cpu",
    verdict="fail",
    bn_verdict="broken",
    steps=10,
    batch_size=3,
    findings=[FINDING, dataclasses.replace(FINDING, code="BN104", severity="warning")],
    suppressed=[Suppressed("BN106", "too-few-values-per-channel", "ignored: known", "Few.")],
    predictions=Predictions(
        1.05, 0.07, 1.04, 2.1, -0.2, 1 / 3, Scored(1e-7, 1.0), Scored(10.7, 1 / 3), Scored(2e-7, 1)
    ),
    layers=LAYERS,
    remedies=Remedies(515, 0.3, True),
    training=Training([1.1, 0.5, math.inf, 0.1, 0.02, 0.01, 1e-3, 1e-4, 1e-5, 1e-6]),
    curves=Curves(
        0.25,
        0.1,
        Samples([[1.0, -1.0], [0.5, 2.0], [-3.0, 0.1]], [[0.1, 0.0], [0.0, 0.1], [0.0, 0.0]],
                [True, False, True]),
        [AfterUpdates(485, 0.3), AfterUpdates(515, 0.2), AfterUpdates(970, 0.08)],
        [WithMomentum(0.1, 0.1, 0.8), WithMomentum(0.3, 0.3, 0.2), WithMomentum(0.4, 0.4, None)],
    ),
    seconds=Seconds(1.0, 0.5, 0.2, 1.75),
)  # fmt: skip
PROJECTED = dataclasses.replace(
    FAILING,
    nodeid="test_model.py::test_planned",
    planned_updates=250,
    predictions=dataclasses.replace(
        FAILING.predictions, projected=Projected(13.3, 0.5, 0.6, 0.5, 0.2, 0.4)
    ),
)
PASSING = Report(
    nodeid="test_model.py::test_healthy",
    framework="torch",
    verdict="pass",
    bn_verdict="healthy",
    steps=20,
    predictions=Predictions(0.01, train=Scored(0.1, 1.0), eval=Scored(0.1, 1.0)),
    layers=LAYERS[:1],
    training=Training([1.0, 0.5]),
    curves=Curves(0.25, 0.1),
)
WARNING = dataclasses.replace(
    PASSING,
    nodeid="test_model.py::test_warned",
    verdict="warn",
    findings=[dataclasses.replace(FINDING, severity="warning", remedy="", layers=())],
)
ERROR = Report(nodeid="test_model.py::test_raises", verdict="error", error="ValueError: bad\nmore")
EVIL = dataclasses.replace(
    FAILING,
    nodeid=f"test_model.py::test_evil[{HOSTILE}]",
    framework=HOSTILE,
    backend=HOSTILE,
    device=HOSTILE,
    error=f"{HOSTILE}\n{HOSTILE}",
    findings=[
        Finding(HOSTILE, HOSTILE, "error", HOSTILE, HOSTILE, [HOSTILE], f"- {HOSTILE}\n{HOSTILE}",
                {HOSTILE: HOSTILE})
    ],
    suppressed=[Suppressed(HOSTILE, HOSTILE, HOSTILE, HOSTILE)],
    not_checked=[HOSTILE],
    layers=[dataclasses.replace(LAYERS[40], name=HOSTILE, type=HOSTILE)],
)  # fmt: skip
REPORTS = [PASSING, WARNING, FAILING, PROJECTED, ERROR, EVIL]


def document(*reports):
    return wire.document([report.to_dict() for report in reports])


# without a browser ----------------------------------------------------------------------------


def test_what_needs_a_look_comes_first_and_is_unfolded():
    page = Page(html.page(document(*REPORTS)))
    verdicts = [verdict for verdict, _ in page.checks()]
    assert verdicts == ["error", "fail", "fail", "fail", "warn", "pass"]
    opened = ["open" in attributes for tag, attributes, _ in page.found if tag == "details"
              and "check" in attributes["class"]]  # fmt: skip
    assert opened == [True, True, True, True, False, False]
    assert page.select("h1") == ["4 of 6 checks failed"]


@pytest.mark.parametrize(
    ("reports", "title"),
    [
        ([], "No model was checked"),
        ([PASSING], "The check passed"),
        ([PASSING, WARNING], "All 2 checks passed"),
        ([ERROR], "1 of 1 check failed"),
    ],
)
def test_title_counts_the_checks(reports, title):
    page = Page(html.page(document(*reports)))
    assert page.select("h1") == page.select("h1")[:1] == [title]
    assert len(page.checks()) == len(reports)


def test_an_expected_failure_is_called_so():
    page = Page(html.page(document(FAILING, ERROR), lambda check: check["verdict"] == "fail"))
    assert page.select("span", "note").count("expected") == 2  # in the index and at the check


def test_what_is_suppressed_is_not_called_right():
    hidden = [Suppressed("BN101", "running-stats-underconverged", "ignored: known", "Far off.")]
    report = dataclasses.replace(PASSING, suppressed=hidden)
    (headline,) = Page(html.page(document(report))).select("p", "headline")
    assert "repeats" not in headline
    assert headline.endswith("(BN101 suppressed)")


def test_rules_that_could_not_look_are_named():
    report = dataclasses.replace(PASSING, not_checked=["BN108 needs streams."])
    assert "Not checked" not in Page(html.page(document(PASSING))).select("h3")
    page = Page(html.page(document(report)))
    assert "Not checked" in page.select("h3")
    assert "BN108 needs streams." in " ".join(page.select("li"))


def test_every_number_of_the_check_is_there():
    page = Page(html.page(document(PROJECTED)))
    text = " ".join(page.select("main"))
    for part in (
        "100 %", "33 %", "50 %", "1e-07", "10.7", "projected to 250 updates", "1.05", "0.6",
        "515 further updates", "Momentum 0.3 would have sufficed",
        "1 of 3 samples changes its decision",
        "ignored: known", "BN104", "34 of 53 layers are over the limit of 0.1 sigma", "nan",
        "stage0.block0.with_a_rather_long_path.bn", "and 47 more", "momentum=0.1",
    ):  # fmt: skip
        assert part in text, part


def test_the_same_report_gives_the_same_page():
    assert html.page(document(*REPORTS)) == html.page(document(*REPORTS))


def test_a_page_refers_to_nothing_outside():
    page = Page(html.page(document(FAILING)))
    links = [v for _, attributes, _ in page.found for k, v in attributes.items()
             if k in ("src", "href", "xlink:href", "action")]  # fmt: skip
    assert links
    assert all(link.startswith("#") for link in links)


def test_every_name_inside_a_page_is_unique():
    page = Page(html.page(document(FAILING, PROJECTED)))
    names = [attributes["id"] for _, attributes, _ in page.found if "id" in attributes]
    assert names == ["check-1", "check-2"]


def test_a_notebook_shows_the_check_in_a_frame():
    (frame,) = [found for found in Page(EVIL._repr_html_()).found if found[0] == "iframe"]
    assert frame[1]["sandbox"] == "allow-scripts"
    assert Page(frame[1]["srcdoc"]).checks() == [
        ("fail", " ".join(EVIL.nodeid.replace("::", " ", 1).split()))
    ]


def test_a_notebook_falls_back_to_text(monkeypatch):
    import pytest_bncheck.reports

    monkeypatch.delitem(sys.modules, "pytest_bncheck.reports.html")
    monkeypatch.delattr(pytest_bncheck.reports, "html")
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert FAILING._repr_html_() is None


odd = st.one_of(st.none(), st.floats(width=32), st.sampled_from([0.0, 1e-300, 1e300, -1.0]))
numbers = st.floats(width=32)


@given(
    losses=st.lists(numbers, max_size=4),
    scored=st.lists(odd, min_size=8, max_size=8),
    bent=st.lists(odd, max_size=4),
    gaps=st.lists(odd, max_size=4),
    rows=st.lists(st.tuples(numbers, numbers), min_size=1, max_size=3),
    chosen=st.none() | st.integers(1, 10**6),
)
@settings(max_examples=20, deadline=None, phases=(Phase.explicit, Phase.generate))
def test_any_numbers_make_a_page(losses, scored, bent, gaps, rows, chosen):
    report = dataclasses.replace(
        FAILING,
        training=Training(losses),
        predictions=Predictions(
            *scored[:6], Scored(scored[6], 0.5), Scored(scored[7]), Scored(scored[0], scored[1])
        ),
        layers=[dataclasses.replace(LAYERS[0], distortion=value) for value in bent],
        remedies=Remedies(chosen, None if chosen is None else 0.1),
        curves=Curves(
            0.25,
            0.1,
            Samples(rows, rows[::-1]),
            [AfterUpdates(10 * k + 1, gap) for k, gap in enumerate(gaps)],
            [WithMomentum(0.1 * k, 0.1 * k, gap) for k, gap in enumerate(gaps)],
        ),
    )
    assert len(Page(html.page(document(report))).checks()) == 1


def test_losses_that_no_axis_can_hold_are_not_drawn():
    report = dataclasses.replace(FAILING, training=Training([1e38]), predictions=Predictions())
    assert "Training" not in Page(html.page(document(report))).select("strong")


# in a browser ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A page of all reports."""
    path = tmp_path_factory.mktemp("html") / "report.html"
    html.write(path, document(*REPORTS), lambda check: False)
    return path


@pytest.fixture
def opened(browse, file):
    """Opens the page."""
    return functools.partial(browse, file)


def test_all_sections_are_there(opened):
    check = opened().locator("details.check", has_text="TestNet")
    titles = check.locator("h3").all_inner_texts()
    assert [title.capitalize() for title in titles] == [
        "Modes", "Measures", "Findings", "Remedies, predicted", "Suppressed", "Measured", "Layers",
    ]  # fmt: skip
    assert check.locator("svg").count() == check.locator("figure").count() == 5
    assert all(plot.bounding_box()["height"] > 150 for plot in check.locator("svg").all())
    assert check.locator("table.layers tbody tr").count() == 53


def test_hostile_names_are_text(opened):
    page = opened()
    assert page.evaluate("window.hacked") is None
    check = page.locator("details.check", has_text="test_evil")
    for where in ("h2", ".headline", ".raised pre", "h4", ".finding p", ".remedy li", "code",
                  ".named", ".reason", "dt", "tbody th[data-value]", "figcaption"):  # fmt: skip
        texts = " ".join(check.locator(where).all_text_contents())
        assert HOSTILE.split()[0] in texts, where
    assert page.locator("main img, main script").count() == 0


def column(page, number):
    cells = page.locator("details.check", has_text="TestNet").locator(
        f"table.layers tbody tr > :nth-child({number})"
    )
    return cells.all_inner_texts()


def test_a_click_sorts_the_layers(opened):
    page = opened()
    check = page.locator("details.check", has_text="TestNet")
    heads = check.locator("table.layers thead th")
    before = column(page, 3)
    heads.nth(2).locator("button").click()
    worst_first = column(page, 3)
    assert worst_first == ["nan", *before[49::-1], "0", "–"]
    assert heads.evaluate_all("heads => heads.map(h => h.ariaSort)") == [
        "none", "none", "descending", *["none"] * 8
    ]  # fmt: skip
    heads.nth(2).locator("button").click()
    assert column(page, 3) == ["0", *before[:50], "nan", "–"]
    heads.nth(0).locator("button").click()
    assert column(page, 3) == before


def test_the_keyboard_sorts_the_layers(opened):
    page = opened()
    before = column(page, 2)
    page.locator("details.check", has_text="TestNet").locator("thead button").nth(1).focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert column(page, 2) == sorted(before, reverse=True)


def test_the_remedy_is_copied(opened):
    page = opened(permissions=["clipboard-read", "clipboard-write"])
    check = page.locator("details.check", has_text="TestNet")
    button = check.locator("button.copy").nth(1)
    button.click()
    check.locator("button.copy", has_text="Copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == "for inputs, _ in batches:\n    model(inputs)"


def test_the_remedy_is_selected_where_nothing_may_be_copied(opened):
    page = opened()
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(); }")
    button = page.locator("details.check", has_text="TestNet").locator("button.copy").first
    button.click()
    page.locator("button.copy", has_text="Selected").wait_for()
    assert page.evaluate("String(getSelection())") == "nn.BatchNorm2d(..., momentum=0.1)"


def test_the_index_leads_to_a_folded_check(opened):
    page = opened()
    check = page.locator("details.check.pass")
    assert check.get_attribute("open") is None
    page.locator("nav a", has_text="test_healthy").click()
    check.locator("svg").first.wait_for(state="visible")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 700, 1280])
def test_everything_fits_and_can_be_read(opened, width, theme):
    page = opened(viewport={"width": width, "height": 900}, color_scheme=theme)
    assert flaws(page) == []
