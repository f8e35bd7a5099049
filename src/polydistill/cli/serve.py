"""`polydistill serve`: a model on this machine as a teacher for students elsewhere, or to talk to."""

import os
import socket
import sys
from typing import Annotated

import typer

CONNECTIONS = 256
"""Clients at once; more are told to come back."""

DTYPES = ("auto", "float32", "bfloat16", "float16")


def serve(  # noqa: PLR0913
    model: Annotated[str, typer.Argument(help="hub id or folder of a causal language model, or of a finished run")],
    host: Annotated[str, typer.Option(help="address to listen on; 0.0.0.0 lets other machines in")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one")] = 8000,
    name: Annotated[str | None, typer.Option(help="under which the model is served; MODEL by default")] = None,
    top_logprobs_limit: Annotated[int, typer.Option(min=1, help="entries per position that may be asked for")] = 128,
    api_key_env: Annotated[
        str | None, typer.Option(help="environment variable with the key that clients must send")
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16")] = "auto",
    revision: Annotated[str | None, typer.Option(help="branch, tag or commit on the hub")] = None,
    device: Annotated[str | None, typer.Option(help="e.g. cuda:0; the GPU if there is one")] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="a name under which clients ask without a key, beside localhost")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="torch threads")] = None,
) -> None:
    """Serve a model, OpenAI-compatible: prompt log-probabilities for students elsewhere, and text that it writes."""
    from pathlib import Path

    import torch

    from polydistill.records import SUMMARY

    try:
        import uvicorn

        from polydistill.serve import Scorer, application
        from polydistill.serve.connection import Connection
    except ModuleNotFoundError as error:
        raise ValueError(f"serve needs {error.name}; pip install 'polydistill[serve]'") from error
    from polydistill.teachers import LocalTeacher

    if dtype not in DTYPES:
        raise ValueError(f"--dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    key = None if api_key_env is None else os.environ.get(api_key_env)
    key = None if key is None else key.strip()
    if api_key_env is not None and not key:
        raise ValueError(f"--api-key-env: the environment variable {api_key_env} is not set, or empty")
    if threads is not None:
        torch.set_num_threads(threads)
    if (Path(model) / SUMMARY).is_file():
        model = str(Path(model) / "student")
    teacher = LocalTeacher.load(name or model, model, dtype=dtype, revision=revision)
    teacher.model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    scorer = Scorer(teacher)
    hosts = {host, socket.gethostname(), socket.getfqdn(), *(allow_host or ())}
    app = application(scorer, name or model, top_logprobs_limit=top_logprobs_limit, api_key=key, hosts=hosts)
    listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound = listener.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    print(f"serving {name or model} ({teacher.describe()}) at http://{shown}:{bound}/v1", flush=True)
    if key is None and host not in ("127.0.0.1", "localhost", "::1"):
        print("anybody who reaches this address may use it; --api-key-env NAME asks for a key", flush=True)
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        limit_concurrency=CONNECTIONS,
    )
    sys.setswitchinterval(0.001)  # threads that read and write for clients leave the event loop its turn
    uvicorn.Server(config).run(sockets=[listener])
