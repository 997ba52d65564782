"""What is drawn is what was recorded."""

import math

import pytest

from frostbit.analysis import heatmaps, interactive
from frostbit.analysis.figures import to_svg
from frostbit.analysis.inside import Inside, by_depth, grid, log_range, read_record, short
from frostbit.errors import UsageError

from .synthetic import run


def small(values: dict[str, list[float]], steps: tuple[int, ...]) -> Inside:
    units = list(values)
    record = {"step": [s for s in steps for _ in units], "unit": units * len(steps)}
    record["gradient"] = [values[unit][i] for i in range(len(steps)) for unit in units]
    return Inside("r", [{"step": s, "loss": 1.0, "train_acc": 50.0} for s in steps], record=record)


def test_a_grid_has_a_row_for_each_unit_and_a_column_for_each_record():
    run_ = small({"a": [1.0, 2.0, 0.0], "b": [math.nan, 4.0, 5.0]}, (10, 20, 40))
    found = grid(run_, "gradient")
    assert run_.units == ["a", "b"]
    assert found.edges == [0, 10, 20, 40]
    assert found.values[0] == [1, 2, 0]
    assert found.values[1] == pytest.approx([math.nan, 4, 5], nan_ok=True)
    coarse = grid(run_, "gradient", most=2)  # cells of two records; what is not there does not count
    assert coarse.edges == [0, 20, 40]
    assert coarse.values == [[1.5, 0], [4, 5]]


def test_a_logarithmic_scale_encloses_what_is_above_zero():
    assert log_range([grid(small({"a": [0.0, 3e-4]}, (1, 2)), "gradient"), grid(run(3), "gradient")]) == (-6, -2)
    assert log_range([grid(small({"a": [0.1]}, (1,)), "gradient")]) == (-1, 0)
    assert log_range([grid(small({"a": [0.0, math.nan]}, (1, 2)), "gradient")]) is None
    assert log_range([grid(small({"a": [1e-21, 0.1]}, (1, 2)), "gradient")]) == (-9, -1)  # a vanishing one is cut off


def test_accuracy_by_depth_is_that_of_the_last_record_in_each_window():
    accuracy = {10: 50, 20: 60, 30: 40, 40: 70, 50: 65}
    steps = [{"step": step, "train_acc": value, "loss": 1.0} for step, value in accuracy.items()]
    found = by_depth(Inside("r", steps, [("a", 20, 45), ("b", 0, 20), ("c", 45, 48)]))
    assert [(each.unit, each.end, each.drop) for each in found] == [("a", 70, None), ("b", 60, None), ("c", None, None)]
    found = by_depth(Inside("r", steps, [("a", 20, 120), ("b", 0, 20)]))
    assert [each.drop for each in found] == [20, None]


@pytest.mark.parametrize("order", ["forward", "reverse", "global"])
def test_figures_name_every_unit_and_outline_its_window(order):
    inside = run(5, order=order, total=100)
    axes = heatmaps.heat_map([inside, inside], "gradient").axes[:2]
    plot = interactive.heat_maps(inside, ("gradient",), (-6, 0))
    boxes = {(s["x0"], s["x1"], s["y0"], s["y1"]) for s in plot["layout"]["shapes"]}
    wanted = {(start, stop, depth - 0.5, depth + 0.5) for depth, (_, start, stop) in enumerate(inside.windows)}
    assert boxes == wanted
    for panel in axes:
        assert [label.get_text() for label in panel.get_yticklabels()] == inside.units
        found = {(*p.get_xy(), p.get_width(), p.get_height()) for p in panel.patches}
        assert found == {(start, low, stop - start, 1) for start, stop, low, _ in wanted}
    shown, zeros = plot["data"]
    each = grid(inside, "gradient")
    for row, colours, greys in zip(each.values, shown["z"], zeros["z"], strict=True):
        for value, colour, grey in zip(row, colours, greys, strict=True):
            assert (grey == 0, colour is None) == (value == 0, value == 0)
            assert value == 0 or 10**colour == pytest.approx(value, rel=2e-3)


def test_runs_without_windows_or_records_are_drawn_all_the_same():
    bare = Inside("<float>", [{"step": s, "loss": math.nan, "train_acc": 50.0} for s in (1, 2)])
    assert len(heatmaps.overlay([bare]).axes) == 2
    assert heatmaps.depths([bare]) is None
    html = interactive.inspect_page([bare])
    assert "&lt;float&gt;" in html
    body = html.rsplit("</script></head>", 1)[1]
    assert body.count("plotly-graph-div") == 1
    assert "NaN" not in body
    nothing = small({"a": [math.nan, math.nan]}, (1, 2))
    assert heatmaps.heat_map([nothing], "gradient").axes


def test_a_figure_is_the_same_file_each_time_it_is_drawn():
    first, second = (to_svg(heatmaps.overlay([run(3, total=100)])) for _ in range(2))
    assert first == second
    assert b"train accuracy" in first


def test_long_names_keep_their_end():
    assert short("layer1.0.conv1") == "layer1.0.conv1"
    cut = short("bert.encoder.layer.11.attention.self.query")
    assert (len(cut), cut[0]) == (26, "…")
    assert cut.endswith("attention.self.query")


@pytest.mark.parametrize("content", [b"", b"PAR1 and no more", b"step,unit\n1,a\n"])
def test_a_damaged_record_gets_one_sentence(content, tmp_path):
    path = tmp_path / "units.parquet"
    assert read_record(path) == {}
    path.write_bytes(content)
    with pytest.raises(UsageError, match="is damaged: it is no parquet file of a recorder"):
        read_record(path)
