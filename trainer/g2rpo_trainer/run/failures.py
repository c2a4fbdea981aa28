"""What an error says of the run that it ended: the step it was in, and how the run goes on."""

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from g2rpo_trainer.errors import RunError, SharedError
from g2rpo_trainer.run.folder import RunFolder

__all__ = ["ran_out_of_memory", "resumable", "resume_command"]

# The types by which libraries tell; others have nothing but their text.
_MEMORY_TYPES = {"MemoryError", "OutOfMemoryError"}
_MEMORY_TEXTS = ("out of memory", "can't allocate memory", "RESOURCE_EXHAUSTED")


@contextmanager
def resumable(folder: RunFolder, steps_done: Callable[[], int]) -> Iterator[None]:
    """Note on an error how far the run was, what is saved, and the command that goes on.

    Nothing is saved here: an update may have been half done. The newest checkpoint stays.

    Parameters
    ----------
    folder : RunFolder
        The run's.
    steps_done : callable
        Returns how many steps are complete.

    Raises
    ------
    RunError
        In place of an error for lack of memory, with what to change. Every other error goes on as
        it is, with a note (:meth:`BaseException.add_note`).
    """
    try:
        yield
    except Exception as error:
        note = _where_it_stands(folder, steps_done())
        if isinstance(error, SharedError) or not ran_out_of_memory(error):
            error.add_note(note)
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        changed = RunError(f"out of memory ({reason}); {_smaller(folder)}")
        changed.add_note(note)
        raise changed from error


def ran_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory ran out, of the device or of the machine.

    Examples
    --------
    >>> ran_out_of_memory(RuntimeError("CUDA error: out of memory"))
    True
    >>> ran_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
    False
    """
    types = {kind.__name__ for kind in type(error).__mro__}
    return bool(types & _MEMORY_TYPES) or any(text in str(error) for text in _MEMORY_TEXTS)


def resume_command(path: Path) -> str:
    """Return the command that continues the run in a folder."""
    return f"g2rpo train --resume --output-dir {shlex.quote(str(path))}"


def _where_it_stands(folder: RunFolder, steps: int) -> str:
    newest = folder.latest_checkpoint()
    saved = f"the checkpoint after step {newest.step}" if newest else "the start, as none was saved"
    return (
        f"the run had done {steps} of {folder.config.optimization.steps} steps; "
        f"it goes on from {saved}\ncontinue with: {resume_command(folder.path)}"
    )


def _smaller(folder: RunFolder) -> str:
    tokens = folder.config.optimization.micro_batch_tokens
    rollout = folder.config.rollout
    rows = rollout.batch_size or rollout.prompts_per_step * rollout.num_generations
    fewer = max(rollout.num_generations, rows // 2)
    return (
        "in the update, continue with "
        f"--set optimization.micro_batch_tokens={max(1, tokens // 2)} (now {tokens}), which "
        f"changes results by rounding only; in sampling, with --set rollout.batch_size={fewer} "
        f"(now {rows})"
    )
