"""From `training: {mode: on_policy}` to trl's arguments for generation."""

from typing import Any

from trl import DistillationConfig

from polydistill.config.file import ConfigError
from polydistill.config.run import RunConfig
from polydistill.training.sampled import SampledLinearPool, SampledLogPool

SAMPLED: dict[str, type[SampledLogPool] | type[SampledLinearPool]] = {
    "sampled_log_pool": SampledLogPool,
    "sampled_linear_pool": SampledLinearPool,
}


def distillation_config(config: RunConfig, loop: dict[str, Any]) -> DistillationConfig:
    """Trl's arguments: `loop`, what is said of generation, and `training.extra` over both.

    Raises:
        ConfigError: trl refuses one of them, or a key of `data` means nothing here.
    """
    t = config.training
    if config.data.loss is not None:
        raise ConfigError(
            f"data.loss: {config.data.loss} is not read in mode: on_policy, which learns what the student wrote "
            "and, with lambda, the data's completions; leave it out"
        )
    wanted = {**loop, "max_completion_length": t.completion_length, "temperature": t.sampling_temperature}
    if clash := sorted(set(t.extra) & set(wanted)):
        raise ConfigError(f"training.extra.{clash[0]}: the configuration has a key of its own for it; use that one")
    try:
        return DistillationConfig(**{**wanted, **t.extra})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"training: {str(error).strip().splitlines()[0]}") from error
