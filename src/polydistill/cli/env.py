"""What a report of a bug needs: versions, devices, compilers, and variables that change what is computed."""

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    *("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "safetensors", "numpy"),
    *("triton", "torchjd", "deepspeed", "vllm", "bitsandbytes"),
)
COMPILERS = ("cc", "g++", "clang", "nvcc")
VARIABLES = (
    *("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "ACCELERATE_MIXED_PRECISION", "HF_HUB_OFFLINE"),
    *("TRITON_INTERPRET", "WORLD_SIZE"),
)


def environment() -> dict[str, str]:
    """Name -> version or description; what is not there is said as well."""
    from polydistill import __version__

    found = {"polydistill": __version__, "python": platform.python_version(), "system": platform.platform()}
    found |= {"processor": f"{platform.machine()}, {os.cpu_count()} cores"}
    found |= {name: _version(name) for name in PACKAGES}
    found |= _devices()
    found |= {name: _compiler(name) for name in COMPILERS}
    return found | {name: os.environ[name] for name in VARIABLES if name in os.environ}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _devices() -> dict[str, str]:
    try:
        import torch
    except Exception as error:  # it is what the report may be about
        return {"devices": f"torch cannot be imported: {error}"}
    devices = {"threads": str(torch.get_num_threads()), "CUDA of torch": str(torch.version.cuda)}
    for index in range(torch.cuda.device_count()):
        known = torch.cuda.get_device_properties(index)
        devices[f"device {index}"] = (
            f"{known.name}, {known.total_memory / 2**30:.0f} GiB, sm_{known.major}{known.minor}"
        )
    return devices if torch.cuda.device_count() else devices | {"devices": "no GPU that torch sees"}


def _compiler(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        return "not found"
    said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=False)
    lines = [line for line in said.stdout.splitlines() if line.strip()]
    return lines[-1 if name == "nvcc" else 0] if lines else "says nothing of itself"
