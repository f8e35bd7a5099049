"""Context scale: weights that read the prefix only, never the current or a later token.

The prefix posterior weighs each teacher by how well it predicted the text so far, `w_k(t) ~ prod_{s<t} p_k(y_s)`
(T7): the exact conditional of the mixture of teachers, and without bound, so that it cannot recover when a document
changes domain. Three bounded versions are here. Each is a recursion over positions whose steps are elements of a
semigroup, so it is computed as a parallel prefix scan in log2(n) rounds instead of a loop over n positions; a
document start is a step that forgets what it is given.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from polydistill import guarantee as calculus
from polydistill.guarantee import Guarantee
from polydistill.logprobs import UNKNOWN, Statistics
from polydistill.simplex import clip_spread, normalise
from polydistill.weighting.operator import Carry, Operator, Tag
from polydistill.weighting.task import _strength


def prefix_scan(
    combine: Callable[[Tensor, Tensor], Tensor],
    steps: Float[Tensor, "n *step"],  # noqa: F821
) -> Float[Tensor, "n *step"]:  # noqa: F821
    """Inclusive scan: entry t is `combine(... combine(steps[0], steps[1]) ..., steps[t])` (Hillis and Steele 1986).

    Args:
        combine: associative; `combine(earlier, later)` for batches of steps.
        steps: one step per position.
    """
    reach = 1
    while reach < len(steps):
        steps = torch.cat([steps[:reach], combine(steps[:-reach], steps[reach:])])
        reach *= 2
    return steps


class _Posterior(Operator):
    """A recursion over the tokens of a document, run as a scan; subclasses say what one token does to the state."""

    scale = "context"
    tag = Tag.DATA_FIXED
    reads_prefix_labels = True
    laws = frozenset("EUX")

    def steps(self, log_p: Float[Tensor, "n K"], start: Tensor) -> Float[Tensor, "n K ..."]:
        """One element of the semigroup per position: (at a document start, forget,) then take in the token."""
        raise TypeError(f"{type(self).__name__} does not say what a token does")

    def combine(self, earlier: Tensor, later: Tensor) -> Tensor:
        """The semigroup's product."""
        raise TypeError(f"{type(self).__name__} does not say how steps combine")

    def act(self, steps: Tensor, state: Float[Tensor, " K"]) -> Float[Tensor, "n K"]:
        """State after each step, from the state before the first one; log-weights, not necessarily normalised."""
        raise TypeError(f"{type(self).__name__} does not say how a step acts")

    def weigh(self, statistics: Statistics, carry: Carry) -> tuple[Float[Tensor, "n K"], Carry]:
        """Log-weights before each position's own token, in double precision inside; `carry` is the last state."""
        positions = statistics.positions
        log_p = statistics.label_log_prob.detach().double()
        log_p = torch.where(positions.has_target[:, None], log_p, 0.0)
        neutral = log_p.new_zeros(log_p.shape[-1])
        before = neutral if carry is None else carry
        after = self.act(prefix_scan(self.combine, self.steps(log_p, positions.document_start)), before)
        prior = torch.cat([before[None], after[:-1]]).masked_fill(positions.document_start[:, None], 0.0)
        return normalise(prior).to(statistics.label_log_prob.dtype), after[-1]


class PrefixPosterior(_Posterior):
    """Fixed-share posterior (Herbster and Warmuth 1998), the default context operator.

    After each token `w <- (1 - a) w p(y) / Z + a / K`: the forward recursion of a hidden Markov model whose state is
    the teacher in charge. Range `log(1 + K (1 - a) / a)`. Against any sequence of teachers with m switches its regret
    over T tokens is at most `ln K + m ln(K / a) + (T - 1 - m) ln(1 / (1 - a + a / K))` nats (T7).

    Args:
        share: a, in (0, 1]; the chance per token that another teacher takes over.

    >>> import torch
    >>> from polydistill import PrefixPosterior
    >>> from polydistill.logprobs import Positions, Statistics
    >>> log_p = torch.tensor([[-1.0, -3.0]] * 4)  # what two teachers gave four tokens of a text
    >>> at = Positions.of(torch.zeros(4, dtype=torch.long), torch.ones(4, dtype=torch.bool))
    >>> log_w, _ = PrefixPosterior(share=0.02).bind(["code", "maths"])(Statistics(at, log_p))
    >>> [round(w, 2) for w in log_w.exp()[:, 0].tolist()]  # of "code", before each token
    [0.5, 0.87, 0.97, 0.99]
    """

    def __init__(self, share: float = 0.02) -> None:
        super().__init__()
        if not 0 < share <= 1:
            raise ValueError(
                f"PrefixPosterior: share must lie in (0, 1], got {share}; for no forgetting at all use "
                "ClippedPosterior or DiscountedPosterior, which stay bounded"
            )
        self.share = float(share)

    def steps(self, log_p: Float[Tensor, "n K"], start: Tensor) -> Float[Tensor, "n K K"]:
        """Matrices `[to, from]`: `(1-a) diag(p) + a/K 1 p^T`, scaled; at a start every column is the uniform one's."""
        p = (log_p - log_p.amax(-1, keepdim=True)).exp()
        teachers = p.shape[-1]
        matrix = (1.0 - self.share) * torch.diag_embed(p) + self.share / teachers * p[:, None, :]
        fresh = matrix.mean(-1, keepdim=True).expand_as(matrix)
        return torch.where(start[:, None, None], fresh, matrix)

    def combine(self, earlier: Tensor, later: Tensor) -> Tensor:
        """Matrix product, rescaled: only ratios matter."""
        product = later @ earlier
        return product / product.amax((-1, -2), keepdim=True)

    def act(self, steps: Tensor, state: Float[Tensor, " K"]) -> Float[Tensor, "n K"]:
        """The matrices times the weights."""
        weights = (state - state.max()).exp()
        after = (steps @ weights).log()
        return after - after.amax(-1, keepdim=True)

    def guarantee(self) -> Guarantee:
        """Range `log(1 + K (1-a) / a)`."""
        return calculus.fixed_share(len(self.bound_names().teachers), self.share)

    def __repr__(self) -> str:
        return f"PrefixPosterior(share={self.share:g})"


class DiscountedPosterior(_Posterior):
    """`L <- discount L + clip(log p(y))`: forgets geometrically; range `spread / (1 - discount)` (T7).

    Monotone, unlike the other two: the clip never lets another teacher gain on the one whose likelihood rose, and what
    follows is a sum with positive factors.

    Args:
        discount: gamma in [0, 1).
        spread: per-token evidence is clipped to this spread, nats.

    >>> from polydistill import DiscountedPosterior
    >>> DiscountedPosterior(discount=0.75, spread=4).bind(["code", "maths"]).guarantee().range  # 4 / (1 - 0.75)
    16.0
    """

    laws = frozenset("EMUX")

    def __init__(self, discount: float = 0.8, spread: float = 8.0) -> None:
        super().__init__()
        if not 0 <= discount < 1:
            raise ValueError(f"DiscountedPosterior: discount must lie in [0, 1), got {discount}")
        if not spread > 0:
            raise ValueError(f"DiscountedPosterior: spread must be > 0 nats, got {spread}")
        self.discount, self.spread = float(discount), float(spread)

    def steps(self, log_p: Float[Tensor, "n K"], start: Tensor) -> Float[Tensor, "n 2 K"]:
        """Affine maps, as factor and summand."""
        evidence = clip_spread(log_p, self.spread)
        evidence = evidence - evidence.amax(-1, keepdim=True)
        factor = torch.full_like(evidence, self.discount).masked_fill(start[:, None], 0.0)
        return torch.stack([factor, evidence], 1)

    def combine(self, earlier: Tensor, later: Tensor) -> Tensor:
        """`x -> later(earlier(x))`."""
        return torch.stack([later[:, 0] * earlier[:, 0], later[:, 0] * earlier[:, 1] + later[:, 1]], 1)

    def act(self, steps: Tensor, state: Float[Tensor, " K"]) -> Float[Tensor, "n K"]:
        """The affine maps of the state."""
        return steps[:, 0] * state + steps[:, 1]

    def guarantee(self) -> Guarantee:
        """Range `spread / (1 - discount)`."""
        return calculus.discounted(len(self.bound_names().teachers), self.discount, self.spread)

    def __repr__(self) -> str:
        return f"DiscountedPosterior(discount={self.discount:g}, spread={self.spread:g})"


class ClippedPosterior(_Posterior):
    """`L <- clip(L + log p(y))` to a spread: never further behind than `spread` nats, so it recovers (T7).

    Clipping is a max-plus linear map (0 on the diagonal, `-spread` off it), hence the scan.

    Args:
        spread: bound on the posterior's log-odds, nats; `inf` is the unbounded posterior.

    >>> from polydistill import ClippedPosterior
    >>> ClippedPosterior(spread=6).bind(["code", "maths"]).guarantee().range
    6.0
    """

    def __init__(self, spread: float = 8.0) -> None:
        super().__init__()
        if not spread > 0:
            raise ValueError(f"ClippedPosterior: spread must be > 0 nats, got {spread}")
        self.spread = float(spread)

    def steps(self, log_p: Float[Tensor, "n K"], start: Tensor) -> Float[Tensor, "n K K"]:
        """Max-plus matrices `[to, from]`; at a start every column does what it does to the uniform state."""
        teachers = log_p.shape[-1]
        clip = torch.full((teachers, teachers), -self.spread, dtype=log_p.dtype, device=log_p.device)
        matrix = clip.fill_diagonal_(0.0) + log_p[:, None, :]
        fresh = matrix.amax(-1, keepdim=True).expand_as(matrix)
        return torch.where(start[:, None, None], fresh, matrix)

    def combine(self, earlier: Tensor, later: Tensor) -> Tensor:
        """Max-plus matrix product."""
        return (later[:, :, :, None] + earlier[:, None, :, :]).amax(2)

    def act(self, steps: Tensor, state: Float[Tensor, " K"]) -> Float[Tensor, "n K"]:
        """Max-plus matrices times the state."""
        after = (steps + state).amax(-1)
        return after - after.amax(-1, keepdim=True)

    def guarantee(self) -> Guarantee:
        """Range `spread`."""
        return calculus.clipped(len(self.bound_names().teachers), self.spread)

    def __repr__(self) -> str:
        return f"ClippedPosterior(spread={self.spread:g})"


class TeacherRouter(Operator):
    """The teacher that the data names (`teacher_id`) leads by `strength` nats; uniform where none is named.

    Args:
        strength: nats; `inf` is a hard route: per-sample routing as elsewhere, without range.

    >>> from polydistill import TeacherRouter
    >>> TeacherRouter(strength=4).bind(["code", "maths"]).guarantee().range
    4.0
    """

    scale = "context"
    tag = Tag.DATA_FIXED
    laws = frozenset("MX")

    def __init__(self, strength: float = 4.0) -> None:
        super().__init__()
        self.strength = _strength(strength)

    def weigh(self, statistics: Statistics, carry: Carry) -> tuple[Float[Tensor, "n K"], Carry]:
        """`0` for the named teacher, `-strength` for the others, normalised."""
        like, teacher = statistics.label_log_prob, statistics.positions.teacher
        named = torch.arange(like.shape[-1], device=like.device) == teacher[:, None]
        log_w = torch.where(named | (teacher == UNKNOWN)[:, None], 0.0, -self.strength).to(like)
        return normalise(log_w), carry

    def guarantee(self) -> Guarantee:
        """Range `strength`."""
        teachers = len(self.bound_names().teachers)
        return calculus.static(teachers, self.strength if teachers > 1 else 0.0, "teacher route")

    def __repr__(self) -> str:
        return f"TeacherRouter(strength={self.strength:g})"
