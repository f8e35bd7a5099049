import subprocess
import sys

import pytest

SCRIPT = """
import sys
from polydistill.cli.main import app
for command in (["schema", "--json", "schema.json"], ["init", "run.yaml"]):
    app(command, standalone_mode=False)
print("heavy:", *[name for name in ("torch", "trl", "transformers", "datasets", "numpy") if name in sys.modules])
"""


@pytest.mark.slow
def test_a_configuration_is_described_and_started_without_torch(tmp_path):
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1].split() == ["heavy:"]
    assert (tmp_path / "schema.json").stat().st_size > 1000
