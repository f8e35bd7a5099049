"""A served teacher says what the same model says in this process, as far as it says it, and knows what it does not."""

import models
import pytest
import servers
import torch

from polydistill.logprobs import Informed, Positions, Sparse, logits_of
from polydistill.objective import ForwardKL, distil
from polydistill.teachers import LocalTeacher, Teacher, VocabularyMismatchError, head_of
from polydistill.teachers.served import ServedTeacher
from polydistill.teachers.source import TeacherUnavailableError

K = 40


def served(url: str, **options) -> ServedTeacher:
    return ServedTeacher("big", url, servers.MODEL, **{"top_logprobs": K, "api_key_env": servers.VARIABLE, **options})


def agreed(made):
    """A teacher that has seen the student's vocabulary."""
    made.agree_with(models.tokenizer(), 300)
    return made


def batch(seed: int = 0):
    """Left padding, right padding, and rows in no order."""
    ids = torch.randint(4, 300, (3, 20), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[1, :5], mask[2, 15:] = 0, 0
    return ids, mask, torch.tensor([0, 3, 7, 25, 30, 45, 41, 18])


def test_values_are_those_of_the_model(url, folder):
    teacher, local = served(url), agreed(LocalTeacher.load("local", str(folder)))
    assert isinstance(teacher, Teacher)
    said = teacher.agree_with(models.tokenizer(), 300)
    assert "truncated" in said
    assert "served at" in teacher.describe()
    ids, mask, rows = batch()
    heard, whole = teacher.speak(ids, mask, rows), local.speak(ids, mask, rows)
    assert isinstance(heard, Informed)
    assert isinstance(heard.says, Sparse)
    log_p = logits_of(whole, torch.arange(len(rows))).log_softmax(-1)
    target = ids.flatten()[rows + 1]
    own = log_p.gather(1, target[:, None]).squeeze(1)
    best = log_p.topk(2).values
    close = {"atol": 2e-5, "rtol": 0}
    torch.testing.assert_close(heard.known.label_log_prob, own, **close)
    torch.testing.assert_close(heard.known.maximum, best[:, 0], **close)
    torch.testing.assert_close(heard.known.margin, best[:, 0] - best[:, 1], **close)
    mine = logits_of(heard, torch.arange(len(rows)))
    torch.testing.assert_close(mine.exp().sum(-1), torch.ones(len(rows)), atol=1e-4, rtol=0)
    top = log_p.topk(K).indices
    torch.testing.assert_close(mine.gather(1, top), log_p.gather(1, top), **close)
    torch.testing.assert_close(mine.gather(1, target[:, None]).squeeze(1), own, **close)
    distance = 0.5 * (mine.exp() - log_p.exp()).abs().sum(-1)
    assert float(distance.max()) <= teacher.tally.worst_tail


@pytest.mark.slow
def test_the_whole_vocabulary_gives_the_same_loss_as_the_model(url, folder):
    ids, mask, rows = batch(1)
    student = models.llama(0)
    with torch.no_grad():
        hidden = student.model(input_ids=ids, attention_mask=mask).last_hidden_state.flatten(0, 1)[rows]
    positions = Positions.of(ids.flatten()[rows + 1], torch.ones(len(rows), dtype=torch.bool))
    uniform = lambda s, carry: (torch.zeros_like(s.label_log_prob), carry)  # noqa: E731
    local = agreed(LocalTeacher.load("local", str(folder)))

    def loss(teacher) -> float:
        outputs = [teacher.speak(ids, mask, rows)]
        return float(
            distil(hidden, head_of(student, 300), outputs, positions, uniform, ForwardKL(ce=0.0)).loss.detach()
        )

    exact, errors = loss(local), []
    for k in (8, 32, 128):
        errors.append(abs(loss(agreed(served(url, top_logprobs=k))) - exact))
    assert errors[2] < errors[1] < errors[0]
    everything = servers.Faulty(servers.well, servers.scorer())
    with everything.running() as elsewhere:
        teacher = agreed(served(elsewhere, top_logprobs=1000))
        assert loss(teacher) == pytest.approx(exact, rel=1e-5)
        assert teacher.tally.worst_tail < 1e-5


def test_another_vocabulary_is_found_before_the_first_step(url):
    other = models.tokenizer().train_new_from_iterator(["quick brown foxes jump over lazy dogs"] * 3, 300)
    with pytest.raises(VocabularyMismatchError, match=r"'big' has another vocabulary.*token \d+ is id \d+ there"):
        served(url).agree_with(other, 300)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"top_logprobs": 200}, r"200 log-probabilities.*at most 128"),
        ({"api_key_env": None}, r"401, the key is missing or wrong \(set api_key_env\)"),
    ],
)
def test_what_the_server_does_not_grant_is_said_in_its_words(url, options, sentence):
    with pytest.raises(TeacherUnavailableError, match=f"teacher 'big'.*{sentence}"):
        served(url, **options).agree_with(models.tokenizer(), 300)


def test_a_model_that_is_not_there_is_named_with_those_that_are(url):
    teacher = ServedTeacher("big", url, "other", api_key_env=servers.VARIABLE)
    with pytest.raises(TeacherUnavailableError, match=r"no model 'other'; there is 'tiny'"):
        teacher.agree_with(models.tokenizer(), 300)


def test_a_padded_matrix_elsewhere_counts_as_tail():
    """Entries beyond the student's vocabulary are not stored; their mass is not invented away."""

    def pad(answer):
        """Of an entry that is not the token that follows."""
        choice = answer["choices"][0]
        ids = choice["prompt_token_ids"]
        for t, entry in enumerate(choice["prompt_logprobs"]):
            if entry is not None:
                last = next(i for i in entry if entry[i]["rank"] == K - 1)
                if int(last) != ids[t]:
                    entry["305"] = entry.pop(last)

    faulty = servers.Faulty(servers.spoiled(pad), servers.scorer())
    with faulty.running() as url:
        teacher = agreed(served(url))
        ids, mask, rows = batch()
        heard = teacher.speak(ids, mask, rows)
    assert teacher.tally.foreign > 0
    assert int(heard.says.ids.max()) < 300
    torch.testing.assert_close(
        logits_of(heard, torch.arange(len(rows))).exp().sum(-1), torch.ones(8), atol=1e-4, rtol=0
    )


def test_the_answer_is_the_same_every_time(url):
    teacher = agreed(served(url))
    first, again = (teacher.speak(*batch()).says for _ in range(2))
    assert torch.equal(first.ids, again.ids)
    assert torch.equal(first.log_p, again.log_p)
    assert torch.equal(first.log_tail, again.log_tail)


def test_works_where_a_loop_runs_already(url):
    """As in a notebook."""
    import asyncio

    async def inside():
        return served(url).agree_with(models.tokenizer(), 300)

    assert "truncated" in asyncio.run(inside())


def test_an_answer_that_sums_past_one_by_rounding_is_taken(url):
    def round_up(answer):
        for entry in answer["choices"][0]["prompt_logprobs"][1:]:
            for said in entry.values():
                said["logprob"] = round(said["logprob"], 4)

    with servers.Faulty(servers.spoiled(round_up), servers.scorer()).running() as elsewhere:
        heard = agreed(served(elsewhere, top_logprobs=300)).speak(*batch())
    assert bool(torch.isfinite(heard.says.log_tail).all())
