"""The interactive page in a headless Chromium: no error, no request, and no label over another."""

import itertools
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from frostbit.analysis.interactive import inspect_page

from .synthetic import run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")

# whatever a page asks for beside itself violates this, and Chromium says so on the console
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:; "
    "font-src data:"
)
# for each plot the boxes of its texts, and the plot's own
LOOK = """<script>addEventListener("load", () => setTimeout(() => {
  const box = e => { const r = e.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; };
  const texts = ".xtick text, .ytick text, .y2tick text, .y3tick text, .g-xtitle, .g-ytitle, .g-y2title, " +
    ".legendtext, .cbaxis text, .updatemenu-header, .bartext";
  const plots = [...document.querySelectorAll(".js-plotly-plot")].map(plot => ({
    box: box(plot),
    texts: [...plot.querySelectorAll(texts)].filter(e => e.textContent && e.getBoundingClientRect().width &&
      getComputedStyle(e).visibility !== "hidden" && e.getAttribute("transform") !== "scale(0)")
      .map(e => ({ text: e.textContent, box: box(e), size: parseFloat(getComputedStyle(e).fontSize) })),
  }));
  document.body.innerHTML = "";
  const out = document.createElement("pre");
  out.id = "seen"; out.textContent = JSON.stringify({plots, width: document.documentElement.scrollWidth});
  document.body.append(out);
}, 3000));</script>"""


def chromium(page: Path, *arguments: str) -> tuple[str, list[str]]:
    """Return what Chromium writes and the lines of the page's console."""
    command = [
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr",
        f"--user-data-dir={page.parent / 'profile'}", "--virtual-time-budget=10000", "--window-size=1280,6000",
        *arguments, page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def write(folder: Path, html: str, look: str = "") -> Path:
    path = folder / "page.html"
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    path.write_text(html.replace("<head>", f"<head>{policy}", 1).replace("</body>", f"{look}</body>", 1))
    return path


def overlap(a: list[float], b: list[float]) -> bool:
    slack = 1.5
    return min(a[2], b[2]) - max(a[0], b[0]) > slack and min(a[3], b[3]) - max(a[1], b[1]) > slack


PAGES = {
    "3 units": [run(3)],
    "50 units": [run(50)],
    "three orders laid over each other": [
        run(12, f"{order}-seed0", order) for order in ("forward", "reverse", "global")
    ],
    "long names": [
        run(50, "a-run-with-quite-a-long-name-of-its-own-seed0", prefix="bert.encoder.layer.attention.self.")
    ],
}


@needs_chromium
@pytest.mark.parametrize(
    "name",
    [
        "3 units",
        "50 units",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("long names", "three orders laid over each other")),
    ],
)
def test_the_page_is_legible(name, tmp_path):
    runs = PAGES[name]
    html = inspect_page(runs)
    dom, console = chromium(write(tmp_path, html, LOOK), "--dump-dom")
    assert console == []
    seen = json.loads(re.search(r'<pre id="seen">(.*?)</pre>', dom, re.DOTALL)[1].replace("&lt;", "<"))
    assert len(seen["plots"]) == 3 + 3 * len(runs)
    assert seen["width"] <= 1280
    for plot in seen["plots"]:
        for a, b in itertools.combinations(plot["texts"], 2):
            assert not overlap(a["box"], b["box"]), (a, b)
        for each in plot["texts"]:
            assert each["size"] >= 10, each
            assert plot["box"][0] - 1 <= each["box"][0] < each["box"][2] <= plot["box"][2] + 1, each
            assert plot["box"][1] - 1 <= each["box"][1] < each["box"][3] <= plot["box"][3] + 1, each
    maps = [
        plot for plot in seen["plots"] if sum("conv" in each["text"] for each in plot["texts"]) >= len(runs[0].units)
    ]
    assert len(maps) >= 3 * len(runs)  # every unit is named in every heat map

    picture = tmp_path / "page.png"
    _, console = chromium(write(tmp_path, html), f"--screenshot={picture}")
    assert console == []
    assert picture.stat().st_size > 50_000
    if "FROSTBIT_TEST_SCREENSHOTS" in os.environ:  # a folder, to look at them
        shutil.copy(picture, Path(os.environ["FROSTBIT_TEST_SCREENSHOTS"]) / f"{name.replace(' ', '-')}.png")


@needs_chromium
@pytest.mark.parametrize("body", ["<script>nothing()</script>", '<img src="http://127.0.0.1:9/a.png">'])
def test_errors_and_requests_would_be_seen(body, tmp_path):
    _, console = chromium(write(tmp_path, f"<html><head></head><body>{body}</body></html>"), "--dump-dom")
    assert console
