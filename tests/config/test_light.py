import subprocess
import sys

HEAVY = ("torch", "trl", "transformers", "datasets", "numpy")


def test_a_configuration_is_described_and_started_without_torch(tmp_path):
    script = (
        "import sys; from polydistill.cli.main import app\n"
        f"for command in (['schema', '--json', {str(tmp_path / 'schema.json')!r}], ['init', {str(tmp_path / 'run.yaml')!r}]):\n"
        "    app(command, standalone_mode=False)\n"
        f"print('heavy:', *[name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].split() == ["heavy:"]
    assert (tmp_path / "schema.json").stat().st_size > 1000
