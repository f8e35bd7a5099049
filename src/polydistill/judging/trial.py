"""Before the run: the recommended stack against labels alone, on the run's own student, for a few steps.

Held-out text says which stack predicts best. How much of it a student learns in the steps that it has it does not say.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic

from polydistill.config.file import ConfigError
from polydistill.config.run import RunConfig
from polydistill.judging.contestants import LABELS, OWN, can_be_cached, trained, without
from polydistill.judging.recommendation import UNTRIED, Recommendation, Trial
from polydistill.records.paired import better


def on_trial(
    config: RunConfig, found: Recommendation, steps: int, told: Callable[[str], None] = lambda _: None
) -> Recommendation:
    """What was recommended, with the outcome of a trial; nothing is left on disk.

    Args:
        config: of the run.
        found: for it.
        steps: of each student; its learning rate goes its whole way in them.
        told: about what is done, a line each.

    Raises:
        ConfigError: there is no held-out data.
    """
    if config.data.evaluation is None:
        raise ConfigError("--trial: there is no data.evaluation, on which students are compared; name a file")
    content = config.model_dump(by_alias=True, exclude_unset=True)
    short = {"max_steps": steps, "completions": {"prompts": 0}}
    content["training"] = content.get("training", {}) | short
    run = RunConfig.model_validate(content | {"weighting": found.best.weighting})
    plan, started = {OWN: run, LABELS: without(run, [], 1.0)}, monotonic()
    output = Path(config.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f"{output.name}-trial-", dir=output.parent) as place:
        records, _ = trained(run, plan, 1, Path(place), cached=can_be_cached(run), command="a trial", told=told)
    trial = Trial(steps, better(records[OWN], records[LABELS]), monotonic() - started)
    return replace(found, trial=trial, says=[*(one for one in found.says if one != UNTRIED), str(trial)])
