import pytest

from polydistill.records import Ribbon
from polydistill.report.ribbon import view, visible
from polydistill.report.series import running_mean, thin


def test_a_ribbon_is_coloured_by_the_teacher_with_the_greatest_weight():
    ribbon = Ribbon(
        name="r",
        teachers=["a", "b"],
        tokens=["x", "y", "z\n  "],
        weights=[None, [0.9, 0.1], [0.25, 0.75]],
        loss=[None, 1.0, 3.0],
        expected=["a", "a", "a"],
    )
    shown = view(ribbon)
    assert [token.teacher for token in shown.tokens] == [None, 0, 1]
    assert [token.strength for token in shown.tokens] == pytest.approx([0.0, 0.8, 0.5])
    assert [token.switch for token in shown.tokens] == ["a", None, None]
    assert [token.text for token in shown.tokens] == ["x", "y", "z⏎\n  "], "an indent stays in its line"
    assert shown.right == 0.5
    assert shown.loss == 2.0
    assert shown.share == {"a": 0.5, "b": 0.5}
    assert shown.tokens[2].description == "“z⏎  ” · b 75.0%, a 25.0% · student's loss 3.00 nats · text of a"


def test_what_was_not_measured_is_not_made_up():
    shown = view(Ribbon(name="r", teachers=["a", "b"], tokens=["x"], weights=[None]))
    assert (shown.right, shown.loss, shown.share) == (None, None, {})
    assert "loss" not in shown.tokens[0].description


def test_control_characters_become_visible():
    assert visible("a\tb\n\x00 \u200b") == "a⇥b⏎\\u0000 \\u200b"


def test_thinning_keeps_short_series_and_averages_long_ones():
    assert thin([1, 2, 3], [1.0, None, 3.0]) == ([1, 2, 3], [1.0, None, 3.0])
    steps, values = thin(list(range(1, 11)), [float(i) for i in range(1, 11)], points=4)
    assert (steps, values) == ([3, 6, 9, 10], [2.0, 5.0, 8.0, 10.0])


def test_a_running_mean_skips_what_is_not_known():
    assert running_mean([1.0, float("nan"), 3.0, 5.0, None, None], 2) == [1.0, 1.0, 3.0, 4.0, 5.0, None]


def test_a_token_says_what_its_target_is_off_by_where_teachers_are_translated():
    shown = view(Ribbon(name="r", teachers=["a"], tokens=["x", "y"], weights=[None, [1.0]], off=[None, 0.12]))
    assert shown.tokens[1].description == "“y” · a 100.0% · target off by at most 0.120, as its teachers are translated"
    assert "target" not in shown.tokens[0].description
