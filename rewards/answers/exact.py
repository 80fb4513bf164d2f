"""Exact arithmetic on ratios of sums of c * sqrt(n) * x^k: enough to compare most answers without sympy.

A `Ratio` is two polynomials over the rationals whose terms carry the root of a square-free integer and powers of
named atoms (variables, pi, e). Square roots of distinct square-free integers are linearly independent over the
rationals, so two ratios are equal exactly if their cross products have the same terms.
Not covered: algebraic relations between atoms (e^(i pi)), roots of sums, complex roots.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import gcd, isqrt

from rewards.workers.limits import MAX_BITS, MAX_POWER, MAX_TERMS, TooLarge

Monomial = tuple[int, tuple[tuple[str, int], ...]]
Poly = dict[Monomial, Fraction]
UNIT: Monomial = (1, ())


@dataclass(frozen=True, slots=True, eq=False)
class Ratio:
    """num / den; den is never the zero polynomial."""

    num: Poly
    den: Poly

    def rational(self) -> Fraction | None:
        """The value if it is a plain rational number."""
        if not self.num:
            return Fraction(0)
        if len(self.num) == 1 and len(self.den) == 1:
            (key, top), (below_key, bottom) = next(iter(self.num.items())), next(iter(self.den.items()))
            if key == below_key:
                return top / bottom
        return None


_ONE: Poly = {UNIT: Fraction(1)}


def constant(value: Fraction) -> Ratio:
    """A rational number."""
    return Ratio({UNIT: value} if value else {}, _ONE)


def atom(name: str) -> Ratio:
    """A variable or a transcendental constant, as itself."""
    return Ratio({(1, ((name, 1),)): Fraction(1)}, _ONE)


def add(a: Ratio, b: Ratio) -> Ratio:
    """a + b."""
    if a.den == b.den:
        return _checked(_add(a.num, b.num), a.den)
    return _checked(_add(_mul(a.num, b.den), _mul(b.num, a.den)), _mul(a.den, b.den))


def mul(a: Ratio, b: Ratio) -> Ratio:
    """a * b."""
    return _checked(_mul(a.num, b.num), _mul(a.den, b.den))


def inverse(a: Ratio) -> Ratio:
    """1 / a; raises ZeroDivisionError for zero."""
    if not a.num:
        raise ZeroDivisionError("division by zero in an answer")
    return Ratio(a.den, a.num)


def negate(a: Ratio) -> Ratio:
    """-a."""
    return Ratio({key: -value for key, value in a.num.items()}, a.den)


def power(a: Ratio, exponent: int) -> Ratio:
    """a to an integer power; raises TooLarge before a result grows beyond the limits."""
    if exponent < 0:
        return power(inverse(a), -exponent)
    bits = max((_bits(v) for v in (*a.num.values(), *a.den.values())), default=0)
    terms = max(len(a.num), len(a.den))
    if (bits > 1 and bits * exponent > MAX_BITS) or exponent > MAX_POWER or (terms > 1 and exponent > 60):
        raise TooLarge(f"a power with exponent {exponent if exponent < 10**9 else 'over 10^9'} is too large")
    result = Ratio(_ONE, _ONE)
    base = a
    while exponent:
        if exponent & 1:
            result = mul(result, base)
        exponent >>= 1
        if exponent:
            base = mul(base, base)
    return result


def root(a: Ratio, index: int) -> Ratio | None:
    """The non-negative index-th root where it can be written exactly, else None."""
    value = a.rational()
    if value is None or value < 0 or index < 2:
        return None
    if index == 2:
        split = square_free(value.numerator * value.denominator)
        if split is None:
            return None
        outside, inside = split
        coefficient = Fraction(outside, value.denominator)
        return Ratio({(inside, ()): coefficient} if coefficient else {}, _ONE)
    if index > 64 or _bits(value) > 2000:
        return None
    top, bottom = _integer_root(value.numerator, index), _integer_root(value.denominator, index)
    return None if top is None or bottom is None else constant(Fraction(top, bottom))


@lru_cache(maxsize=4096)
def square_free(n: int) -> tuple[int, int] | None:
    """(a, b) with n = a*a*b and b square-free, or None if n is too large to tell; n >= 0."""
    if n == 0:
        return 0, 1
    outside, inside, divisor = 1, 1, 2
    whole = isqrt(n)
    if whole * whole == n:
        return whole, 1
    while divisor * divisor <= n and divisor <= 10_000:
        while n % (divisor * divisor) == 0:
            outside *= divisor
            n //= divisor * divisor
        if n % divisor == 0:
            inside *= divisor
            n //= divisor
        divisor += 1
    whole = isqrt(n)
    if whole * whole == n:
        return outside * whole, inside
    # All factors of n are above 10^4 now, so a square and another factor need at least 10^12.
    return (outside, inside * n) if n < 10**12 else None


def equal(a: Ratio, b: Ratio) -> bool:
    """True if a and b are the same function of their atoms."""
    return _mul(a.num, b.den) == _mul(b.num, a.den)


def proportional(a: Poly, b: Poly) -> Fraction | None:
    """The non-zero rational c with a = c * b, where there is one."""
    if not a or a.keys() != b.keys():
        return None
    factors = {a[key] / b[key] for key in a}
    return factors.pop() if len(factors) == 1 else None


def _add(a: Poly, b: Poly) -> Poly:
    total = dict(a)
    for key, value in b.items():
        value = total.get(key, 0) + value
        if value:
            total[key] = value
        else:
            total.pop(key, None)
    return total


def _mul(a: Poly, b: Poly) -> Poly:
    if a is _ONE:
        return b
    if b is _ONE:
        return a
    if len(a) * len(b) > MAX_TERMS * 20:
        raise TooLarge("a product of sums has too many terms")
    total: Poly = {}
    for (radicand_a, atoms_a), value_a in a.items():
        for (radicand_b, atoms_b), value_b in b.items():
            shared = gcd(radicand_a, radicand_b)
            key = (radicand_a // shared * (radicand_b // shared), _merge(atoms_a, atoms_b))
            value = total.get(key, 0) + value_a * value_b * shared
            if value:
                total[key] = value
            else:
                total.pop(key, None)
    return total


def _merge(a: tuple[tuple[str, int], ...], b: tuple[tuple[str, int], ...]) -> tuple[tuple[str, int], ...]:
    if not a:
        return b
    if not b:
        return a
    powers = dict(a)
    for name, exponent in b:
        powers[name] = powers.get(name, 0) + exponent
    return tuple(sorted(item for item in powers.items() if item[1]))


def _checked(num: Poly, den: Poly) -> Ratio:
    if len(num) > MAX_TERMS or len(den) > MAX_TERMS:
        raise TooLarge("a sum has too many terms")
    if any(_bits(value) > 2 * MAX_BITS for value in (*num.values(), *den.values())):
        raise TooLarge("a number has too many digits")
    return Ratio(num, den)


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _integer_root(n: int, index: int) -> int | None:
    low, high = 0, 1 << (n.bit_length() // index + 1)
    while low <= high:
        middle = (low + high) // 2
        value = middle**index
        if value == n:
            return middle
        low, high = (middle + 1, high) if value < n else (low, middle - 1)
    return None
