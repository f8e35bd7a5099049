"""A teacher on a server: any OpenAI-compatible one that returns prompt log-probabilities, as vLLM does."""

from polydistill.teachers.served.address import Address, Patience
from polydistill.teachers.served.client import Client, OutageError, RefusedError
from polydistill.teachers.served.foreign import ServedForeignTeacher
from polydistill.teachers.served.lost import Lost, TeacherLostError
from polydistill.teachers.served.teacher import ServedTeacher

__all__ = [
    "Address",
    "Client",
    "Lost",
    "OutageError",
    "Patience",
    "RefusedError",
    "ServedForeignTeacher",
    "ServedTeacher",
    "TeacherLostError",
]
