"""The catalogue as a document: `python -m opdscope_scorer.objectives.docs docs` writes it and its plots."""

import sys
from collections.abc import Iterator
from pathlib import Path

from opdscope_scorer.objectives.base import Objective, Parameter
from opdscope_scorer.objectives.plots import curve, svg
from opdscope_scorer.objectives.presets import PRESETS
from opdscope_scorer.objectives.registry import FAMILIES, known

_TITLES = {
    "kl": "Kullback-Leibler",
    "jsd": "Generalised Jensen-Shannon",
    "skew": "Skewed divergences",
    "divergences": "Total variation, α- and f-divergences",
    "top_k": "Top-K",
    "temperature": "Temperature and standardised logits",
    "sampled": "Sampled tokens",
    "estimators": "Backpropagated estimators",
    "minillm": "MiniLLM",
    "policy_gradient": "Policy gradients",
}

_CURVES = {
    "kl": ("reverse_kl", "forward_kl", "reverse_kl(floor=-8)", "forward_kl(floor=-8)"),
    "jsd": ("gkd_jsd(beta=0)", "gkd_jsd(beta=0.1)", "gkd_jsd(beta=0.5)", "gkd_jsd(beta=0.9)", "gkd_jsd(beta=1)"),
    "skew": (
        "reverse_kl",
        "skew_reverse_kl(alpha=0.1)",
        "skew_reverse_kl(alpha=0.5)",
        "forward_kl",
        "skew_forward_kl(alpha=0.1)",
        "skew_forward_kl(alpha=0.5)",
    ),
    "divergences": (
        "total_variation",
        "alpha_divergence(alpha=0.5)",
        "alpha_divergence(alpha=-1)",
        *(f"f_divergence(phi={phi})" for phi in ("hellinger", "jeffreys", "le_cam", "neyman", "pearson")),
    ),
    "top_k": (
        *(f"top_k_reverse_kl(k=2, form={form})" for form in ("unnormalised", "renormalised", "tail_bucket")),
        "top_k_reverse_kl(k=2, form=stop_gradient)",
        *(f"top_k_forward_kl(k=2, form={form})" for form in ("unnormalised", "renormalised", "tail_bucket")),
        "top_k_jsd(k=2)",
    ),
    "temperature": (
        "temperature_kd(T=1)",
        "temperature_kd(T=2)",
        "temperature_kd(T=4)",
        "logit_standardised_kd(T=1)",
        "logit_standardised_kd(T=2)",
    ),
    "sampled": ("sampled_opd", "sampled_opd(clip=2)", "vopd"),
    "estimators": ("k1", "k2", "k3", "k3(loss_clip=10)"),
}

_INTRODUCTION = """\
# Objectives

*Written by `python -m opdscope_scorer.objectives.docs docs` from the registry; a test keeps it up to date.*

At a node, `P` is the student's policy whose loss is taken, `q` the teacher's, `V` the probability of success after a
token. Every objective is a direction `d`: minus the gradient of its loss in the logits, times the temperature τ of
the loss. Most are `d_j = P_j (f_j - f̄)` with `f̄ = Σ P f`, so `f` says how hard a token is pulled. All arithmetic is
float64.

* A row of `d` is finite and sums to zero, or all of it is NaN: the loss has no gradient at that node.
* Where `P = 0`, a token contributes exactly 0 to every sum over `P`, and `d = 0` unless the note says otherwise.
* Write `name`, `name(parameter=value)`, or a weighted sum such as `0.5*reverse_kl + 0.5*forward_kl` or
  `grpo + 0.1*sampled_opd`. Weights act on directions, all of which have the same convention.
* `sampled_opd`, `vopd`, `k1`, `k2`, `k3`, `grpo` and `dr_grpo` are expectations over tokens sampled from `P`, and weigh
  every token of a rollout alike: what a trainer gets if it samples from the policy whose loss it takes, and averages
  over tokens.
* Plots show the pull on a token with P = 0.001 as the teacher's probability goes from 1/100 to 100 times that, minus
  the pull on a less likely token at which both agree. In the plots of top-K, that other token is outside of K.

`needs`: `full_vocabulary` means that a bucket of tokens does not do, `full_logits` the raw logits of student and
teacher, `values` the success after each token, `lengths` the lengths of rollouts, `teacher_returns` continuations that
the teacher has scored. An objective whose needs are not met is refused by name.
"""

_ENDING = """\
## Candidates and tail

Objectives without `full_vocabulary` also work on candidates and one bucket of all other tokens. If `q/P` and `V` are
the same for all tokens of the bucket, nothing is lost: its part of `d` belongs to its tokens in proportion to their
`P`, and `⟨g,d⟩` counts its product `Σ_R P_j² / P_R²` times. Otherwise let `E` and `D` be the largest deviations of `f`
and `V` in the tail from those of the bucket. Then a candidate's `d` is off by at most `P_k P_R E`, the bucket's by
`P_R (1 - P_R) E`, and `⟨g,d⟩` by what `bucket.numerator_error` computes, of order `P_R E + Σ_R P_j² (E + D)`.

## Directions estimated from rollouts

`minillm`, `grpo`, `dr_grpo` and `ideal` are means over rollouts. If the same rollouts estimate `V`, then `⟨g,d⟩` and
`‖d‖²` are biased by the covariance of the two means. `cross_fitted` takes products across two halves of the rollouts,
which removes the bias. The extra cost of `minillm` is one teacher pass over every continuation.

## Your own objective

```python
# my_objectives.py
from opdscope_scorer.objectives import ObjectiveInputs, Parameter, centred, register


@register(
    name="clipped_reverse_kl",
    family="mine",
    formula="f = max(log(q/P), -c)",
    loss="...",
    source="my paper, eq. 3",
    parameters=(Parameter("c", 5.0, "largest push down", low=0),),
)
def clipped_reverse_kl(x: ObjectiveInputs, *, c: float):
    return centred(x, x.log_ratio_NV.clamp_min(-c))
```

```toml
[project.entry-points."opdscope.objectives"]
mine = "my_objectives"
```
"""


def document() -> str:
    """The whole text of `objectives.md`."""
    return "\n".join([_INTRODUCTION, *_families(), *_presets(), _ENDING])


def plots() -> dict[str, str]:
    """The SVG file of each family that has one, by its path beside the document."""
    return {f"images/objectives/{family}.svg": svg([curve(one) for one in ones]) for family, ones in _CURVES.items()}


def _families() -> Iterator[str]:
    built_in = [one for one in known().values() if one.family in FAMILIES]
    for family in FAMILIES:
        yield f"## {_TITLES[family]}\n"
        yield from (_entry(one) for one in built_in if one.family == family)
        if family in _CURVES:
            yield f"![{_TITLES[family]}: the pull on a token](images/objectives/{family}.svg)\n"


def _entry(objective: Objective) -> str:
    rows = [
        ("formula", f"`{objective.formula}`"),
        ("loss", f"`{objective.loss}`"),
        ("parameters", "; ".join(_parameter(one) for one in objective.parameters)),
        ("needs", ", ".join(f"`{need}`" for need in sorted(objective.needs))),
        ("source", objective.source),
        ("note", objective.note),
    ]
    lines = [f"* {label}: {text}" for label, text in rows if text]
    return "\n".join([f"### `{objective.name}`\n", *lines, ""])


def _parameter(parameter: Parameter) -> str:
    default = "off" if parameter.default is None else f"{parameter.default}"
    allowed = f"one of {', '.join(parameter.choices)}; " if parameter.choices else ""
    return f"`{parameter.name}` ({allowed}default {default}): {parameter.meaning}"


def _presets() -> Iterator[str]:
    yield "## Presets\n"
    yield "What trainers minimise with their defaults. Results carry the expression, not the preset's name.\n"
    yield "| preset | expression | read from | note |"
    yield "|---|---|---|---|"
    yield from (f"| `{one.name}` | `{one.expression}` | {one.release} | {one.note} |" for one in PRESETS.values())
    yield ""


def main(folder: Path) -> None:
    """Writes the document and its plots."""
    for name, text in {"objectives.md": document(), **plots()}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
