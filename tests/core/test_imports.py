"""Modules that importing the core loads."""

from __future__ import annotations

import subprocess
import sys

FORBIDDEN = ("torch", "jax", "typer", "PIL", "scipy", "sklearn", "transformers", "matplotlib")


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(' '.join(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return {name.partition(".")[0] for name in result.stdout.split()}


def test_the_core_loads_numpy_and_array_api_compat_only():
    # Without the modules that the interpreter loads itself, such as finders of editable installs.
    loaded = loaded_by("import g2rpo") - loaded_by("pass") - sys.stdlib_module_names
    assert loaded == {"g2rpo", "numpy", "array_api_compat"}


def test_the_check_finds_a_library_that_is_loaded():
    assert "scipy" in loaded_by("import g2rpo, scipy") - loaded_by("pass")


def test_numpy_alone_computes_without_a_framework():
    loaded = loaded_by(
        "import g2rpo, numpy as np; g2rpo.gaussian_advantages(np.ones(3), np.zeros(3, int))"
    )
    assert not loaded & set(FORBIDDEN)


def test_the_bindings_export_no_name_of_the_core():
    import g2rpo
    import g2rpo_jax
    import g2rpo_torch

    for binding in (g2rpo_jax, g2rpo_torch):
        assert not set(g2rpo.__all__) & set(binding.__all__)
        assert all(
            getattr(binding, n).__module__.startswith(binding.__name__) for n in binding.__all__
        )
