"""The array type of the annotations."""

from __future__ import annotations

from typing import Any, TypeAlias

#: An array of any Array API namespace. The libraries' classes have no common base, so the type is
#: checked at run time.
Array: TypeAlias = Any

#: A module that implements the Array API standard.
Namespace: TypeAlias = Any

#: Integer labels (N,), or the number of members of each group if they are consecutive.
Groups: TypeAlias = Array | int
