"""Several documents in a row: laid behind each other with what is known of each token, and told apart by positions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trl import pack_dataset

from polydistill.data.context import COLUMNS, PLACE, DataError, index_of, severity_of

STRATEGIES = ("bfd", "bfd_split", "wrapped")


@dataclass(frozen=True)
class Packing:
    """How documents share rows.

    Attributes:
        strategy: trl's: whole documents where they fit best (`bfd`), the same with long ones in pieces (`bfd_split`),
            or cut wherever a row is full (`wrapped`). None leaves rows as they are, and only their padding away.
        length: tokens of a row.
        teachers: names, for `teacher_id`.
        tasks: names, for `task`.
    """

    strategy: str | None
    length: int
    teachers: tuple[str, ...]
    tasks: tuple[str, ...]

    @classmethod
    def of(cls, args: Any, teachers: tuple[str, ...], tasks: tuple[str, ...]) -> "Packing | None":
        """From trl's arguments; None where every document is a row of its own, with padding.

        Raises:
            ValueError: a strategy that there is not, or rows of no length.
        """
        if not args.packing:
            return cls(None, args.max_length or 0, teachers, tasks) if args.padding_free else None
        if args.packing_strategy not in STRATEGIES:
            raise ValueError(f"packing_strategy must be one of {', '.join(STRATEGIES)}, got {args.packing_strategy!r}")
        if args.max_length is None:
            raise ValueError("packing fills rows of max_length tokens, and max_length is None; say how long rows are")
        return cls(args.packing_strategy, args.max_length, teachers, tasks)

    @property
    def splits(self) -> bool:
        """Whether documents that are longer than a row go on in another one."""
        return self.strategy in ("bfd_split", "wrapped")

    def pack(self, dataset: Any, name: str) -> tuple[Any, list[str]]:
        """Rows of documents, with columns that say of every token its place, task, teacher and severity.

        Args:
            dataset: tokenised, with `input_ids` and `labels`; a stream is packed a thousand documents at a time.
            name: for sentences.
        """
        sized = hasattr(dataset, "__len__")
        before = len(dataset) if sized else 0
        columns = list(getattr(dataset, "column_names", None) or next(iter(dataset), {}))
        dataset = dataset.map(self._spread, remove_columns=columns)
        if self.strategy is None:
            return dataset, []
        kept = ["input_ids", "labels", PLACE, *(column for column in COLUMNS if column in columns)]
        dataset = pack_dataset(dataset.select_columns(kept), self.length, self.strategy).select_columns(kept)
        if not sized:
            return dataset, []
        full = sum(map(len, dataset["input_ids"])) / max(len(dataset) * self.length, 1)
        return dataset, [f"{name}: {before:,} documents are packed into {len(dataset):,} rows, {full:.0%} full"]

    def _spread(self, row: Mapping[str, Any]) -> dict[str, list[Any]]:
        number = len(row["input_ids"])
        made = {"input_ids": row["input_ids"], "labels": row["labels"], PLACE: list(range(number))}
        for column, names in (("task", self.tasks), ("teacher_id", self.teachers)):
            if column in row:
                made[column] = [index_of(row, column, names)] * number
        if "severity" in row:
            value = row["severity"]
            made["severity"] = value if isinstance(value, list) else [severity_of(row)] * number
        if len(made.get("severity", made[PLACE])) != number:
            raise DataError(f"column 'severity' has {len(made['severity'])} numbers for {number} tokens")
        return made
