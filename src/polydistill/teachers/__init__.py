"""Who speaks: teachers, their heads, and whether their vocabularies agree with the student's."""

from polydistill.teachers.adapters import AdapterTeacher, adapters_on
from polydistill.teachers.examine import ModelRefusedError, examine
from polydistill.teachers.foreign import ForeignTeacher
from polydistill.teachers.head import head_of, last_hidden_state, run_body
from polydistill.teachers.local import LocalTeacher, Teachers, named_teachers
from polydistill.teachers.source import Teacher, TeacherSource, TeacherUnavailableError
from polydistill.teachers.translated import Translated
from polydistill.teachers.vocabulary import VocabularyMismatchError, agree, check_rows

__all__ = [
    "AdapterTeacher",
    "ForeignTeacher",
    "LocalTeacher",
    "ModelRefusedError",
    "Teacher",
    "TeacherSource",
    "TeacherUnavailableError",
    "Teachers",
    "Translated",
    "VocabularyMismatchError",
    "adapters_on",
    "agree",
    "check_rows",
    "examine",
    "head_of",
    "last_hidden_state",
    "named_teachers",
    "run_body",
]
