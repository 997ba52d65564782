"""Records as a run of any number of units would leave them."""

import math

from frostbit.analysis.inside import Inside


def run(
    count: int,
    name: str = "forward-seed0",
    order: str = "forward",
    total: int = 3000,
    every: int = 10,
    prefix: str = "",
) -> Inside:
    length, level = total // count, {"forward": 30, "reverse": 20}.get(order, 26)
    names = [f"{prefix}layer{i // 6 + 1}.{i // 2 % 3}.conv{i % 2 + 1}" for i in range(count)]
    windows = []
    for i, unit in enumerate(names):
        turn = {"forward": i, "reverse": count - 1 - i}.get(order, 0)
        windows.append((unit, 0, total) if order == "global" else (unit, turn * length, (turn + 1) * length))
    steps, columns = (
        [],
        {key: [] for key in ("step", "depth", "unit", "frozen", "flips", "gradient", "saturated", "positive", "dead")},
    )
    for step in range(every, total + 1, every):
        done = step / total
        within = (step - 1) % length / length
        accuracy = level + 40 * done - 15 * math.exp(-12 * within)
        steps.append({"step": step, "loss": 2.5 - 2 * done + 0.4 * math.exp(-12 * within), "train_acc": accuracy})
        blocked = max([i for i, (_, _, stop) in enumerate(windows) if stop <= step], default=-1)
        for i, (unit, start, stop) in enumerate(windows):
            share = min(max((step - start) / (stop - start), 0), 1)
            gradient = (
                0.0 if i < blocked or (order == "reverse" and blocked > i) else 10 ** (-4 + 3 * i / count - 2 * share)
            )
            row = (
                step,
                i,
                unit,
                share,
                0.02 * (1 - share) if share < 1 else 0.0,
                gradient,
                0.3 * share,
                0.5 + 0.01 * i / count,
                0.1,
            )
            for key, value in zip(columns, row, strict=True):
                columns[key].append(value)
    curve = [{"epoch": e, "step": e * total // 10, "train_acc": 40.0, "distance": 1 - e / 10} for e in range(1, 11)]
    return Inside(name, steps, windows, curve, columns)
