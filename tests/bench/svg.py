"""Plots as SVG, drawn by hand so that nothing need be installed: bars in panels, lines, and stacked bars.

Colours are chosen by the viewer's light or dark scheme, the ground is transparent, and texts are real
texts. Values stand beside or in their bars, so no plot rests on colour alone.
"""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from tests.bench.figures import number

_STYLE = """<style>
text { font: 12px system-ui, sans-serif; fill: #1f2328; }
.title { font-weight: 600; font-size: 13px; }
.quiet { fill: #656d76; }
.own { fill: #0969da; } .floor { fill: #8c959f; } .peer { fill: #bf8700; }
.axis { stroke: #d0d7de; } .line { fill: none; stroke-width: 2; }
.s0 { stroke: #0969da; fill: #0969da; } .s1 { stroke: #bf3989; fill: #bf3989; }
.s2 { stroke: #1a7f37; fill: #1a7f37; } .s3 { stroke: #bc4c00; fill: #bc4c00; }
text.s0, text.s1, text.s2, text.s3 { stroke: none; } .line { fill: none; }
.inside { fill: #ffffff; font-weight: 600; }
.p0 { fill: #0a3069; } .p1 { fill: #0969da; } .p2 { fill: #4c7fb8; } .p3 { fill: #9a6700; }
.p4 { fill: #bf3989; } .p5 { fill: #1a7f37; } .p6 { fill: #6e7781; }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3; } .quiet { fill: #9198a1; } .axis { stroke: #3d444d; }
.own { fill: #4493f8; } .floor { fill: #6e7681; } .peer { fill: #d29922; }
.s0 { stroke: #4493f8; fill: #4493f8; } .s1 { stroke: #db61a2; fill: #db61a2; }
.s2 { stroke: #3fb950; fill: #3fb950; } .s3 { stroke: #db6d28; fill: #db6d28; } .line { fill: none; }
.inside { fill: #0d1117; }
.p0 { fill: #a5d6ff; } .p1 { fill: #58a6ff; } .p2 { fill: #388bfd; } .p3 { fill: #d29922; }
.p4 { fill: #f778ba; } .p5 { fill: #3fb950; } .p6 { fill: #8b949e; }
}
</style>"""

_ROW, _PANEL_WIDTH, _LABEL_WIDTH, _VALUE_WIDTH, _HEAD = 22, 490, 180, 60, 34
# A narrower part of a stack has no room for its number.
_LEAST_SHARE_WITH_TEXT = 0.025


class Bar(NamedTuple):
    """`kind` is "own", "floor" or "peer"."""

    label: str
    value: float
    kind: str


class Panel(NamedTuple):
    """One quantity of several subjects."""

    title: str
    bars: Sequence[Bar]


class Line(NamedTuple):
    """What a label became from size to size."""

    label: str
    points: Sequence[tuple[float, float]]


class Stack(NamedTuple):
    """What a label's whole is made of, as shares of it; the same parts in each stack."""

    label: str
    shares: dict[str, float]


def bars(panels: Sequence[Panel]) -> str:
    """Panels in two columns; the scales are logarithmic, for the values lie far apart."""
    parts: list[str] = []
    top = 0
    for pair in (panels[at : at + 2] for at in range(0, len(panels), 2)):
        for column, panel in enumerate(pair):
            parts += _panel(panel, column * (_PANEL_WIDTH + 20), top)
        top += _HEAD + _ROW * max(len(panel.bars) for panel in pair) + 14
    return _document(2 * _PANEL_WIDTH + 20, top, parts)


def _panel(panel: Panel, left: int, top: int) -> list[str]:
    room = _PANEL_WIDTH - _LABEL_WIDTH - _VALUE_WIDTH
    lowest = min(bar.value for bar in panel.bars)
    highest = max(bar.value for bar in panel.bars)
    decades = max(math.log10(highest / lowest), 0.1)
    parts = [_text(left, top + 18, panel.title, "title")]
    for place, bar in enumerate(sorted(panel.bars, key=lambda bar: bar.value)):
        y = top + _HEAD + place * _ROW
        # The smallest keeps a fifth of the room: a bar of no length could not be seen.
        share = 0.2 + 0.8 * math.log10(bar.value / lowest) / decades
        end = left + _LABEL_WIDTH + room * share
        parts += [
            _text(left + _LABEL_WIDTH - 8, y + 13, bar.label, anchor="end"),
            _rectangle(left + _LABEL_WIDTH, y + 2, room * share, _ROW - 7, bar.kind),
            _text(end + 6, y + 13, number(bar.value), "quiet"),
        ]
    return parts


def lines(title: str, x_title: str, series: Sequence[Line]) -> str:
    """Lines over sizes, on a logarithmic x; y begins at 0, so that what is flat looks flat."""
    left, top, width, height = 60, 40, 560, 240
    xs = [math.log10(x) for line in series for x, _ in line.points]
    step = _round_step(max(y for line in series for _, y in line.points))
    ticks = [step * number for number in range(6)]
    highest = ticks[-1]
    first, last = min(xs), max(max(xs), min(xs) + 1)

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            left + width * (math.log10(x) - first) / (last - first),
            top + height * (1 - y / highest),
        )

    parts = [
        _text(0, 18, title, "title"),
        _text(left + width / 2, top + height + 38, x_title, "quiet", "middle"),
    ]
    for tick in ticks:
        y = at(10**first, tick)[1]
        parts.append(_rule(left, y, left + width, y))
        parts.append(_text(left - 8, y + 4, f"{tick:g}", "quiet", "end"))
    for exponent in range(math.ceil(first), math.floor(last) + 1):
        x = at(10**exponent, 0)[0]
        parts.append(_text(x, top + height + 18, f"{10**exponent:,}", "quiet", "middle"))
    for place, line in enumerate(series):
        points = [at(x, y) for x, y in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline class="line s{place % 4}" points="{path}"/>')
        parts += [
            f'<circle class="s{place % 4}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in points
        ]
        parts.append(
            _text(left + width + 14, top + 14 + 20 * place, f"● {line.label}", f"s{place % 4}")
        )
    return _document(left + width + 320, top + height + 50, parts)


def stacks(title: str, series: Sequence[Stack]) -> str:
    """One bar a stack, each as long as the other, and what the parts are; shares are in %."""
    left, width, row, bar, column = 60, 780, 44, 30, 215
    parts = [_text(0, 18, title, "title")]
    for place, stack in enumerate(series):
        x, y = float(left), _HEAD + place * row
        parts.append(_text(left - 10, y + 20, stack.label, anchor="end"))
        for number_of_part, share in enumerate(stack.shares.values()):
            parts.append(_rectangle(x, y, max(0, width * share - 1), bar, f"p{number_of_part}"))
            if share >= _LEAST_SHARE_WITH_TEXT:
                middle = x + width * share / 2
                parts.append(_text(middle, y + 20, f"{100 * share:.0f}", "inside", "middle"))
            x += width * share
    top = _HEAD + row * len(series)
    for place, name in enumerate(series[0].shares):
        x, y = left + column * (place % 4), top + 22 * (place // 4)
        parts += [
            _rectangle(x, y + 3, 12, 12, f"p{place}"),
            _text(x + 18, y + 13, name),
        ]
    return _document(left + width + 10, top + 22 * math.ceil(len(series[0].shares) / 4), parts)


def _round_step(highest: float) -> float:
    """The least of 1, 2, 2.5 and 5 times a power of ten of which five reach `highest`."""
    power = 10.0 ** math.floor(math.log10(highest / 5))
    return next(one * power for one in (1, 2, 2.5, 5, 10) if 5 * one * power >= highest)


def _document(width: float, height: float, parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}"'
        f' width="{width:g}" height="{height:g}" role="img">'
    )
    return "\n".join([head, _STYLE, *parts, "</svg>"]) + "\n"


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _rectangle(x: float, y: float, width: float, height: float, kind: str) -> str:
    return (
        f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
        ' rx="2"/>'
    )


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="axis" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
