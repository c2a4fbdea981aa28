"""Base class and common types of the sections of a configuration."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, values do not change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def off_is_text(value: Any) -> Any:
    """Return ``"off"`` for False, as which YAML reads it."""
    # YAML 1.1 reads a bare `off` as False, and `--set length.mode=off` should do what it says.
    return "off" if value is False else value


def none_is_null(value: Any) -> Any:
    """Return None for the text ``none`` or ``None``."""
    # YAML's null is `null` or `~`; people who come from Python write None.
    return None if value in ("none", "None") else value


def _not_negative(factors: dict[str, float]) -> dict[str, float]:
    for task, factor in factors.items():
        if factor < 0:
            raise ValueError(f"{task} is {factor:g}, but must be 0 or more")
    return factors


TaskFactors = Annotated[dict[str, float], AfterValidator(_not_negative)]
"""Task -> a factor of 0 or more."""
