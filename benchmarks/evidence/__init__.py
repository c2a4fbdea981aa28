"""Experiments that test the claims."""
