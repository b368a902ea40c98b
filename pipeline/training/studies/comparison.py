"""What a sweep found beside what a paper published: two tables in Markdown.

Figures are percent. `mean (least to most)` is over the seeds; a claim is compared seed by seed, so that what a seed
does to both variants falls out.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from pipeline.training.studies.study import Claim, Study

Results = dict[tuple[str, int], dict[str, float]]  # (variant, seed) -> metric -> fraction

NAMES = {
    "miou": "mIoU",
    "pixel_accuracy": "PA",
    "mean_pixel_accuracy": "MPA",
    "fwiou": "FWIoU",
}


def tables(study: Study, results: Results) -> str:
    """Variants with the paper's figures beside ours, then claim by claim: does it hold here?"""
    return "\n".join([*_variants(study, results), "", *_claims(study, results)]).strip() + "\n"


def differences(claim: Claim, study: Study, results: Results) -> list[float]:
    """`better` less `worse` in percentage points, one a seed."""
    return [
        100 * (results[claim.better, seed][claim.metric] - results[claim.worse, seed][claim.metric])
        for seed in study.seeds
    ]


def verdict(claim: Claim, found: Sequence[float]) -> str:
    """Does every seed (yes), none (no) or only some of them (unclear) point where the paper does?"""
    sign = -1.0 if claim.published is not None and claim.published < 0 else 1.0
    agreeing = sum(sign * difference > 0 for difference in found)
    if agreeing == len(found):
        return "yes"
    return "no" if not agreeing else f"unclear: {agreeing} of {len(found)} seeds"


def _variants(study: Study, results: Results) -> list[str]:
    heads = ["variant"]
    for metric in study.metrics:
        if any(metric in variant.published for variant in study.variants):
            heads.append(f"paper {NAMES[metric]}")
        heads.append(f"our {NAMES[metric]}")
    lines = [_row(heads), _row(["--", *["--:"] * (len(heads) - 1)])]
    for variant in study.variants:
        cells = [variant.name]
        for metric in study.metrics:
            if f"paper {NAMES[metric]}" in heads:
                cells.append(f"{variant.published[metric]:g}" if metric in variant.published else "")
            cells.append(_spread([100 * results[variant.name, seed][metric] for seed in study.seeds]))
        lines.append(_row(cells))
    return lines


def _claims(study: Study, results: Results) -> list[str]:
    if not study.claims:
        return []
    lines = [_row(["claim", "paper", "ours", "spread", "same direction?"]), _row(["--", "--:", "--:", "--:", "--"])]
    for claim in study.claims:
        found = differences(claim, study, results)
        lines.append(
            _row(
                [
                    claim.claim,
                    "" if claim.published is None else f"{claim.published:+.2f}",
                    f"{fmean(found):+.2f}",
                    f"{min(found):+.2f} to {max(found):+.2f}",
                    verdict(claim, found),
                ]
            )
        )
    return lines


def _spread(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{fmean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
