"""Sizes that a graph leaves open, as polynomials with whole coefficients. Neither graphs nor arrays are known here.

A size that is known is an `int`; every other is a `Size`. Two are equal if they are the same polynomial, which they then are
whatever the sizes of a run; each symbol is at least 1.
"""

from dataclasses import dataclass
from math import prod

LARGEST = 2**62
MOST_TERMS = 32


class Unreadable(Exception):
    """A value cannot be told; the message says why."""


@dataclass(frozen=True)
class Size:
    """A sum of products of symbols: {("batch", "time"): 2, (): 1} is 2 * batch * time + 1, as sorted pairs."""

    terms: tuple[tuple[tuple[str, ...], int], ...]

    def __add__(self, other):
        terms = dict(self.terms)
        for symbols, n in _terms(other):
            terms[symbols] = terms.get(symbols, 0) + n
        return _size(terms)

    def __mul__(self, other):
        terms: dict[tuple[str, ...], int] = {}
        for symbols, n in self.terms:
            for more, m in _terms(other):
                both = tuple(sorted((*symbols, *more)))
                terms[both] = terms.get(both, 0) + n * m
        return _size(terms)

    def __neg__(self):
        return self * -1

    def __sub__(self, other):
        return self + other * -1

    def __rsub__(self, other):
        return self * -1 + other

    __radd__, __rmul__ = __add__, __mul__

    def __repr__(self):
        return " + ".join("*".join([str(n)] * (n != 1 or not symbols) + list(symbols)) for symbols, n in self.terms)


Length = int | Size


def symbol(name: str) -> Size:
    return Size((((name,), 1),))


def _terms(a: Length):
    return a.terms if isinstance(a, Size) else (((), int(a)),)


def _size(terms: dict) -> Length:
    terms = {symbols: n for symbols, n in terms.items() if n}
    if len(terms) > MOST_TERMS or any(abs(n) > LARGEST or len(symbols) > MOST_TERMS for symbols, n in terms.items()):
        raise Unreadable("the sizes that it is computed from are too many or too large")
    if not terms:
        return 0
    return terms[()] if set(terms) == {()} else Size(tuple(sorted(terms.items())))


def product(sizes) -> Length:
    return prod(sizes, start=1)


def divide(a: Length, b: Length) -> Length | None:
    """a / b where that is a size for all sizes of a run; None where it is not. `b` has one term."""
    if b == 0 or len(_terms(b)) > 1:
        return 1 if a == b != 0 else None
    ((divisor, n),) = _terms(b)
    terms = {}
    for symbols, m in _terms(a):
        left = list(symbols)
        if m % n or any(symbols.count(s) < divisor.count(s) for s in divisor):
            return None
        for s in divisor:
            left.remove(s)
        terms[tuple(left)] = m // n
    return _size(terms)


def least(a: Length) -> int | None:
    """A bound that the size never falls below, if one can be told."""
    if not isinstance(a, Size):
        return int(a)
    return sum(n for _, n in a.terms) if all(n > 0 for symbols, n in a.terms if symbols) else None


def compare(a: Length, b: Length) -> int:
    """-1, 0 or 1 as a < b, a == b or a > b for all sizes of a run."""
    difference = a - b
    if not isinstance(difference, Size):
        return (difference > 0) - (difference < 0)
    if (low := least(difference)) is not None and low > 0:
        return 1
    if (low := least(-difference)) is not None and low > 0:
        return -1
    raise Unreadable(f"it depends on how {a} compares with {b}")
