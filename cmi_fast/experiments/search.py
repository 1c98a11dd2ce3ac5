"""The search for a system's settings: every trial in a database, so that a killed search goes on where it was."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from cmi_fast.errors import InputError
from cmi_fast.experiments.plan import LEARNING_RATES, SELECTED_BY, Budget, System
from cmi_fast.experiments.training import Log, curve, train_on
from cmi_fast.training.checkpoint import Epoch
from cmi_fast.training.config import Config, load_config
from cmi_fast.training.trainer import Progress

if TYPE_CHECKING:
    import optuna

STARTUP_TRIALS = 4  # drawn at random, before TPE has anything to learn from


def load_optuna() -> ModuleType:
    """The module optuna, quiet. Raises InputError where it is not installed."""
    try:
        import optuna
    except ImportError:
        raise InputError("experiment: needs optuna and matplotlib: pip install 'cmi_fast[experiments]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def make_config(system: System, budget: Budget, *, steps: int, interval: int, patience: int, **chosen: Any) -> Config:
    """The settings of one training: the system's own, those that all share, what was chosen, and the budget's."""
    interval = min(interval, steps)
    loop = {"steps_per_epoch": interval, "epochs": -(-steps // interval), "patience": patience}
    own = load_config(preset=system.preset).model_dump(exclude_none=True) | system.settings
    shared = {name: default for name, default in load_config().model_dump().items() if name in SHARED}
    return Config.model_validate({**own, **shared, **budget.settings, **chosen, **loop})


SHARED = ("batch_size", "dim", "max_history")  # work, not method: the same for all, whatever a preset says


def space(system: System) -> dict[str, Any]:
    """What is searched, as it is written into the output."""
    low, high = LEARNING_RATES
    return {"interests": sorted(system.interests), "lr": {"from": low, "to": high, "log": True}}


def search(
    log: Log,
    system: System,
    budget: Budget,
    out: Path,
    progress: Callable[[str, int], Progress],
) -> list[dict[str, Any]]:
    """All trials of ``system`` on ``log``, best first: those that ``out/trials.sqlite3`` holds, and what is missing.

    A trial trains and looks at the valid part alone. The first trials take the numbers of interests in turn, with
    learning rates drawn at random; the later ones are drawn by TPE from what the earlier ones found. All chance comes
    from the number of the trial, so that a search that was killed ends as one that was not.
    """
    optuna = load_optuna()
    study = optuna.create_study(
        storage=f"sqlite:///{out / 'trials.sqlite3'}",
        study_name=f"{log.name}/{system.key}",
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=budget.steps // 3),
        load_if_exists=True,
    )
    for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)  # its process was killed: it is repeated
    while (number := len(_finished(study))) < budget.trials:
        trial = _ask(optuna, study, system, number)
        chosen = {
            "interests": trial.suggest_categorical("interests", sorted(system.interests)),
            "lr": trial.suggest_float("lr", *LEARNING_RATES, log=True),
        }
        trial.set_user_attr("number", number)
        folder = out / "work" / log.name / system.key / f"trial-{number}"
        _run(optuna, study, trial, log, system, budget, chosen, folder, progress(f"trial {number + 1}", budget.steps))
        shutil.rmtree(folder, ignore_errors=True)
    records = [_record(trial) for trial in _finished(study)]
    completed = [record for record in records if record["state"] == "complete"]
    if not completed:
        raise InputError(f"{system.name} on {log.name}: no trial could be completed: {records[0]['error']}")
    others = [record for record in records if record["state"] != "complete"]
    return sorted(completed, key=lambda record: -record["valid"]) + others


def _ask(optuna: ModuleType, study: optuna.Study, system: System, number: int) -> optuna.Trial:
    """The trial of this number: the same however often its process was killed."""
    study.sampler = optuna.samplers.TPESampler(n_startup_trials=STARTUP_TRIALS, seed=number)
    if number < len(system.interests) and not study.get_trials(states=[optuna.trial.TrialState.WAITING]):
        study.enqueue_trial({"interests": system.interests[number]})
    return study.ask()


def _run(
    optuna: ModuleType,
    study: optuna.Study,
    trial: optuna.Trial,
    log: Log,
    system: System,
    budget: Budget,
    chosen: dict[str, Any],
    folder: Path,
    progress: Progress,
) -> None:
    interval = min(budget.trial_interval, budget.steps)
    # Without patience: to give up what lags is the pruner's part.
    config = make_config(system, budget, steps=budget.steps, interval=interval, patience=budget.steps, **chosen)
    reporter = _Reporter(optuna, trial, interval, progress)
    states = optuna.trial.TrialState
    state, value, problem = states.COMPLETE, None, None
    try:
        train_on(log, config, folder, reporter)
        value = max(epoch.valid[SELECTED_BY] for epoch in reporter.epochs)
    except optuna.TrialPruned:
        state = states.PRUNED
    except InputError as error:  # the loss became infinite: a result like any other
        state, problem = states.FAIL, str(error)
    trial.set_user_attr("curve", curve(reporter.epochs, interval, SELECTED_BY))
    if problem is not None:
        trial.set_user_attr("error", problem)
    study.tell(trial, value, state=state)


class _Reporter(Progress):
    """Tells the pruner of every measurement, and passes all on to ``progress``."""

    def __init__(self, optuna: ModuleType, trial: optuna.Trial, interval: int, progress: Progress) -> None:
        self._optuna, self._trial, self._interval, self._progress = optuna, trial, interval, progress
        self.epochs: list[Epoch] = []

    def step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        self._progress.step(epoch, step, steps, loss)

    def epoch(self, epoch: Epoch, best: bool) -> None:
        self.epochs.append(epoch)
        self._progress.epoch(epoch, best)
        self._trial.report(epoch.valid[SELECTED_BY], epoch.number * self._interval)
        if self._trial.should_prune():
            raise self._optuna.TrialPruned


def _finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The trials that came to an end of their own: completed, given up, or diverged; not those that were killed."""
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state.name in ("COMPLETE", "PRUNED") or "error" in trial.user_attrs
    ]


def _record(trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
    points = trial.user_attrs["curve"]
    values = [point["valid"] for point in points]
    return {
        "number": trial.user_attrs["number"],
        "state": {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "diverged"}[trial.state.name],
        "settings": dict(trial.params),
        "valid": max(values, default=None),
        "error": trial.user_attrs.get("error"),
        "curve": points,
    }
