"""Real processes without their imports: one parent has torch, transformers, trl and the rooms, and forks the others.

A child has its own arguments, environment, folder, output and exit code, and can be killed. It ends as any Python
program ends, but does not take apart all that it has imported. The parent has run no operation of torch, and has no
thread of Python's or of torch's, when it forks. It serves all test processes of a session and ends with the last.
"""

import fcntl
import json
import os
import random
import selectors
import signal
import socket
import subprocess
import sys
import time
import weakref
from atexit import register
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import kept

HERE = Path(__file__).parent
POLYDISTILL = ("-m", "polydistill")
EFFORT = 0.02
"""Of the search behind a run's certificate, here and in the children; a `real` process searches as a user's does."""


class Process:
    """A child as `subprocess.Popen` shows it: `python *command` in a fork.

    Args:
        command: what would follow `python`: a script or `-m module`, and its arguments.
        cwd: its folder.
        env: its environment; that of the test unless given.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        cwd: str | Path = ".",
        env: dict[str, str] | None = None,
    ) -> None:
        self.command, self.returncode = [str(word) for word in command], None
        self._out, self._err = os.memfd_create("stdout"), os.memfd_create("stderr")
        for file in (self._out, self._err):
            weakref.finalize(self, os.close, file)
        asked = {"command": self.command, "cwd": os.path.abspath(cwd), "env": env or dict(os.environ)}
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        files = [theirs.fileno(), self._out, self._err]
        with theirs:
            socket.send_fds(_parent(), [json.dumps(asked).encode()], files)
        said = self._channel.recv(64)
        assert said, "the parent of all commands has ended"
        self.pid = int(said)

    def wait(self, timeout: float | None = None) -> int:
        """The exit code; minus the signal of a process that was killed."""
        if self.returncode is None:
            self._channel.settimeout(timeout)
            try:
                self.returncode = int(self._channel.recv(64))
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(self.command, timeout or 0, self.stdout, self.stderr) from None
            self._channel.close()
        return self.returncode

    def poll(self) -> int | None:
        """The exit code of a process that has ended."""
        with suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def send_signal(self, number: int) -> None:
        """As `kill` does; nothing to a process that has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    @property
    def stdout(self) -> str:
        """What it has printed so far."""
        return _text(self._out)

    @property
    def stderr(self) -> str:
        """What it has complained of so far."""
        return _text(self._err)


def run(command: Sequence[str | Path], timeout: float = 250, **how: Any) -> subprocess.CompletedProcess[str]:
    """`subprocess.run([sys.executable, *command])`, with what it printed; `how` is `Process`'s."""
    return run_all([command], timeout, [how])[0]


def run_all(
    commands: Sequence[Sequence[str | Path]], timeout: float, how: Sequence[dict[str, Any]]
) -> list[subprocess.CompletedProcess[str]]:
    """Several at once; when one fails the others are killed."""
    processes: list[Process] = []
    last = time.monotonic() + timeout
    try:
        for command, options in zip(commands, how, strict=True):
            processes.append(Process(command, **options))
        while any(codes := [process.poll() for process in processes]) or None in codes:
            if any(codes):
                break
            if time.monotonic() > last:
                for process in processes:
                    process.send_signal(signal.SIGUSR1)  # says where each thread stands
                time.sleep(1.0)
                said = "".join(f"{p.command}\n{p.stdout}{p.stderr}\n" for p in processes)
                raise AssertionError(f"after {timeout} s these had not ended:\n{said}")
            time.sleep(0.01)
        time.sleep(1.0 if any(codes) and None in codes else 0)  # the others may be about to say why
    finally:
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.wait(10)
    return [subprocess.CompletedProcess(p.command, p.wait(10), p.stdout, p.stderr) for p in processes]


def ranks(number: int, command: Sequence[str | Path], timeout: float = 250, **how: Any) -> str:
    """The command once per rank, as `torchrun` starts it; what all printed. Fails with that when one fails."""
    port = _free_port()
    world = {"WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1"}
    world |= {"MASTER_PORT": str(port), "GROUP_RANK": "0", "OMP_NUM_THREADS": "1"}
    env = {**how.pop("env", os.environ), **world}
    each = [{**how, "env": {**env, "RANK": str(rank), "LOCAL_RANK": str(rank)}} for rank in range(number)]
    ended = run_all([command] * number, timeout, each)
    said = "".join(f"rank {rank}, {done.returncode}\n{done.stdout}{done.stderr}" for rank, done in enumerate(ended))
    assert not any(done.returncode for done in ended), said[-6000:]
    return said


def _free_port() -> int:
    """A port below those that Linux gives to outgoing connections, of which one could take it before rank 0 does."""
    while True:
        port = random.SystemRandom().randrange(15000, 32000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def _text(file: int) -> str:
    return os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace")


@cache
def _parent() -> socket.socket:
    """Where to ask for children; those that are left end with this test process."""
    place = os.path.join(os.environ[kept.FOLDER], "parent")
    ours = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    with open(f"{place}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            ours.connect(place)
        except OSError:
            _start(place)
            ours.connect(place)
    register(ours.close)
    return ours


def _start(place: str) -> None:
    """A parent that listens there."""
    with suppress(FileNotFoundError):
        os.unlink(place)
    known = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "COV_"))}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(place)
        listening.listen()
        listening.set_inheritable(True)
        os.posix_spawn(
            sys.executable,
            [sys.executable, str(HERE / "forked.py"), str(listening.fileno())],
            known,
            file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)],
        )


def _serve(listening: socket.socket) -> dict[str, Any]:
    """Fork on request and report exit codes; returns in the children, with what each was asked for."""
    selector, children, channels = selectors.DefaultSelector(), {}, set()
    selector.register(listening, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            channel = key.fileobj
            if channel is listening:
                asking, _ = listening.accept()
                channels.add(asking)
                selector.register(asking, selectors.EVENT_READ)
            elif channel in channels:
                message, files, _, _ = socket.recv_fds(channel, 1 << 20, 3)
                if not message:
                    selector.unregister(channel)
                    channels.remove(channel)
                    channel.close()
                    for pid, _, of in children.values():
                        if of is channel:
                            os.kill(pid, signal.SIGKILL)
                    if not channels:
                        os._exit(0)
                    continue
                names = [comm.read_text() for comm in Path("/proc/self/task").glob("*/comm")]
                assert len(names) - names.count("jemalloc_bg_thd\n") == 1, names  # pyarrow's, which bears a fork
                pid = os.fork()
                if not pid:
                    selector.close()
                    for _, asker, _ in children.values():
                        asker.close()
                    for mine in (listening, *channels):
                        mine.close()
                    os.close(files[0])
                    return {**json.loads(message), "files": files[1:]}
                asker = socket.socket(fileno=files[0])
                for file in files[1:]:
                    os.close(file)
                asker.send(str(pid).encode())
                watch = os.pidfd_open(pid)
                children[watch] = pid, asker, channel
                selector.register(watch, selectors.EVENT_READ)
            else:
                selector.unregister(key.fd)
                os.close(key.fd)
                pid, asker, _ = children.pop(key.fd)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with asker, suppress(BrokenPipeError):
                    asker.send(str(code).encode())


def _become(asked: dict[str, Any]) -> None:
    """The program that was asked for, to its end."""
    import faulthandler
    import runpy
    import warnings

    import numpy

    for number, file in enumerate(asked["files"], 1):
        os.dup2(file, number)
        os.close(file)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    faulthandler.register(signal.SIGUSR1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in a shell's background
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and under nohup
    random.seed()
    numpy.random.seed()
    if os.environ.get("PYTHONWARNINGS") == "ignore":
        warnings.simplefilter("ignore")
    first, *rest = asked["command"]
    module = rest.pop(0) if first == "-m" else None
    path = [word for word in os.environ.get("PYTHONPATH", "").split(os.pathsep) if word]
    sys.path[:0] = [asked["cwd"] if module else os.path.dirname(os.path.abspath(first)), *path]
    sys.argv = [module or first, *rest]
    if module:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(first, run_name="__main__")


def _end(code: Any) -> NoReturn:
    """As `sys.exit(code)`, without the 0.4 s of processor that it takes to free every module."""
    import atexit
    import threading

    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        sys.exit(120)
    os._exit((code or 0) & 0xFF)


def _load() -> None:
    """What commands and ranks import."""
    import gc

    import cheaper
    import ruamel.yaml.mergevalue
    import scipy.io
    import threadpoolctl
    import torch.distributed.checkpoint.state_dict
    import torch.distributed.fsdp
    import torch.profiler._cupti_monitor
    import torch.utils.serialization.config
    import torchjd
    import transformers.models.llama.modeling_llama
    import typer._click.decorators
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    from polydistill.cli import main
    from polydistill.report import page, write_report
    from polydistill.run import certificates
    from polydistill.run.cache import build_cache
    from polydistill.run.train import train_run
    from polydistill.serve import Scorer
    from polydistill.training.on_policy import OnPolicyPolyDistillTrainer

    get_checkpoint_conversion_mapping("llama")  # 300 regular expressions
    page.template()
    assert all((ruamel.yaml, scipy, threadpoolctl, torchjd, typer))
    assert all((torch, transformers, main, write_report, Scorer, build_cache, OnPolicyPolyDistillTrainer, train_run))
    certificates.certify, certificates.EFFORT = kept.kept(certificates.certify), EFFORT
    cheaper.without_fingerprints()
    sys.path.remove(str(HERE))  # which a child has only when its environment says so
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    _load()
    try:
        _become(_serve(socket.socket(fileno=int(sys.argv[1]))))
    except SystemExit as end:
        _end(end.code)
    _end(0)
