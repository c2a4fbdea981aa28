"""The array type of the annotations."""

from __future__ import annotations

from typing import Any, TypeAlias

#: An array of any Array API namespace. The standard defines no common class, and the libraries'
#: own classes share none, so the alias says what is meant and the checks at run time enforce it.
Array: TypeAlias = Any

#: A module that implements the Array API standard.
Namespace: TypeAlias = Any

#: Which elements belong together: integer labels (N,), or the number of members of each group,
#: where those of one group lie side by side.
Groups: TypeAlias = Array | int
