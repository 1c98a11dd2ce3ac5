"""What share of CMI's training step each of its parts has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from measure import Row

WHOLE = "float32"


def step_table(rows: Sequence[Row]) -> list[str]:
    """Lines of Markdown: each part of the step beside the whole, of ``rows`` that have both; else none."""
    step = {(row.case, row.variant): row for row in rows if row.operator == "step"}
    if (WHOLE, "cmi_fast") not in step:
        return []
    ours, plain = step[WHOLE, "cmi_fast"], step[WHOLE, "PyTorch"]
    parts = [case for case, variant in step if variant == "cmi_fast" and case not in (WHOLE, "bfloat16")]
    lines = [
        "",
        "## The step, part by part",
        "",
        "Parts were timed alone, after the whole. A ceiling is that of multiply-adds, for Adam that of a large copy,",
        "which it may pass where its tables stay in the cache.",
        "",
        "| float32 | ms | share | of its ceiling | PyTorch ms | share | times ours |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in parts:
        mine, other = step[case, "cmi_fast"], step[case, "PyTorch"]
        ceiling = mine.bandwidth_share if mine.peak_share is None else mine.peak_share
        lines.append(
            f"| {case} | {mine.median_ms:.1f} | {mine.median_ms / ours.median_ms:.0%} | {ceiling:.0%} "
            f"| {other.median_ms:.1f} | {other.median_ms / plain.median_ms:.0%} | {other.ratio:.1f} |"
        )
    if parts:
        rest = [whole.median_ms - sum(step[case, whole.variant].median_ms for case in parts) for whole in (ours, plain)]
        shares = rest[0] / ours.median_ms, rest[1] / plain.median_ms
        lines.append(f"| everything else | {rest[0]:.1f} | {shares[0]:.0%} | | {rest[1]:.1f} | {shares[1]:.0%} | |")
    lines.append(f"| the step | {ours.median_ms:.1f} | | | {plain.median_ms:.1f} | | {plain.ratio:.1f} |")
    return lines
