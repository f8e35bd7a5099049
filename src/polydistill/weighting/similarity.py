"""Context scale: weights from the likeness of the prefix to each teacher's domain, where no teacher has to run."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from polydistill import guarantee as calculus
from polydistill.guarantee import Derivation, Guarantee, Modulus, Step
from polydistill.logprobs import Statistics
from polydistill.simplex import normalise
from polydistill.weighting.operator import Carry, Names, Operator, Tag

SIMILARITY = Derivation(
    "domain similarity", "cosines lie in [-1, 1]: R = 2 / temperature; L = 1 / temperature", derived=True
)


class Similarity(Operator):
    """`w_k(t) ~ exp(cos(c_k, mean_{s<t} E[y_s]) / temperature)`: the mean embedding of the prefix against centroids.

    Uniform before the first token of a document. Bounded by construction, since cosines are.

    Args:
        embedding: E, one row per vocabulary entry, e.g. the student's input embeddings; used as it is, not learned.
        centroids: teacher -> vector of its domain; see `centroid`.
        temperature: nats of cosine per nat of log-weight, > 0.

    >>> import torch
    >>> from polydistill import Similarity
    >>> embedding = torch.eye(4)  # the student's, one row per token
    >>> told = {"code": Similarity.centroid(embedding, torch.tensor([0, 1])), "maths": embedding[2]}
    >>> stack = Similarity(embedding, told, temperature=0.5).bind(["code", "maths"])
    >>> round(stack.guarantee().range, 3)  # the two domains have nothing in common: sqrt 2 / temperature
    2.828
    """

    scale = "context"
    tag = Tag.DATA_FIXED
    reads_prefix_labels = True
    laws = frozenset("EX")

    def __init__(
        self, embedding: Float[Tensor, "V D"], centroids: Mapping[str, Float[Tensor, " D"]], temperature: float = 0.2
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"Similarity: temperature must be > 0, got {temperature}")
        for name, vector in centroids.items():
            if vector.shape != embedding.shape[1:] or not vector.norm() > 0:
                raise ValueError(
                    f"Similarity: the centroid of {name!r} must be a vector of width {embedding.shape[1]} and not 0, "
                    f"got shape {list(vector.shape)}"
                )
        self.centroids, self.temperature = dict(centroids), float(temperature)
        self.embedding: Tensor
        self.directions: Tensor
        self.register_buffer("embedding", embedding.detach(), persistent=False)
        self.register_buffer("directions", torch.zeros(0, 0), persistent=False)

    @staticmethod
    def centroid(embedding: Float[Tensor, "V D"], tokens: Int[Tensor, " n"]) -> Float[Tensor, " D"]:
        """Mean embedding of sample text of a domain, given as token ids."""
        return embedding[tokens].mean(0)

    def resolve(self, names: Names) -> None:
        """Unit centroids in the order of the teachers.

        Raises:
            ValueError: a teacher has no centroid, or a centroid no teacher.
        """
        for name in self.centroids:
            names.teacher(name, "Similarity")
        missing = [name for name in names.teachers if name not in self.centroids]
        if missing:
            raise ValueError(f"Similarity: the teacher {missing[0]!r} has no centroid")
        self.directions = normalize(torch.stack([self.centroids[name] for name in names.teachers]).double(), dim=-1)

    def cosines(self, statistics: Statistics, carry: Carry) -> tuple[Float[Tensor, "n K"], Carry]:
        """Cosines before each position's own token, 0 where there is no prefix; `carry` is the sum of the prefix."""
        positions = statistics.positions
        known = positions.has_target[:, None]
        rows = torch.where(known, self.embedding[positions.target].double(), 0.0)
        before = rows.new_zeros(rows.shape[-1]) if carry is None else carry
        total = torch.cat([before[None], before + rows.cumsum(0)])
        # What had been summed up when the current document started is taken off again.
        index = torch.arange(len(rows), device=rows.device)
        start = torch.where(positions.document_start, index, -1).cummax(0).values
        base = torch.where((start >= 0)[:, None], total[start.clamp_min(0)], 0.0)
        prefix = total[:-1] - base
        cosines = normalize(prefix, dim=-1) @ self.directions.to(prefix).T
        return cosines, total[-1] - base[-1]

    def weigh(self, statistics: Statistics, carry: Carry) -> tuple[Float[Tensor, "n K"], Carry]:
        """Softmax of the cosines over the temperature."""
        cosines, carry = self.cosines(statistics, carry)
        return normalise(cosines / self.temperature).to(statistics.label_log_prob), carry

    def guarantee(self) -> Guarantee:
        """Range `2 / temperature`, and never more than the centroids' own distance allows."""
        teachers = len(self.bound_names().teachers)
        # |cos(c_k, x) - cos(c_j, x)| <= |c_k - c_j| for unit vectors, attained along their difference.
        apart = float(torch.cdist(self.directions, self.directions).max())
        reach = apart / self.temperature if teachers > 1 else 0.0
        step = Step(SIMILARITY, f"temperature {self.temperature:g}, centroids at most {apart:.3g} apart", reach)
        slope = 1.0 / self.temperature
        return replace(
            calculus.static(teachers, reach), moduli=(Modulus("domain similarity", slope, slope),), step=step
        )

    def __repr__(self) -> str:
        return f"Similarity(<{len(self.embedding)} embeddings>, {sorted(self.centroids)}, {self.temperature:g})"
