import pytest

from g2rpo_trainer.config import load_config
from g2rpo_trainer.errors import RunError, ran_out_of_memory
from g2rpo_trainer.interruption import resumable
from g2rpo_trainer.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path):
    settings = ["output.trackers=[]", "optimization.steps=9", "optimization.micro_batch_tokens=64"]
    return RunFolder.create(tmp_path / "my run", load_config(settings=settings))


def error_in(folder, error, steps=3):
    with pytest.raises(type(error)) as caught, resumable(folder, lambda: steps):
        raise error
    return caught.value


def test_an_error_keeps_its_type_and_says_where_the_run_stands(folder):
    folder.save_checkpoint(2, lambda path: (path / "weights").touch())
    error = error_in(folder, KeyError("image"))
    (note,) = error.__notes__
    assert note == (
        "the run had done 3 of 9 steps; it goes on from the checkpoint after step 2\n"
        f"continue with: g2rpo train --resume --output-dir '{folder.path}'"
    )


def test_before_the_first_checkpoint_it_goes_on_from_the_start(folder):
    assert "it goes on from the start" in error_in(folder, ValueError()).__notes__[0]


class OutOfMemoryError(RuntimeError):
    """As PyTorch has one."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OutOfMemoryError("Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        ValueError("RESOURCE_EXHAUSTED: Out of memory"),
    ],
)
def test_lack_of_memory_says_what_to_change(folder, error):
    with pytest.raises(RunError) as caught, resumable(folder, lambda: 3):
        raise error
    assert "out of memory (" in str(caught.value)
    assert "--set optimization.micro_batch_tokens=32 (now 64)" in str(caught.value)
    assert "--set rollout.batch_size=96 (now 192)" in str(caught.value)
    assert "--resume" in caught.value.__notes__[0]
    assert caught.value.__cause__ is error


def test_the_torch_error_of_a_gpu_is_recognised():
    torch = pytest.importorskip("torch")
    assert ran_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))


def test_an_interruption_passes_untouched(folder):
    with pytest.raises(KeyboardInterrupt) as caught, resumable(folder, lambda: 3):
        raise KeyboardInterrupt
    assert not hasattr(caught.value, "__notes__")
