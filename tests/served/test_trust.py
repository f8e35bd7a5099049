"""A server is believed as far as it can be checked: its model, its masses, its lengths; and it is told nothing else."""

import base64
import json
import os
import socket
import threading
from contextlib import contextmanager

import forked
import models
import pytest
import servers
from datasets import Dataset
from test_faults import QUICK, entries, refused, speak, teacher

from polydistill.config.file import ConfigError, load_config
from polydistill.data.context import DataError
from polydistill.teachers.served import ServedTeacher
from polydistill.teachers.served import teacher as module
from polydistill.teachers.served.address import WITHHELD, Address
from polydistill.teachers.source import TeacherUnavailableError
from polydistill.training.prepare import refuse_too_long


@pytest.fixture(scope="module")
def scorer():
    return servers.scorer()


def asked_once(url: str) -> ServedTeacher:
    made = ServedTeacher("big", url, servers.MODEL, top_logprobs=5, patience=QUICK)
    made.agree_with(models.tokenizer(), len(models.tokenizer()))
    return made


@pytest.mark.slow
def test_another_model_under_the_same_name_is_noticed(scorer, monkeypatch):
    monkeypatch.setattr(module, "EVERY", 3)
    faulty = servers.Faulty(servers.well, scorer)
    with faulty.running() as url:
        made = asked_once(url)
        for _ in range(4):
            speak(made)  # the same model is the same
        faulty.scorer = servers.scorer(7)
        speak(made)
        with pytest.raises(TeacherUnavailableError, match=r"'big'.* another model is served under 'tiny' now"):
            speak(made)


def test_a_server_that_comes_back_with_another_model_is_noticed_at_once(scorer):
    faulty = servers.Faulty(servers.well, scorer)
    with faulty.running() as url:
        made = asked_once(url)
        faulty.reply, faulty.scorer = (
            servers.out_when(lambda number: number == faulty.asked - 1 == 1),
            servers.scorer(7),
        )
        with pytest.raises(TeacherUnavailableError, match="another model"):
            speak(made)
    assert made.client.counts.retries == 1


def test_the_whole_vocabulary_with_a_part_of_the_mass_is_refused(scorer):
    def lower(answer):
        for entry in entries(answer)[1].values():
            entry["logprob"] -= 1.2

    said, _, _ = refused(scorer, servers.spoiled(lower), top_logprobs=300)
    assert "token 1: its 300 entries have a mass of 0.301, and the others" in said


def test_a_server_that_begins_texts_with_a_token_of_its_own_is_named(scorer):
    student, texts = models.tokenizer(), [[{"role": "user", "content": "no text"}], "a b c"]
    with servers.Faulty(servers.well, scorer).running() as url:
        assert asked_once(url).reads_otherwise(student, texts) is None
    begins = servers.scorer()
    plain = begins.encode
    begins.encode = lambda text, special: [1, *plain(text, special)] if special else plain(text, special)
    with servers.Faulty(servers.well, begins).running() as url:
        said = asked_once(url).reads_otherwise(student, texts)
    assert said.startswith(
        "teacher 'big': its server makes other ids of the run's text: token 0 is id 1 there and 68 here"
    )


def test_texts_longer_than_the_server_takes_are_refused_before_the_first_step(scorer):
    with servers.Faulty(servers.well, scorer).running() as url:
        made = asked_once(url)  # max_model_len: 64, which counts one token to be written
    refuse_too_long([made], Dataset.from_dict({"input_ids": [[1] * 63]}), None)
    with pytest.raises(
        DataError, match=r"'big': its server takes texts of up to 63 tokens.* has 64; use data.max_length: 63"
    ):
        refuse_too_long([made], Dataset.from_dict({"input_ids": [[1] * 3, [1] * 64]}))


def hexed(key: str) -> str:
    return key.encode().hex()


FORMS = {
    "as it is": str,
    "escaped": lambda key: "".join(f"\\u{ord(c):04x}" for c in key),
    "escaped twice": lambda key: json.dumps(json.dumps("".join(f"\\x{ord(c):02x}" for c in key))),
    "for addresses": lambda key: "".join(f"%{ord(c):02X}" for c in key),
    "for pages": lambda key: "".join(f"&#{ord(c)};" for c in key),
    "in base64": lambda key: base64.b64encode(f"Bearer {key}!".encode()).decode(),
    "in base64 for addresses": lambda key: base64.urlsafe_b64encode(f"x{key}".encode()).decode(),
    "in hexadecimal digits": hexed,
    "in capitals": str.upper,
    "in pieces": lambda key: " ".join(key),
    "reversed": lambda key: key[::-1],
}


@pytest.mark.parametrize("form", FORMS)
def test_the_key_is_shown_in_no_form(monkeypatch, form):
    for key in (servers.KEY, "abc+/%\\\"'<&key", "k" * 40 + "z1"):
        monkeypatch.setenv(servers.VARIABLE, key)
        address = Address("http://127.0.0.1/v1", servers.VARIABLE)
        written = FORMS[form](key)
        said = address.shown(f"the model {written} is not here", 300)
        assert said == (f"the model {'***'} is not here" if form == "as it is" else WITHHELD)
        assert address.shown("an ordinary answer: keys and models", 300) == "an ordinary answer: keys and models"


def set_all(change):
    return lambda answer: [change(e) for entry in entries(answer)[1:] for e in entry.values()]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda a, said: a.update(model=said),
        lambda a, said: set_all(lambda e: e.update(rank=said))(a),
        lambda a, said: set_all(lambda e: e.update(logprob=said))(a),
        lambda a, said: a["choices"][0]["prompt_token_ids"].__setitem__(3, said),
    ],
)
@pytest.mark.parametrize("form", ["as it is", "in base64"])
def test_a_reason_repeats_neither_the_key_nor_megabytes(scorer, spoil, form):
    long = FORMS[form](servers.KEY) + "x" * 1_000_000
    said, _, _ = refused(scorer, servers.spoiled(lambda answer: spoil(answer, long) and None))
    assert servers.KEY not in said
    assert FORMS["in base64"](servers.KEY)[8:-8] not in said
    assert len(said) < 1000


@contextmanager
def listening():
    """Something that only remembers what it is sent."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    heard.append(connection.recv(65536))
                    connection.sendall(b"HTTP/1.1 502 no\r\ncontent-length: 0\r\n\r\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", heard
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.slow
def test_no_proxy_but_one_that_is_asked_for(scorer, monkeypatch):
    with listening() as (proxy, heard), servers.Faulty(servers.well, scorer).running() as url:
        for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy if "LL" in name else "socks5://nowhere:port")
        speak(teacher(url))
        with pytest.raises(TeacherUnavailableError, match="ConnectError"):
            speak(teacher("http://teacher.invalid/v1"))
        assert not heard
        with pytest.raises(TeacherUnavailableError, match="502"):
            speak(teacher("http://teacher.invalid/v1", proxy=proxy))
        assert heard[0].startswith(b"POST http://teacher.invalid/v1/completions")
    with pytest.raises(ValueError, match="a server on this machine is asked without one"):
        teacher("http://localhost:1/v1", proxy=proxy)


@pytest.mark.parametrize(
    "url", ["http://host:port/v1", "http://user:sec/ret@host/v1", "http://[::1/v1", "http://h\n/v1"]
)
def test_an_address_that_is_none_is_one_sentence_without_a_password(url):
    with pytest.raises(ValueError, match="url must") as caught:
        Address(url)
    assert "ret" not in str(caught.value)


TOKEN = "hf_CanaryCanaryCanary0123456789"
RUN = "output: run\nstudent: s\nteachers: {a: m}\ndata: {train: d}\nweighting: [{kind: softmax, signal: entropy}]\n"


@pytest.mark.parametrize(
    ("more", "override", "where"),
    [
        (f"training: {{extra: {{hub_token: {TOKEN}}}}}", None, "line 6: training.extra.hub_token"),
        ("training: {extra: {hub_token: abc}}", None, "line 6: training.extra.hub_token"),
        (f"training: {{extra: {{run_name: x-{TOKEN}}}}}", None, "line 6: training.extra.run_name"),
        ("", "data.train=https://me:word@host/d.jsonl", "command line: data.train"),
        ("", "teachers.a.model=" + TOKEN, "command line: teachers.a.model"),
        ("", "training.extra.deep={wandb: {password: x}}", "command line: training.extra.deep.wandb.password"),
    ],
)
def test_a_secret_in_a_configuration_is_refused_without_being_repeated(tmp_path, more, override, where):
    (tmp_path / "run.yaml").write_text(RUN + more)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "run.yaml", [override] if override else [])
    assert f"{where} holds a secret" in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert "word@" not in str(caught.value)


def test_ordinary_settings_are_no_secrets(tmp_path):
    (tmp_path / "run.yaml").write_text(RUN + "training: {extra: {eos_token: x, pad_token: y, hub_model_id: me/m}}")
    load_config(tmp_path / "run.yaml")


@pytest.mark.long
def test_a_whole_life_leaves_the_canary_in_no_file_and_no_output(folder, tmp_path):
    """Serve, check, cache, train, evaluate, report; with a proxy and a token in the environment."""
    models.saved(tmp_path / "student", 0)
    models.written(tmp_path / "data.jsonl", models.texts(8).select_columns(["text", "task"]))
    home, outputs = tmp_path / "home", []
    with (
        listening() as (proxy, heard),
        servers.polydistill_serve(folder, "--api-key-env", servers.VARIABLE, **{servers.VARIABLE: servers.KEY}) as url,
    ):
        (tmp_path / "run.yaml").write_text(
            f"output: run\nstudent: student\nteachers:\n  big: {{url: '{url}', model: tiny, top_logprobs: 30, "
            f"api_key_env: {servers.VARIABLE}}}\ndata: {{train: data.jsonl, evaluation: data.jsonl, max_length: 48}}\n"
            "weighting: [{kind: softmax, signal: entropy}]\ntraining: {max_steps: 2, batch_size: 4, cpu: true}\n"
        )
        env = {**os.environ, "HTTP_PROXY": proxy, "ALL_PROXY": proxy, "HF_TOKEN": TOKEN, "HOME": str(home)}
        for words in (
            ("check", "run.yaml"),
            ("cache", "build", "run.yaml", "--to", "cache"),
            ("train", "run.yaml", "teachers.big={cache: cache}", "output=from-cache"),
            ("train", "run.yaml"),
            ("eval", "run", "--json", "eval.json"),
            ("report", "run"),
            ("train", "run.yaml", f"training.extra.hub_token={TOKEN}", "output=other"),
        ):
            done = forked.run([*forked.POLYDISTILL, *words], cwd=tmp_path, env={**env, "PYTHONWARNINGS": "ignore"})
            assert done.returncode == (2 if TOKEN in words[-2] else 0), done.stdout + done.stderr
            outputs.append(done.stdout + done.stderr)
    assert not heard, "asked through a proxy"
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(files) > 30
    for secret in (servers.KEY, TOKEN):
        forms = [
            secret.encode(),
            base64.b64encode(secret.encode())[:-4],
            hexed(secret).encode(),
        ]
        assert not [path for path, data in files.items() if any(form in data for form in forms)]
        assert not [said for said in outputs if any(form.decode() in said for form in forms)]
