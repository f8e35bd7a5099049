"""Write `golden.json`: losses, gradients and states that a change of form must leave as they are, bit for bit.

python tests/golden/record.py [scene ...]             write these, or all
python tests/golden/record.py --show scene            print one, as JSON
"""

import hashlib
import json
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
FILE = HERE / "golden.json"


def machine() -> dict[str, str]:
    """What the bits depend on."""
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return {
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "flags": hashlib.sha256(flags.encode()).hexdigest()[:16],
    }


def main(wanted: list[str]) -> None:
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRL_EXPERIMENTAL_SILENCE="1")
    sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "served")]
    import recorded
    import torch

    torch.set_num_threads(1)
    if wanted[:1] == ["--show"]:
        print(json.dumps(recorded.scene(wanted[1])))
        return
    made = json.loads(FILE.read_text()) if wanted and FILE.exists() else {}
    made["machine"] = machine()
    for name in wanted or recorded.SCENES:
        made.setdefault("scenes", {})[name] = recorded.scene(name)
    FILE.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
