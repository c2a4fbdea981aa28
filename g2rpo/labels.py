"""String labels to the integer labels that the array functions take."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def encode_labels(labels: Sequence[str]) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """Turn string labels into integers, numbered in sorted order of the distinct labels.

    Parameters
    ----------
    labels : sequence of str
        N labels, such as task names or prompt ids.

    Returns
    -------
    codes : numpy.ndarray
        int64, shape (N,): the index of each label in ``names``.
    names : tuple of str
        The distinct labels, sorted.

    Raises
    ------
    TypeError
        If ``labels`` is a single string or holds anything but strings.

    Examples
    --------
    >>> codes, names = encode_labels(["ocr", "maths", "ocr"])
    >>> codes, names
    (array([1, 0, 1]), ('maths', 'ocr'))
    """
    if isinstance(labels, str):
        raise TypeError(f"labels must be a sequence of strings, got the string {labels!r}")
    for label in labels:
        if not isinstance(label, str):
            raise TypeError(f"labels must be strings, got {label!r} of {type(label).__name__}")
    names = tuple(sorted(set(labels)))
    code = {name: index for index, name in enumerate(names)}
    return np.asarray([code[label] for label in labels], dtype=np.int64), names
