"""Tables, pages and figures say what the results say."""

import math

import pytest

from frostbit.analysis import Section, differences_by_value, figures, markdown, page, summarize
from frostbit.analysis.page import image, links, preformatted, table
from frostbit.analysis.sawtooth import frozen_over_open, sawtooth_amplitude
from frostbit.analysis.tables import arm_table


def result(arm, raw, recalibrated=0.0, train=0.0, seconds=1.0, curve=()):
    final = {"raw": raw, "recalibrated": recalibrated, "train": train}
    return {"arm": arm, "final": final, "seconds": seconds, "curve": list(curve)}


def test_summary_is_mean_and_sample_deviation_over_seeds():
    a, b = summarize([result("a", 10, 20, 30, 1), result("b", 50), result("a", 14, 20, 33, 3)])
    assert (a.raw.mean, a.raw.sd) == (12, pytest.approx(math.sqrt(8)))
    headings, rows = arm_table([a, b])
    assert headings == ("arm", "hardened, recalibrated %", "hardened, raw %", "train %", "seconds", "seeds")
    assert rows[0] == ("a", "20.0 ± 0.0", "12.0 ± 2.8", "31.5 ± 2.1", "2", "2")
    assert (b.raw.sd, str(b.raw)) == (None, "50.0")


def test_core_seconds_are_shown_where_all_runs_have_them():
    new, newer, old = (result("a", 1) | extra for extra in ({"seconds_cpu": 4.0}, {"seconds_cpu": 7.0}, {}))
    assert [summarize(runs)[0].core_seconds for runs in ([new, newer], [new, old])] == [5.5, None]


def test_a_figure_that_some_arms_lack_is_a_dash_for_them():
    tuned, other = result("a", 1) | {"seconds_cpu": 5.5}, result("b", 2)
    tuned["final"]["val"] = 3.0
    headings, rows = arm_table(summarize([tuned, other]))
    columns = dict(zip(headings, zip(*rows, strict=True), strict=True))
    assert columns["validation %"] == ("3.0", "-")
    assert columns["core seconds"] == ("6", "-")


def test_markdown():
    assert markdown(("a", "b"), [("x|y", "1")]) == "| a | b |\n|---|---:|\n| x\\|y | 1 |\n"


def test_differences_are_grouped_by_value():
    rows = differences_by_value({"lr": {"a": 0.1, "b": 0.2, "c": 0.1}, "ste": {"a": None, "b": ["x", "y"]}})
    assert rows == [("lr", "0.1", "a, c"), ("", "0.2", "b"), ("ste", "none", "a"), ("", "x, y", "b")]


def test_pages_escape_what_comes_from_outside_and_stand_alone():
    evil = '<script>&"'
    body = table((evil,), [(evil,)]) + preformatted(evil) + image(b"png", evil) + links({evil: evil})
    html = page(evil, evil, [Section(evil, body), Section("last", "")])
    assert "<script>" not in html
    assert html.count("<section>") == 2
    assert "http" not in html
    assert "data:image/png;base64,cG5n" in html


def test_amplitude_is_the_median_drop_in_the_first_tenth_of_windows():
    accuracy = {0: 0, 90: 50, 100: 60, 105: 45, 110: 40, 150: 20, 200: 70, 210: 66, 300: 80, 310: 80}
    steps = [{"step": step, "train_acc": value} for step, value in accuracy.items()]
    windows = [("a", 100, 200), ("b", 200, 300), ("c", 300, 400)]
    assert sawtooth_amplitude(steps, windows) == 4  # drops of 20, 4 and 0
    assert sawtooth_amplitude(steps, []) is None
    assert sawtooth_amplitude([], windows) is None


def test_steps_on_frozen_weights_are_compared_at_both_ends_of_windows():
    def row(step, frozen, unfrozen):
        return {"step": step, "rate/frozen": frozen, "rate/open": unfrozen, "update/open": 0.0}

    steps = [row(3, 2, 1), row(6, 90, 1), row(9, 8, 2), row(12, 6, 1), row(15, 90, 1), row(18, 3, 2), {"step": 25}]
    windows = [("u", 0, 9), ("v", 9, 18)]
    assert frozen_over_open(steps, windows) == {"rate/start": 4, "rate/end": 2.75}  # of 2 and 6; of 4 and 1.5
    assert frozen_over_open(steps, []) == frozen_over_open([{"step": 3}], windows) == {}


def lines(axes):
    return {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}


def test_curves_show_mean_and_band_over_seeds():
    one = [{"epoch": 1, "acc_hardened": 10, "train_acc": 1}, {"epoch": 2, "acc_hardened": 20, "train_acc": 2}]
    two = [{"epoch": 1, "acc_hardened": 30, "train_acc": 3}, {"epoch": 2, "acc_hardened": 40, "train_acc": 4}]
    figure = figures.curves({"a": [one, two], "b": [one]})
    test, train = figure.axes
    assert lines(test)["a"] == [[1, 20], [2, 30]]
    assert lines(train)["b"] == [[1, 1], [2, 2]]
    (band,) = test.collections
    assert band.get_datalim(test.transData).bounds == (1, 10, 1, 30)


def test_curves_of_one_evaluation_are_dots_with_bars():
    one, two = ([{"epoch": 9, "acc_hardened": value, "train_acc": 1}] for value in (10, 30))
    test, _ = figures.curves({"a": [one, two], "b": [one]}).axes
    assert lines(test) == {"a": [[0, 20]], "b": [[1, 10]]}
    assert {line.get_marker() for line in test.get_lines()} == {"o"}
    assert [bar.get_segments()[0].tolist() for bar in test.collections] == [[[0, 10], [0, 30]], [[1, 10], [1, 10]]]


def test_sawtooth_marks_windows_and_draws_every_unit():
    steps = [{"step": s, "loss": 1.0, "train_acc": 50.0, "u": 0.5, "v": 0.0} for s in (10, 20)]
    figure = figures.sawtooth(steps, [("u", 0, 15), ("v", 15, 20)])
    assert len(figure.axes) == 3
    shares = [line.get_ydata() for line in figure.axes[2].get_lines()]
    assert [50.0, 50.0] in [list(values) for values in shares]
    marks = {line.get_xdata()[0] for line in figure.axes[0].get_lines() if len(set(line.get_xdata())) == 1}
    assert marks == {0, 15}
    assert figures.to_png(figure).startswith(b"\x89PNG")


def test_a_float_run_has_no_shares_panel():
    assert len(figures.sawtooth([{"step": 1, "loss": 1.0, "train_acc": 50.0}], []).axes) == 2
