"""Curves of what objectives do to a token, as SVG: small, the same on every machine, and readable as a diff."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import torch

from opdscope_scorer.objectives.inputs import ObjectiveInputs
from opdscope_scorer.objectives.parse import parse_objective

# Colours that differ for everybody (Okabe and Ito).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 760, 340, 54, 330, 14, 44
_TICKS_X = (0.01, 0.1, 1.0, 10.0, 100.0)

# The token has P = 0.001; a less likely one, at which teacher and student agree, is what it is compared with.
TOKEN_PROBABILITY = 1e-3
REFERENCE_PROBABILITY = 1e-4


@dataclass(frozen=True)
class Curve:
    """f of the token minus f of the reference, at each q/P."""

    name: str
    ratios: tuple[float, ...]
    pulls: tuple[float, ...]


def curve(expression: str, *, steps: int = 160) -> Curve:
    """The pull d/P of an objective as q/P goes from 1/100 to 100."""
    ratio_N = torch.logspace(-2, 2, steps + 1, dtype=torch.float64)
    p_NV = _with_rest(TOKEN_PROBABILITY * torch.ones_like(ratio_N))
    q_NV = _with_rest(TOKEN_PROBABILITY * ratio_N)
    log_p_NV, log_q_NV = p_NV.log(), q_NV.log()
    inputs = ObjectiveInputs(
        log_p_NV=log_p_NV, log_q_NV=log_q_NV, student_logits_NV=log_p_NV, teacher_logits_NV=log_q_NV
    )
    pull_NV = parse_objective(expression).direction(inputs) / p_NV
    return Curve(expression, tuple(ratio_N.tolist()), tuple((pull_NV[:, 1] - pull_NV[:, 2]).tolist()))


def _with_rest(token_N: torch.Tensor) -> torch.Tensor:
    """Policies of three tokens: the rest, the token, the reference."""
    reference_N = torch.full_like(token_N, REFERENCE_PROBABILITY)
    return torch.stack((1 - token_N - reference_N, token_N, reference_N), dim=-1)


def svg(curves: Sequence[Curve]) -> str:
    """A drawing with axes q/P and f, and a legend."""
    decades = max(1, math.ceil(math.log10(max(abs(pull) for one in curves for pull in one.pulls))))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}">',
        "<style>text { font: 12px sans-serif }</style>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        *_grid(decades),
    ]
    for number, one in enumerate(curves):
        parts += _drawn(one, number, decades)
    return "\n".join([*parts, "</svg>", ""])


def _grid(decades: int) -> list[str]:
    parts = []
    powers = [10.0**power for power in range(decades + 1)]
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    for tick in _TICKS_X:
        parts.append(_line(_x(tick), _TOP, _x(tick), bottom, strong=tick == 1))
        parts.append(_text(_x(tick), bottom + 17, f"{tick:g}", "middle"))
    for tick in (0.0, *powers, *(-power for power in powers)):
        height = _y(tick, decades)
        parts.append(_line(_LEFT, height, right, height, strong=tick == 0))
        parts.append(_text(_LEFT - 7, height + 4, f"{tick:g}", "end"))
    parts.append(_text((_LEFT + right) / 2, _HEIGHT - 8, "q/P of the token", "middle"))
    return parts


def _drawn(one: Curve, number: int, decades: int) -> list[str]:
    colour, dashes = _COLOURS[number % len(_COLOURS)], ("", ' stroke-dasharray="6 4"')[number % 2]
    style = f'fill="none" stroke="{colour}" stroke-width="2"{dashes}'
    points = " ".join(f"{_x(r):.1f},{_y(f, decades):.1f}" for r, f in zip(one.ratios, one.pulls, strict=True))
    x, y = _WIDTH - _RIGHT + 14, _TOP + 14 + 22 * number
    return [
        f'<polyline points="{points}" {style}/>',
        f'<line x1="{x}" y1="{y - 4}" x2="{x + 26}" y2="{y - 4}" {style}/>',
        _text(x + 33, y, one.name, "start"),
    ]


def _line(x1: float, y1: float, x2: float, y2: float, *, strong: bool) -> str:
    colour = "#888" if strong else "#ddd"
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _x(ratio: float) -> float:
    return _LEFT + (math.log10(ratio) + 2) / 4 * (_WIDTH - _LEFT - _RIGHT)


def _y(pull: float, decades: int) -> float:
    """Linear near 0 and logarithmic far from it."""
    share = math.asinh(pull) / math.asinh(10.0**decades)
    return _TOP + (1 - share) / 2 * (_HEIGHT - _TOP - _BOTTOM)
