"""The whole student on the main rank, wherever its parameters are kept while training."""

import copy
from typing import Any

from peft import PeftModel, get_peft_model

from polydistill.training.taught import Taught


def whole_student(trainer: Taught) -> Any | None:
    """The student with all its parameters; to be called on every rank.

    A sharded student (FSDP, DeepSpeed ZeRO-3) is gathered into a plain copy in main memory, which goes to the device;
    ranks other than the main one then get None.

    Raises:
        RuntimeError: a parameter is missing from what was gathered.
    """
    student: Any = trainer.accelerator.unwrap_model(trainer.model)
    plugin = trainer.accelerator.state.deepspeed_plugin if trainer.is_deepspeed_enabled else None
    if not trainer.is_fsdp_enabled and (plugin is None or plugin.zero_stage < 3):
        return student
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if not trainer.is_world_process_zero():
        return None
    base = student.get_base_model() if isinstance(student, PeftModel) else student
    made: Any = type(base)(copy.deepcopy(base.config))
    made.generation_config = copy.deepcopy(base.generation_config)
    if isinstance(student, PeftModel):
        made = get_peft_model(made, student.peft_config["default"])
    dtypes = {value.dtype for value in state.values() if value.is_floating_point()}
    if len(dtypes) == 1:
        made = made.to(dtypes.pop())
    lacking = set(made.load_state_dict(state, strict=False).missing_keys)
    tied = set(getattr(base, "_tied_weights_keys", None) or ())
    if missing := sorted(name for name in lacking if not any(name.endswith(key) for key in tied)):
        raise RuntimeError(f"the gathered student lacks {len(missing)} parameters, the first being {missing[0]}")
    made.tie_weights()
    return made.eval().to(trainer.args.device)
