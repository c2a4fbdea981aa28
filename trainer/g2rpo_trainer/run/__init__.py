"""A run around its steps: folder, display, report."""
