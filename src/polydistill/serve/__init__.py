"""A model on another machine: a small OpenAI-compatible server that scores and writes text with a Transformers model.

It answers with prompt log-probabilities in the shape that vLLM gives, so that a student elsewhere can be trained on
what this machine's model says, and it writes, so that one can talk to a trained student. Needs the extra
`polydistill[serve]`.
"""

from polydistill.serve.app import application
from polydistill.serve.request import RequestError, ScoreRequest
from polydistill.serve.scoring import Scored, Scorer

__all__ = ["RequestError", "ScoreRequest", "Scored", "Scorer", "application"]
