"""Without verl, importing the plug-in says how to install it."""


def test_the_error_names_the_command(error_without):
    error = error_without("g2rpo_verl", "verl")
    assert "g2rpo_verl needs verl" in error
    assert 'pip install "g2rpo[verl]"' in error
