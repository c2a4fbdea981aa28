"""Without PyTorch, importing the binding raises an error with the install command."""


def test_the_error_names_the_command(error_without):
    error = error_without("g2rpo_torch", "torch")
    assert "g2rpo_torch needs torch" in error
    assert 'pip install "g2rpo[torch]"' in error
