"""What a person reads: at most 80 columns, the numbers, the layers, what to do."""

from __future__ import annotations

import dataclasses

from pytest_bncheck.report import LayerReport, Predictions, Projected, Report, Scored
from pytest_bncheck.reports import terminal
from pytest_bncheck.reports.layout import NAME, cut
from pytest_bncheck.types import Finding, Suppressed

FINDING = Finding(
    code="BN101",
    name="running-stats-underconverged",
    severity="error",
    message="100 % right in training mode, 33 % in eval mode. " + "Some words more. " * 9,
    cause="After 5 updates at momentum 0.99, 95.1 % of every running statistic is still there.",
    layers=[f"stage.{k}.block.with.a.rather.long.path.bn" for k in range(8)],
    remedy="- Train for more updates.\n- Or shorten the memory:\nnn.BatchNorm2d(momentum=0.1)",
    evidence={},
)


def layer(name: str) -> LayerReport:
    return LayerReport(name, "BatchNorm2d", 0.99, 0.01, 5, 0.95099, 147, 0.5, 0.3, 1.234)


REPORT = Report(
    nodeid="test_model.py::test_resnet",
    framework="keras",
    backend="tensorflow",
    device="cpu",
    verdict="fail",
    bn_verdict="broken",
    steps=5,
    batch_size=3,
    findings=[FINDING],
    suppressed=[Suppressed("BN106", "too-few-values-per-channel", "ignored: known", "Few.")],
    predictions=Predictions(1.05, train=Scored(1e-7, 1.0), eval=Scored(10.7, 1 / 3)),
    layers=[layer(name) for name in FINDING.layers],
)


def test_text_fits_80_columns_with_pytest_s_indent_and_says_everything() -> None:
    lines = terminal.check_lines(REPORT.to_dict())
    text = "\n".join(lines)
    assert max(map(len, lines)) <= 72
    assert lines[0] == "100 % right in training mode, 33 % in eval mode"
    assert lines[1] == "bncheck fail: 1 error, 0 warnings (keras, cpu, 5 steps on 3 samples)"
    assert text.count("100 % right") == 1
    for part in ("BN101 running-stats-underconverged", "Cause: After 5 updates", "95.1 %",
                 "What to do:", "and 3 more", "ignored: known", "1.23"):  # fmt: skip
        assert part in text
    assert "      nn.BatchNorm2d(momentum=0.1)" in lines
    assert str(REPORT) == text


def test_rules_that_could_not_look_come_last() -> None:
    sentence = "BN108 mixed-streams needs streams, which this adapter does not offer."
    assert "BN108" not in str(REPORT)
    for report in (REPORT, dataclasses.replace(REPORT, findings=(), verdict="pass")):
        text = str(dataclasses.replace(report, not_checked=[sentence, "BN306."]))
        assert text.replace("\n", " ").endswith(f"  {sentence}  BN306.")
        assert max(map(len, text.splitlines())) <= 72


def test_a_number_stays_with_its_unit() -> None:
    for start in range(60):
        message = "x" * start + " word 95.1 % of it"
        finding = dataclasses.replace(FINDING, message=message)
        text = str(dataclasses.replace(REPORT, findings=[finding]))
        assert not [line for line in text.splitlines() if line.strip().startswith("%")]


def test_a_silent_check_says_why() -> None:
    calm = dataclasses.replace(REPORT, verdict="pass", findings=[], suppressed=[])
    assert "no layer with running statistics" in str(dataclasses.replace(calm, layers=[]))
    hidden = dataclasses.replace(calm, suppressed=REPORT.suppressed)
    assert "Eval mode against training mode: gap 1.1" in str(hidden)
    assert "Eval mode repeats training mode: gap 1.1" in str(calm)
    assert "cannot be aligned" in str(dataclasses.replace(calm, predictions=Predictions()))
    planned = Predictions(1.05, projected=Projected(0.1, 1.0, 0.02, None, 0.01, 1.0))
    text = str(dataclasses.replace(calm, planned_updates=1000, predictions=planned))
    assert "Projected to the planned 1000 updates" in text
    assert "gap 1.1 after the 5 steps" in text.replace("\n  ", " ")


def test_nothing_is_said_twice() -> None:
    finding = dataclasses.replace(FINDING, message="2 of 2 layers did not change.")
    text = str(dataclasses.replace(REPORT, findings=[finding]))
    assert text.count("2 of 2 layers did not change") == 1
    assert "BN101 running-stats-underconverged\n  Cause: After" in text


def test_shares_are_shown_where_they_add_up() -> None:
    def text(*attributions: float | None) -> str:
        layers = [
            dataclasses.replace(layer(name), attribution=share)
            for name, share in zip("ab", attributions, strict=False)
        ]
        finding = dataclasses.replace(FINDING, layers=["a", "b"])
        return str(dataclasses.replace(REPORT, findings=[finding], layers=layers))

    assert " share\n" in text(0.7, 0.27)
    assert "share: the part of the difference" in text(0.7, 0.27)
    for others in ((1.07, -0.07), (6.0, -5.0), (0.0, 1e-4), (1.0,), (0.5, None), (0.8, 0.8)):
        assert " share\n" not in text(*others)


def test_names_are_cut_so_that_they_stay_different() -> None:
    stages = ("first_encoder_stage", "second_encoder_stage")
    names = [f"stages.{stage}.maxpool_convolution.0.1" for stage in stages]
    short = cut([*names, "bn", "a.rather.long.path.to.another.layer"])
    assert len(set(short)) == 4
    assert max(map(len, short)) <= NAME
    assert ["first" in short[0], "second" in short[1], short[2]] == [True, True, "bn"]
    assert short[3].endswith("to.another.layer")


def test_layers_are_listed_worst_first() -> None:
    layers = [dataclasses.replace(layer(f"bn{k}"), distortion=d) for k, d in enumerate((1, 3, 2))]
    finding = dataclasses.replace(FINDING, layers=["bn0", "bn1", "bn2"])
    lines = str(dataclasses.replace(REPORT, findings=[finding], layers=layers)).splitlines()
    assert [line.split()[0] for line in lines if line[:4] == "  bn"] == ["bn1", "bn2", "bn0"]
