"""Equality of two SymPy expressions, for evaluated answers. Importing this module imports SymPy."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from fractions import Fraction
from typing import Any

from .libraries import library
from .quantity import same_number, tolerance

sp: Any = library("sympy", "comparing expressions")

_DIGITS = 30


def is_readable(expression: Any) -> bool:
    """Return whether an expression is defined, unlike 1/0, and no equation false, as 13 = 12 is."""
    if any(node in (sp.nan, sp.zoo) for node in _nodes(expression)):
        return False
    equations = [equation for equation in _equations(expression) if not equation.free_symbols]
    return not any(map(_never_holds, equations))


def is_same(right: Any, given: Any) -> bool:
    """Return whether an answer equals the right expression and is evaluated as far as that is.

    Both are as Math-Verify parses them, not evaluated. An answer is less evaluated with a sum,
    difference or product of numbers, an integral or a limit, symbols that cancel, or a false
    equation.
    """
    if right == given:
        return True
    if _operations(given) - _operations(right):
        return False
    if not _is_relation(right) and any(map(_never_holds, _equations(given))):
        return False
    wanted, offered = right, given
    if _is_equation(given) and (_is_assignment(given) or not _is_relation(right)):
        offered = _last(given)
    if _is_assignment(right) and (_is_assignment(given) or not _is_relation(given)):
        wanted = _last(right)
    if _is_relation(wanted) or _is_relation(offered) or _free(wanted):
        return _verify(right, given)
    if _free(offered) or (_is_unworked(offered) and not _is_unworked(wanted)):
        return False
    # Two assignments must also have the same symbol on their left sides.
    are_scalars = isinstance(wanted, sp.Expr) and isinstance(offered, sp.Expr)
    if are_scalars and (wanted is right or offered is given):
        # A percent sign of only one of them may be the unit of the question.
        bare = _without_percent(wanted), _without_percent(offered)
        is_unit = (bare[0] == wanted) != (bare[1] == offered)
        return _same_value(wanted, offered) or (is_unit and _same_value(*bare))
    return _verify(right, given)


def _verify(right: Any, given: Any) -> bool:
    math_verify = library("math_verify", "comparing expressions")
    sizes = [size for node in (*_nodes(right), *_nodes(given)) if (size := _size(node)) is not None]
    smallest = min(sizes, default=0)
    # Decimals and digits for the same relative precision of the smallest number as of one near 1.
    places, digits = max(6, 5 - smallest), max(15, 15 - smallest)
    return bool(
        math_verify.verify(
            right,
            given,
            float_rounding=places,
            numeric_precision=digits,
            timeout_seconds=None,
        )
    )


def _same_value(right: Any, given: Any) -> bool:
    right, given = _exact(right), _exact(given)
    if right == given:
        return True
    if right.is_Rational and given.is_Rational:
        return same_number(*(Fraction(int(value.p), int(value.q)) for value in (right, given)))
    first, second = _parts(right), _parts(given)
    if first is None or second is None:
        return False
    allowed = tolerance(max(map(abs, (*first, *second))))
    return all(abs(one - other) <= allowed for one, other in zip(first, second, strict=True))


def _exact(expression: Any) -> Any:
    # Exact decimal fractions, not the nearest binary ones.
    exact = {number: sp.Rational(str(number)) for number in expression.atoms(sp.Float)}
    return expression.xreplace(exact).doit()


def _parts(value: Any) -> tuple[Fraction, Fraction] | None:
    # The real and the imaginary part, if both are numbers.
    parts = [part.evalf(_DIGITS) for part in value.as_real_imag()]
    if not all(isinstance(part, sp.Float | sp.Integer) for part in parts):
        return None
    # The result of a sum that cancels has no correct digit.
    rests = [isinstance(part, sp.Float) and part._prec <= 1 for part in parts]
    exact = [
        Fraction(0) if rest else Fraction(str(part))
        for part, rest in zip(parts, rests, strict=True)
    ]
    return exact[0], exact[1]


def _size(node: Any) -> int | None:
    if not isinstance(node, sp.Expr) or not node.is_number:
        return None
    number = node.evalf(3)
    if not number.is_Float and not number.is_Integer:
        return None
    return Decimal(str(number)).adjusted() if number else None


def _nodes(expression: Any) -> Iterable[Any]:
    return sp.preorder_traversal(expression)  # type: ignore[no-any-return]


def _operations(expression: Any) -> set[Any]:
    kinds = (sp.Derivative, sp.Integral, sp.Limit, sp.Product, sp.Sum)
    return {type(node) for node in _nodes(expression) if isinstance(node, kinds)}


def _without_percent(expression: Any) -> Any:
    # Math-Verify parses a percent sign as a product with an unevaluated 1/100.
    factors = expression.args if isinstance(expression, sp.Mul) else ()
    rest = [factor for factor in factors if not isinstance(factor, sp.UnevaluatedExpr)]
    return rest[0] if len(rest) == 1 and len(factors) == 2 else expression


def _is_unworked(expression: Any) -> bool:
    for node in _nodes(expression):
        if isinstance(node, sp.Add) and sum(map(_is_number, node.args)) > 1:
            return True
        if isinstance(node, sp.Mul) and sum(map(_is_factor, node.args)) > 1:
            return True
    return False


def _is_number(node: Any) -> bool:
    return bool(node.is_rational or node.is_Float)


def _is_factor(node: Any) -> bool:
    # Not a sign, a division, a percent sign, or the power of ten of scientific notation.
    if isinstance(node, sp.UnevaluatedExpr) or node == -1:
        return False
    if isinstance(node, sp.Pow):
        is_division = bool(node.exp.is_negative)
        is_scale = node.base == 10 and isinstance(node.exp, sp.Integer)
        return _is_number(node) and not is_division and not is_scale
    return _is_number(node)


def _is_relation(expression: Any) -> bool:
    return isinstance(expression, sp.core.relational.Relational | sp.logic.boolalg.BooleanFunction)


def _equations(expression: Any) -> list[Any]:
    return [node for node in _nodes(expression) if isinstance(node, sp.Eq)]


def _links(expression: Any) -> list[Any]:
    # The parts of a chain of relations, in written order.
    if isinstance(expression, sp.logic.boolalg.BooleanFunction):
        return list(getattr(expression, "_unsorted_args", expression.args))
    return [expression]


def _is_equation(expression: Any) -> bool:
    return all(isinstance(link, sp.Eq) for link in _links(expression))


def _is_assignment(expression: Any) -> bool:
    # x = 12, ab = 12, f(x) = 12: a name and its value.
    if not _is_equation(expression):
        return False
    name = _links(expression)[0].lhs
    factors = name.args if isinstance(name, sp.Mul) else (name,)
    return all(isinstance(factor, sp.Symbol | sp.core.function.AppliedUndef) for factor in factors)


def _last(expression: Any) -> Any:
    return _links(expression)[-1].rhs


def _free(expression: Any) -> set[Any]:
    # Free symbols of a value, without the names that assignments define.
    if _is_assignment(expression):
        return set(_last(expression).free_symbols)
    if isinstance(expression, sp.FiniteSet | sp.Tuple):
        return set().union(*map(_free, expression.args))
    return set(expression.free_symbols)


def _never_holds(equation: Any) -> bool:
    left, right = equation.lhs, equation.rhs
    if not isinstance(left, sp.Expr) or not isinstance(right, sp.Expr):
        return False
    if not left.free_symbols and not right.free_symbols:
        return not _same_value(left, right)
    rest = sp.simplify(_exact(left) - _exact(right))
    return bool(rest.is_number) and not _same_value(rest, rest * 0)
