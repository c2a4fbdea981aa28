"""The code of docs/trl.md runs as it stands; the page lists every option."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path

from trl import GRPOConfig

from g2rpo_trl import G2RPOConfig, G2RPOTrainer
from g2rpo_trl import rewards as builtin

from .tiny import logs, save_chat_model

PAGE = (Path(__file__).parents[2] / "docs" / "trl.md").read_text(encoding="utf-8")


def test_the_script_trains(tmp_path, monkeypatch):
    """With a small model, two steps and rewards in this process."""
    monkeypatch.setattr(builtin._shared, "_workers", 0)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    trained = []

    class Short(G2RPOTrainer):
        def __init__(self, model, functions, args, **named):
            small = {"max_steps": 2, "max_completion_length": 16, "use_cpu": True, "bf16": False}
            small |= {"output_dir": str(tmp_path), "report_to": [], "logging_steps": 1}
            small |= {"generation_batch_size": None, "length_targets": args.length_targets}
            super().__init__(model, functions, replace(args, **small), **named)
            trained.append(self)

    monkeypatch.setattr("g2rpo_trl.G2RPOTrainer", Short)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    code = code.replace('"out",', f"{str(tmp_path)!r}, bf16=False, use_cpu=True,")
    names = {"__name__": "__main__", "model": str(save_chat_model(tmp_path / "model"))}
    exec(compile(code, "docs/trl.md", "exec"), names)
    assert len(logs(trained[0])) == 2
    assert {"loss/entropy", "rewards/accuracy/mean"} < logs(trained[0])[0].keys()


def test_every_option_is_listed():
    ours = {each.name for each in fields(G2RPOConfig)} - {each.name for each in fields(GRPOConfig)}
    table = PAGE[PAGE.index("## Options") : PAGE.index("## Rewards")]
    assert [name for name in sorted(ours) if f"`{name}`" not in table] == []
    assert [name for name in sorted(ours) if f"{name}" not in G2RPOConfig.__doc__] == []
