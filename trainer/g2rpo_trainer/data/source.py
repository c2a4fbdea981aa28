"""The source of a run's records: all tasks together, for training and evaluation."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from operator import itemgetter
from typing import Any, NamedTuple

from g2rpo._shown import listed
from g2rpo._suggest import unknown_name
from g2rpo.rewards import check_record, with_own
from g2rpo_trainer.config import BUILTIN_SOURCES, Data, TrainConfig
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.record import Record

from .mixing import schedule, shares
from .opening import open_tables, table_of
from .stored import Library, Skipped, SkippedState, StoredStream
from .streams import (
    PREFIX,
    PROBLEM_TYPE,
    Stream,
    T,
    Use,
    builtin_streams,
    reasoning_streams,
)
from .summary import Summary, TaskSummary

#: Problem types beyond those of :data:`g2rpo.rewards.ACCURACY` that sources bring with them.
REWARD_FUNCTIONS = {PROBLEM_TYPE: "g2rpo_trainer.data.streams:score_answer"}


class Slot(NamedTuple):
    """Place of a prompt in a run; its record follows from it alone.

    Attributes
    ----------
    seed : int
        Seed of the run.
    position : int
        Number of earlier prompts of the run.
    task : int
        Number of the task in :attr:`Source.tasks`.
    turn : int
        Number of earlier prompts of this task.
    """

    seed: int
    position: int
    task: int
    turn: int


class Source:
    """Checked records, mixed over tasks; :func:`open_source` makes one.

    Attributes
    ----------
    tasks : tuple of str
        The tasks of the run; integer labels of tasks are indices of it.
    known_tasks : list of str
        All tasks of the data, those that ``data.tasks`` leaves out included.
    reward_functions : dict of str to str
        Problem type -> import path of its accuracy, beside :data:`g2rpo.rewards.ACCURACY`: those of
        the source, and the user's own; :func:`g2rpo.rewards.with_own` takes it.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        data: Data,
        functions: Mapping[str, str],
        library: Library | None = None,
        *,
        known_tasks: Iterable[str],
    ) -> None:
        self.known_tasks = list(known_tasks)
        self.tasks = tuple(stream.name for stream in streams)
        types = {kind for stream in streams for kind in stream.problem_types}
        brought = {kind: path for kind, path in REWARD_FUNCTIONS.items() if kind in types}
        self.reward_functions = {**brought, **functions}
        self._streams = list(streams)
        self._skipped = library.skipped if library else Skipped()
        self._shares = _shares_of(streams, data)

    def __len__(self) -> int:
        """Return the number of records, trained on and held out.

        Raises
        ------
        TypeError
            If they are drawn without end.
        """
        sizes = [(stream.training_size, stream.held_out_size) for stream in self._streams]
        if any(None in pair for pair in sizes):
            raise TypeError("the records of this source are drawn without end; it has no len()")
        return sum(size or 0 for pair in sizes for size in pair)

    def slots(self, *, seed: int, position: int, prompts: int) -> list[Slot]:
        """Return the places of the next prompts of a run; no record is read.

        Examples
        --------
        >>> from g2rpo_trainer.data import open_source
        >>> from g2rpo_trainer.config import Data
        >>> source = open_source(Data(tasks=["maths", "ocr"]))
        >>> [slot.task for slot in source.slots(seed=0, position=7, prompts=3)]
        [1, 0, 1]
        """
        return [
            Slot(seed, position + offset, task, turn)
            for offset, (task, turn) in enumerate(schedule(self._shares, position, prompts))
        ]

    def read(self, slot: Slot, use: Use[T]) -> T:
        """Read the record of a slot, and return ``use(record)``.

        Parameters
        ----------
        slot : Slot
            From :meth:`slots`.
        use : callable
            Called once with each record that is tried. If it raises `BrokenRecord`, the record is
            as broken as one that cannot be read: refused, or with ``data.skip_broken`` left out,
            so that the next of the epoch takes its place.

        Raises
        ------
        RunError
            If no record can be used.
        """
        stream = self._streams[slot.task]
        return stream.training(slot.seed, slot.turn, slot.position, use)

    def training_records(self, *, seed: int, position: int, prompts: int) -> list[Record]:
        """Return the next records of a run; they follow from the arguments alone.

        Parameters
        ----------
        seed : int
            Seed of the run.
        position : int
            Number of earlier prompts of the run.
        prompts : int
            Number of records.

        Returns
        -------
        list of Record
            With open images. Every record of a task comes once in each of its epochs.

        Raises
        ------
        RunError
            If a record cannot be used, unless ``data.skip_broken`` allows it.

        Examples
        --------
        >>> from g2rpo_trainer.data import open_source
        >>> from g2rpo_trainer.config import Data
        >>> source = open_source(Data(tasks=["maths", "ocr"]))
        >>> records = source.training_records(seed=0, position=7, prompts=3)
        >>> [record.task for record in records]
        ['ocr', 'maths', 'ocr']
        """
        slots = self.slots(seed=seed, position=position, prompts=prompts)
        return [self.read(slot, _itself) for slot in slots]

    def held_out(self, task: str, count: int, use: Use[T]) -> Iterator[T]:
        """Yield ``use(record)`` of held-out records of a task, read one by one.

        As :meth:`read`, but a record that is left out is followed by the next one.

        Raises
        ------
        RunError
            If there is no such task, or a record cannot be used, unless ``data.skip_broken`` allows
            it.
        """
        if task not in self.tasks:
            raise RunError(unknown_name("task", task, self.tasks))
        return self._streams[self.tasks.index(task)].held_out(count, use)

    def held_out_records(self, task: str, count: int) -> list[Record]:
        """Return held-out records of a task, the same in every run.

        Parameters
        ----------
        task : str
            One of ``tasks``.
        count : int
            Number of records.

        Returns
        -------
        list of Record
            Fewer where the task has no more.

        Raises
        ------
        RunError
            As :meth:`held_out`.

        Examples
        --------
        >>> from g2rpo_trainer.data import open_source
        >>> [record.task for record in open_source().held_out_records("ocr", 2)]
        ['ocr', 'ocr']
        """
        return list(self.held_out(task, count, _itself))

    def stored_records(self, use: Use[T], *, held_out: bool) -> Iterator[T]:
        """Yield ``use(record)`` of each record of a file or a data set, in their order there.

        Parameters
        ----------
        use : callable
            As in :meth:`read`.
        held_out : bool
            Records for evaluation, rather than those to train on.

        Raises
        ------
        RunError
            If the records are drawn without end, or one cannot be used, unless
            ``data.skip_broken`` allows it.

        Examples
        --------
        >>> from g2rpo_trainer.data import open_source
        >>> from g2rpo_trainer.config import Data
        >>> rows = [{"problem": f"{n} + 1?", "answer": n + 1} for n in range(20)]
        >>> source = open_source(Data(problem_type="numerical"), rows=rows)
        >>> problems = [*source.stored_records(lambda record: record.problem, held_out=False)]
        >>> len(problems) + len([*source.stored_records(repr, held_out=True)])
        20
        """
        stored = [stream for stream in self._streams if isinstance(stream, StoredStream)]
        if not stored:
            raise RunError("the records of this source are drawn without end; say how many")
        in_order = heapq.merge(
            *(stream.stored(use, held_out=held_out) for stream in stored), key=itemgetter(0)
        )
        return (found for _, found in in_order)

    @property
    def parts(self) -> frozenset[str]:
        """Parts of any record: ``images``, ``videos``, ``text`` alone, ``answers`` (several)."""
        return frozenset[str]().union(*(stream.parts for stream in self._streams))

    def summary(self) -> Summary:
        """Return the numbers of records of each task, and of records that were left out.

        Examples
        --------
        >>> from g2rpo_trainer.data import open_source
        >>> from g2rpo_trainer.config import Data
        >>> rows = [{"problem": f"{n} + 1?", "answer": n + 1} for n in range(20)]
        >>> source = open_source(Data(problem_type="numerical"), rows=rows)
        >>> source.summary().tasks["rows"].problem_types
        {'numerical': 20}
        """
        total = sum(self._shares)
        tasks = {
            stream.name: TaskSummary(
                problem_types=dict(stream.problem_types),
                training=stream.training_size,
                held_out=stream.held_out_size,
                share=part / total,
                reward_kind=stream.reward_kind,
            )
            for stream, part in zip(self._streams, self._shares, strict=True)
        }
        return Summary(tasks, len(self._skipped), list(self._skipped.examples))

    @property
    def skipped(self) -> int:
        """Number of broken records that were left out so far."""
        return len(self._skipped)

    def skipped_state(self) -> SkippedState:
        """Return the records that were left out since the source was opened, for a JSON file."""
        return self._skipped.state()

    def restore_skipped(self, *states: SkippedState | None) -> None:
        """Count on from results of :meth:`skipped_state`; None is a run that begins.

        Several are those of ranks that have read different records. A source that is opened again
        finds again the records that no row can be read from, but not those that were broken in use.
        """
        self._skipped.restore([state for state in states if state])


def open_source(
    data: Data = Data(),
    *,
    rows: Sequence[Mapping[str, Any]] | None = None,
    functions: Mapping[str, str] | None = None,
) -> Source:
    """Open the source of a run's prompts and check every record of it.

    Parameters
    ----------
    data : Data
        Section ``data`` of the configuration.
    rows : sequence of mapping, optional
        Records in place of ``data.source``: a list of dictionaries, or a data set of datasets, with
        its transform if it has one. All of their tasks are taken; one that names none is of the
        task ``"rows"``.
    functions : mapping of str to str, optional
        Problem type -> import path ``module:function`` of a reward of the user's own, beside those
        of :data:`g2rpo.rewards.ACCURACY`.

    Returns
    -------
    Source
        Files are read once, from beginning to end; images and videos are looked for,
        and opened when used.

    Raises
    ------
    RunError
        If something is missing or cannot be read, an import path leads nowhere, or records are
        broken and ``data.skip_broken`` is not set.

    Examples
    --------
    >>> from g2rpo_trainer.config import Data
    >>> rows = [{"problem": f"{n} + 1?", "answer": n + 1, "task_type": "sums"} for n in range(20)]
    >>> source = open_source(Data(problem_type="numerical"), rows=rows)
    >>> source.tasks, len(source)
    (('sums',), 20)
    """
    functions = functions or {}
    try:
        check = partial(check_record, functions=with_own(functions))
    except (ValueError, TypeError) as error:
        raise RunError(f"rewards.functions: {error}") from None
    if rows is None and data.source in BUILTIN_SOURCES:
        # A configuration may keep the length targets of one of them for the other.
        known = chain(*BUILTIN_SOURCES.values())
        return Source(_chosen(builtin_streams(data), data), data, functions, known_tasks=known)
    if rows is None and data.source.startswith(PREFIX):
        streams = reasoning_streams(data)
        names = [stream.name for stream in streams]
        return Source(_chosen(streams, data), data, functions, known_tasks=names)
    if rows is None:
        library = Library(open_tables(data), data, data.source, check)
    else:
        # The tasks of a configuration are those of its source, which is not looked at here.
        data = data.model_copy(update={"tasks": []})
        library = Library([table_of(rows)], data, "rows", check)
    chosen = _chosen(library.streams(), data)
    return Source(chosen, data, functions, library, known_tasks=library.tasks)


def open_run(config: TrainConfig, source: Source | None = None) -> Source:
    """Open the source of a run, and check all that its configuration says of tasks by name.

    Parameters
    ----------
    config : TrainConfig
        Configuration of the run, which is not changed; it may leave out ``data.tasks``.
    source : Source, optional
        Result of an earlier call for this run: nothing is opened again.

    Returns
    -------
    Source
        Its ``tasks`` are those of the run. Its records are checked with the configuration's own
        rewards.

    Raises
    ------
    RunError
        If the source cannot be used, the configuration shapes a task that the source lacks, or in
        a way that no response can meet.

    Examples
    --------
    >>> from g2rpo_trainer.config import load_config
    >>> open_run(load_config(settings=["data.tasks=[maths, ocr]"])).tasks
    ('maths', 'ocr')
    """
    if source is None:  # not by its truth, which is that of its length
        source = open_source(config.data, functions=config.rewards.functions)
    config.check_tasks(source.known_tasks, source.tasks)
    return source


def _itself(record: Record) -> Record:
    return record


def _chosen(streams: Sequence[Stream], data: Data) -> list[Stream]:
    """Return the streams of the tasks of the configuration, in its order; all by default."""
    known = {stream.name: stream for stream in streams}
    for task in data.tasks:
        if task not in known:
            raise RunError(f"data.tasks: {unknown_name('task', task, known)}")
    return [known[task] for task in data.tasks or known]


def _shares_of(streams: Sequence[Stream], data: Data) -> list[float]:
    weights, names = data.mixing.weights, [stream.name for stream in streams]
    if not weights:
        # Tasks that are drawn without end have no size; they take turns.
        return shares([stream.training_size or 1 for stream in streams], data.mixing.temperature)
    for name in weights:
        if name not in names:
            raise RunError(f"data.mixing.weights: {unknown_name('task', name, names)}")
    missing = [name for name in names if name not in weights]
    if missing:
        raise RunError(
            f"data.mixing.weights has none for {listed(missing)}; name every task (0 is never), "
            "or leave tasks out by data.tasks"
        )
    return [weights[name] for name in names]
