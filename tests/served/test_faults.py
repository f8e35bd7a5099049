"""What goes wrong between machines: each as documented, in bounded time, on real sockets."""

import logging
import math
import os
import time

import models
import pytest
import servers
import torch

from polydistill.teachers.served import Patience, ServedTeacher, TeacherLostError
from polydistill.teachers.source import TeacherUnavailableError

QUICK = Patience(connect_s=5, read_s=10, write_s=10, pool_s=20, total_s=15, attempts=3, outage_s=20, wait_s=30)
SHORT = Patience(connect_s=5, read_s=0.5, write_s=5, pool_s=5, total_s=1.0, attempts=2, outage_s=10)
IDS = torch.tensor([[30, 41, 52, 63, 74, 85]])
ROWS = torch.tensor([0, 2, 4])


@pytest.fixture(scope="module")
def scorer():
    return servers.scorer()


def teacher(url: str, **options) -> ServedTeacher:
    given = {"top_logprobs": 5, "patience": QUICK, "api_key_env": servers.VARIABLE, **options}
    made = ServedTeacher("big", url, **{"model": servers.MODEL, **given})
    made.visible = 300  # the probe before the first step is tested elsewhere
    return made


def speak(made: ServedTeacher):
    return made.speak(IDS, torch.ones_like(IDS), ROWS)


def refused(scorer, reply, **options) -> tuple[str, servers.Faulty, float]:
    """The sentence, what the server saw, and how long it took."""
    faulty, started = servers.Faulty(reply, scorer), time.monotonic()
    with faulty.running() as url:
        with pytest.raises(TeacherUnavailableError) as caught:
            speak(teacher(url, **options))
        return str(caught.value), faulty, servers.seconds(started)


def test_nobody_listens():
    started = time.monotonic()
    with pytest.raises(TeacherUnavailableError, match=r"'big'.*does not answer \(ConnectError.*on_outage: wait"):
        speak(teacher(f"http://127.0.0.1:{servers.free_port()}/v1"))
    assert servers.seconds(started) < 15


@pytest.mark.slow
@pytest.mark.parametrize("reply", [servers.stalls, servers.drips, servers.drips_headers])
def test_a_stalled_or_dripping_server_ends_in_bounded_time(scorer, reply):
    said, faulty, spent = refused(scorer, reply, patience=SHORT)
    assert "does not answer (ReadTimeout)" in said or "no whole answer within 1 s" in said
    assert faulty.asked == 2
    assert spent < 15  # two tries of a second, and the pause between them


@pytest.mark.slow
@pytest.mark.parametrize("status", ["500 Internal Server Error", "503 Service Unavailable", "408 Request Timeout"])
def test_twice_out_of_order_then_well(scorer, status):
    faulty = servers.Faulty(servers.fails_first(2, status), scorer)
    with faulty.running() as url:
        made = teacher(url)
        heard = speak(made)
    assert faulty.asked == 3
    assert made.client.counts.retries == 2
    whole = scorer.score(IDS[0].tolist(), 5)
    torch.testing.assert_close(heard.known.label_log_prob, whole.own[ROWS])


def test_a_busy_server_says_when_to_come_back(scorer):
    faulty = servers.Faulty(servers.fails_first(1, "429 Too Many Requests", "retry-after: 1\r\n"), scorer)
    started = time.monotonic()
    with faulty.running() as url:
        speak(teacher(url))
    assert faulty.asked == 2
    assert 1.0 <= servers.seconds(started) < 15


def test_a_server_that_asks_for_more_time_than_there_is_is_not_waited_for(scorer):
    said, faulty, spent = refused(scorer, servers.fails_first(9, "429 Too Many Requests", "retry-after: 3600\r\n"))
    assert "429, to be asked again in 3600 s" in said
    assert faulty.asked == 1
    assert spent < 10


@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden", "400 Bad Request", "404 Not Found"])
def test_a_refusal_is_not_asked_again(scorer, status):
    said, faulty, spent = refused(scorer, servers.always(status), on_outage="wait")
    assert status[:3] in said
    assert '{"error": "no"}' in said
    assert faulty.asked == 1
    assert spent < 10
    if status[:3] in ("401", "403"):
        assert f"environment variable {servers.VARIABLE}" in said


@pytest.mark.parametrize("body", [b"<html>", b"[" * 100_000])
def test_what_is_no_json_is_refused(scorer, body):
    said, faulty, _ = refused(scorer, servers.always("200 OK", body))
    assert "not JSON" in said
    assert len(said) < 500
    assert faulty.asked == 1


def test_half_a_json_is_refused_with_its_beginning(scorer):
    said, faulty, _ = refused(scorer, servers.half)
    assert 'not JSON, or only a part of it; it begins \'{"model": "tiny"' in said
    assert len(said) < 500
    assert faulty.asked == 1


@pytest.mark.parametrize(
    ("reply", "words"), [(servers.hangs_up, "(RemoteProtocolError"), (servers.always("500 no"), "500")]
)
def test_a_broken_line_is_tried_again(scorer, reply, words):
    said, faulty, _ = refused(scorer, reply)
    assert words in said
    assert faulty.asked == 3


def test_a_body_that_is_too_large_is_not_read(scorer):
    said, faulty, _ = refused(scorer, servers.always("200 OK", b"x" * 100_000), body_limit=50_000)
    assert "more than 50,000 bytes" in said
    assert faulty.asked == 1


def entries(answer):
    return answer["choices"][0]["prompt_logprobs"]


def first(answer):
    """The entry of the second token, and one of its ids that is not the token itself."""
    entry = entries(answer)[1]
    return entry, next(i for i in entry if int(i) != int(IDS[0, 1]))


def set_value(value):
    def spoil(answer):
        entry, at = first(answer)
        entry[at]["logprob"] = value

    return spoil


def shorten(answer):
    entry, at = first(answer)
    del entry[at]


def swap(answer):
    entry = entries(answer)[1]
    ranked = sorted((i for i in entry if entry[i]["rank"] <= 5), key=lambda i: entry[i]["rank"])
    a, b = ranked[0], ranked[-1]
    entry[a]["logprob"], entry[b]["logprob"] = entry[b]["logprob"], entry[a]["logprob"]


SPOILED = {
    "wrong number of positions": (lambda a: entries(a).pop(), "about 5 tokens instead of 6"),
    "from another model": (lambda a: a.update(model="huge"), "from the model 'huge' instead of 'tiny'"),
    "from a model with a long name": (lambda a: a.update(model="x" * 10**6), "from the model 'xxx"),
    "without a rank": (
        lambda a: first(a)[0][first(a)[1]].pop("rank") and None,
        "token 1 has an entry that is not `id: {logprob, rank}`",
    ),
    "short": (shorten, "token 1 has 4 entries instead of the 5 likeliest"),
    "unsorted": (swap, "token 1: the log-probabilities do not fall with their ranks"),
    "null": (lambda a: entries(a).__setitem__(2, None), "token 2 has null instead of log-probabilities"),
    "null value": (set_value(None), "the log-probability is None"),
    "-9999": (set_value(-9999.0), "the log-probability is -9999.0, the word for none at all"),
    "NaN": (set_value(math.nan), "it contains NaN"),
    "infinite": (set_value(-math.inf), "it contains -Infinity"),
    "a word": (set_value("-1.0"), "the log-probability is '-1.0'"),
    "positive": (set_value(0.5), "log-probability 0.5"),
    "more than all": (lambda a: [e.update(logprob=-0.1) for e in entries(a)[1].values()], "sum to more than 1"),
    "other tokens": (
        lambda a: a["choices"][0]["prompt_token_ids"].__setitem__(3, 7),
        "about other tokens than were sent; token 3 is id 7 there and 63 here",
    ),
    "other tokens, not echoed": (
        lambda a: [a["choices"][0].pop("prompt_token_ids"), entries(a)[3].pop("63")],
        "token 3 was sent as id 63, which is not among those",
    ),
    "no choice": (lambda a: a["choices"].clear(), "0 choices instead of 1"),
    "no log-probabilities": (
        lambda a: a["choices"][0].pop("prompt_logprobs"),
        "give log-probabilities of a prompt; vLLM",
    ),
    "a list": (lambda a: [1, 2], "not a JSON object"),
    "first not null": (lambda a: entries(a).__setitem__(0, entries(a)[1]), "first entry must be null"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_an_answer_that_cannot_be_trusted_is_refused(scorer, name):
    spoil, sentence = SPOILED[name]
    changed = lambda answer: (lambda found: found if isinstance(found, list) and name == "a list" else None)(  # noqa: E731
        spoil(answer)
    )
    said, faulty, _ = refused(scorer, servers.spoiled(changed), on_outage="wait")
    assert sentence in said
    assert len(said) < 1500
    assert "teacher 'big': the answer of http://127.0.0.1" in said
    assert "it begins '" in said
    assert len(said.split("it begins ")[1]) <= 210
    assert faulty.asked == 1


@pytest.mark.parametrize(
    ("other", "answers"),
    [
        ({"root": "folder"}, True),  # another name of the same model
        ({"root": "elsewhere"}, False),
        ({"root": "folder", "parent": "base"}, False),
        ({}, False),
    ],
)
def test_a_model_with_two_names_may_answer_under_the_other_one(scorer, other, answers):
    faulty = servers.Faulty(servers.well, scorer)
    faulty.models = [{"id": servers.MODEL, **other}, {"id": "alias", "root": "folder"}]
    with faulty.running() as url:
        made = teacher(url, model="alias")
        if answers:
            assert "a probe of" in made.agree_with(models.tokenizer(), len(models.tokenizer()))
        else:
            with pytest.raises(TeacherUnavailableError, match="from the model 'tiny' instead of 'alias'"):
                made.agree_with(models.tokenizer(), len(models.tokenizer()))


@pytest.mark.slow
def test_waiting_gives_what_there_would_have_been_without_the_outage(scorer):
    with servers.Faulty(servers.well, scorer).running() as url:
        undisturbed = speak(teacher(url))
    faulty = servers.Faulty(servers.fails_first(3, "503 Service Unavailable"), scorer)
    with faulty.running() as url:
        waited = speak(teacher(url, on_outage="wait"))
    assert faulty.asked == 4  # more than the attempts that `fail` has
    assert torch.equal(undisturbed.says.log_p, waited.says.log_p)
    assert torch.equal(undisturbed.says.ids, waited.says.ids)
    assert torch.equal(undisturbed.known.label_log_prob, waited.known.label_log_prob)


@pytest.mark.slow
def test_waiting_ends_too():
    patience = Patience(**{**vars(QUICK), "wait_s": 1.5})
    started = time.monotonic()
    with pytest.raises(TeacherUnavailableError, match=r"waited for 1\.5 s"):
        speak(teacher(f"http://127.0.0.1:{servers.free_port()}/v1", on_outage="wait", patience=patience))
    assert servers.seconds(started) < 15


def test_dropping_goes_on_without_and_counts(scorer, caplog):
    with servers.Faulty(servers.always("503 Service Unavailable"), scorer).running() as url:
        made = teacher(url, on_outage="drop", patience=Patience(**{**vars(QUICK), "attempts": 1}))
        with pytest.raises(TeacherLostError, match="503") as caught:
            speak(made)
    assert made.tally.lost == 0  # nobody has gone on without it yet
    assert len(caught.value.without(len(ROWS))) == len(ROWS)
    assert made.tally.lost == len(ROWS)
    assert "3 positions go on without it" in caplog.text


def test_no_more_requests_at_a_time_than_allowed(scorer):
    import threading

    now, most, lock = [0], [0], threading.Lock()

    def reply(server, connection, content, number):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.1)
        with lock:
            now[0] -= 1
        servers.well(server, connection, content, number)

    ids = torch.randint(4, 300, (8, 4), generator=torch.Generator().manual_seed(0))
    with servers.Faulty(reply, scorer).running() as url:
        made = teacher(url, concurrency=3)
        made.speak(ids, torch.ones_like(ids), torch.arange(0, 32, 4))
    assert most[0] == 3


def test_the_key_is_in_no_message_and_no_log(scorer, caplog):
    caplog.set_level(logging.DEBUG)
    said, faulty, _ = refused(scorer, servers.repeats_the_key)
    assert f"authorization: Bearer {servers.KEY}" in faulty.headers[0]  # it was sent, and sent back
    assert "Bearer ***" in said
    made = teacher("http://127.0.0.1:1/v1")
    shown = [said, caplog.text, repr(made), repr(vars(made)), repr(made.address), made.describe(), repr(made.client)]
    assert not [text for text in shown if servers.KEY in text]


@pytest.mark.parametrize(
    ("url", "variable", "sentence"),
    [
        ("http://user:secret@host/v1", None, "must not carry a user, a password"),
        ("http://host/v1?key=secret", None, "must not carry a user, a password"),
        ("host:8000", None, "must read http://host:port/v1"),
        ("http://host/v1", "sk-pasted-by-mistake", "is the NAME of an environment variable"),
    ],
)
def test_a_key_in_the_wrong_place_is_refused_unseen(url, variable, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        ServedTeacher("big", url, "tiny", api_key_env=variable)
    assert "secret" not in str(caught.value)
    assert "sk-" not in str(caught.value)


def test_a_key_that_is_not_there_is_missed_by_its_variable(monkeypatch):
    monkeypatch.delenv(servers.VARIABLE)
    with pytest.raises(TeacherUnavailableError, match=f"environment variable {servers.VARIABLE} is not set"):
        speak(teacher("http://127.0.0.1:1/v1"))
    assert servers.VARIABLE not in os.environ
