"""Without JAX, importing the binding raises an error with the install command."""


def test_the_error_names_the_command(error_without):
    error = error_without("g2rpo_jax", "jax")
    assert "g2rpo_jax needs jax" in error
    assert 'pip install "g2rpo[jax]"' in error
