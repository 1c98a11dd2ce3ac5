"""The evaluation that all models share: one task a day, its metrics, and simple baselines."""

from __future__ import annotations

from cmi_fast.evaluation.baselines import evaluate_baselines
from cmi_fast.evaluation.metrics import CUTOFFS, coverage, ranking_metrics, user_metrics
from cmi_fast.evaluation.paired import PairedDifference, paired_bootstrap
from cmi_fast.evaluation.task import POLICY, EvaluationTask

__all__ = [
    "CUTOFFS",
    "POLICY",
    "EvaluationTask",
    "PairedDifference",
    "coverage",
    "evaluate_baselines",
    "paired_bootstrap",
    "ranking_metrics",
    "user_metrics",
]
