"""A chart of small panels as one SVG file that stands alone, legible on light and on dark."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


Points = Sequence[tuple[float, float]]

# Ratios shown; what is beyond is drawn at the edge, as a triangle.
LOW, HIGH = 0.95, 3.0
TICKS = (1.0, 1.1, 1.25, 1.5, 2.0, 3.0)
GOAL = 1.05

COLUMNS = 4
WIDTH, HEIGHT = 240, 204  # of a panel with its labels
LEFT, TOP, RIGHT, BOTTOM = 38, 26, 12, 28  # of these the labels take
HEADER = 62

# Color on light and on dark, width, dashes. The first line is what the chart is about.
STYLES = (
    ("#0969da", "#4ea3ff", 2.6, ""),
    ("#b35900", "#f0a04b", 1.5, "6 3"),
    ("#8250df", "#c297ff", 1.5, "2 2.5"),
    ("#cf222e", "#ff7b72", 1.5, "9 3 2 3"),
    ("#737b84", "#98a1ab", 1.5, ""),
)


@dataclass(frozen=True)
class Panel:
    """A title, and for each line's name its points (size, ratio) in ascending order of size."""

    title: str
    lines: Mapping[str, Points]


def draw(panels: Sequence[Panel], title: str) -> str:
    """The chart; sizes and ratios are on logarithmic axes, which all panels share."""
    columns = min(COLUMNS, max(len(panels), 2))
    rows = max(1, math.ceil(len(panels) / columns))
    width, height = columns * WIDTH + 8, HEADER + rows * HEIGHT + 8
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    sizes = [x for panel in panels for points in panel.lines.values() for x, _ in points]
    largest = max(sizes, default=2)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img">',
        f"<title>{html.escape(title)}</title>",
        _style(),
        f'<rect class="ground" width="{width}" height="{height}" rx="6"/>',
        f'<text class="heading" x="12" y="22">{html.escape(title)}</text>',
        *_legend(names),
    ]
    for i, panel in enumerate(panels):
        x, y = 4 + i % columns * WIDTH, HEADER + i // columns * HEIGHT
        parts.append(f'<g transform="translate({x} {y})">')
        parts += _panel(panel, names, largest)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>"]) + "\n"


def _style() -> str:
    light = [f".l{i}{{stroke:{c}}}.m{i}{{fill:{c}}}" for i, (c, _, _, _) in enumerate(STYLES)]
    dark = [f".l{i}{{stroke:{c}}}.m{i}{{fill:{c}}}" for i, (_, c, _, _) in enumerate(STYLES)]
    return (
        "<style>"
        "text{font:11px system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;fill:#57606a}"
        ".heading{font-size:13px;font-weight:600;fill:#1f2328}"
        ".name{font-size:12px;font-weight:600;fill:#1f2328}"
        ".ground{fill:#ffffff}.grid{stroke:#d8dee4}.one{stroke:#8c959f}.goal{fill:#c8f3d2}"
        ".line{fill:none;stroke-linejoin:round;stroke-linecap:round}"
        f"{''.join(light)}"
        "@media (prefers-color-scheme:dark){"
        "text{fill:#9da7b1}.heading,.name{fill:#e6edf3}"
        ".ground{fill:#0d1117}.grid{stroke:#272d35}.one{stroke:#6e7681}.goal{fill:#163d26}"
        f"{''.join(dark)}"
        "}</style>"
    )


def _legend(names: Sequence[str]) -> list[str]:
    parts, x = [], 12.0
    for i, name in enumerate(names):
        parts.append(f'<path {_stroke(i)} d="M{x:.0f} 42h24"/>')
        parts.append(f'<text x="{x + 30:.0f}" y="46">{html.escape(name)}</text>')
        x += 52 + 6.6 * len(name)
    parts.append(f'<rect class="goal" x="{x:.0f}" y="37" width="24" height="10"/>')
    parts.append(f'<text x="{x + 30:.0f}" y="46">up to {GOAL:g}</text>')
    return parts


def _panel(panel: Panel, names: Sequence[str], largest: float) -> list[str]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = [f'<text class="name" x="{LEFT}" y="16">{html.escape(panel.title)}</text>']
    top_of_goal, one = _y(GOAL), _y(1.0)
    parts.append(
        f'<rect class="goal" x="{LEFT}" y="{top_of_goal:.1f}" width="{right - LEFT}" '
        f'height="{one - top_of_goal:.1f}"/>'
    )
    for ratio in TICKS:
        y = _y(ratio)
        kind = "one" if ratio == 1 else "grid"
        parts.append(f'<path class="{kind}" d="M{LEFT} {y:.1f}H{right}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{ratio:g}</text>')
    for size in _size_ticks(largest):
        x = _x(size, largest)
        parts.append(f'<path class="grid" d="M{x:.1f} {bottom}v4"/>')
        parts.append(
            f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{_short(size)}</text>'
        )
    # The first line is drawn last, on top.
    for i, name in reversed(list(enumerate(names))):
        if name in panel.lines:
            parts += _line(panel.lines[name], i, largest)
    return parts


def _line(points: Points, index: int, largest: float) -> list[str]:
    places = [(_x(size, largest), _y(ratio), ratio) for size, ratio in points]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y, _ in places)
    parts = [f'<path {_stroke(index)} d="M{path}"/>']
    radius = 2.4 if index == 0 else 1.7
    for x, y, ratio in places:
        mark = f'class="m{index % len(STYLES)}"'
        if LOW <= ratio <= HIGH:
            parts.append(f'<circle {mark} cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>')
        else:
            tip = -4 if ratio > HIGH else 4
            parts.append(f'<path {mark} d="M{x - 3.5:.1f} {y:.1f}h7l-3.5 {tip}z"/>')
    return parts


def _stroke(index: int) -> str:
    _, _, width, dashes = STYLES[index % len(STYLES)]
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'class="line l{index % len(STYLES)}" stroke-width="{width}"{dashed}'


def _x(size: float, largest: float) -> float:
    whole = WIDTH - RIGHT - LEFT
    return LEFT + whole * math.log(size) / max(math.log(largest), 1e-9)


def _y(ratio: float) -> float:
    shown = min(max(ratio, LOW), HIGH)
    share = math.log(shown / LOW) / math.log(HIGH / LOW)
    return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)


def _size_ticks(largest: float) -> list[int]:
    """Powers of 4 or 8, about six of them."""
    step = 4 if largest <= 4096 else 8
    ticks = [1]
    while ticks[-1] * step <= largest:
        ticks.append(ticks[-1] * step)
    return ticks


def _short(size: int) -> str:
    """
    >>> _short(512), _short(4096)
    ('512', '4k')
    """
    return f"{size // 1024}k" if size >= 1024 else str(size)
