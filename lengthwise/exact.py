"""Elementary functions that give the same bits wherever they are computed.

numpy, libm and LLVM differ in the last bit of exp, log and tanh, and numpy from itself between a
number and an array. What stands here is a fixed sequence of operations that IEEE 754 defines to the
last bit, so a score that uses it is compiled, and engines that order requests by it agree.
Numbers and arrays of any shape go in; the same shape comes out.
"""

from __future__ import annotations

from typing import Any

import numpy as np

LARGEST = 1.7976931348623157e308
ROOT_HALF = 0.7071067811865476
LN2_HIGH, LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10  # high: 32 bits


def tanh(x: Any) -> Any:
    """The hyperbolic tangent, within 4e-15 of itself (relative).

    A continued fraction, exact enough for an eighth of x, whose numerator and denominator are
    doubled three times by tanh 2z = 2 tanh z / (1 + tanh² z): one division in all. From 20 on, it
    is 1.
    """
    x = np.where(x > 20.0, 20.0, x)
    z = 0.125 * np.where(x < -20.0, -20.0, x)
    u = z * z
    p = u + 4095.0
    p = p * u + 2552550.0
    p = p * u + 523783260.0
    p = p * u + 41247931725.0
    p = p * u + 1159525191825.0
    p = p * u + 7905853580625.0
    p = p * z
    q = 91.0 * u + 120120.0
    q = q * u + 41351310.0
    q = q * u + 5237832600.0
    q = q * u + 252070693875.0
    q = q * u + 3794809718700.0
    q = q * u + 7905853580625.0
    p, q = 2.0 * (p * q), p * p + q * q
    p, q = 2.0 * (p * q), p * p + q * q
    return 2.0 * (p * q) / (p * p + q * q)


def symlog(x: Any) -> Any:
    """sign(x) log(1 + |x|), within 1e-15 of itself (relative); ±inf as the largest number.

    With 1 + |x| = m 2^k and m next to 1, log m = 2 artanh s where s = (m - 1) / (m + 1).
    """
    size = np.abs(x)
    size = np.where(size > LARGEST, LARGEST, size)
    y = 1.0 + size
    lost = np.where(size < 1.0, size - (y - 1.0), 1.0 - (y - size))  # by rounding y
    m, k = np.frexp(y)
    below = np.where(m < ROOT_HALF, 1.0, 0.0)
    m = m + m * below
    k = k - below
    s = (m - 1.0) / (m + 1.0)
    u = s * s
    r = u / 21.0 + 0.05263157894736842
    r = r * u + 0.058823529411764705
    r = r * u + 0.06666666666666667
    r = r * u + 0.07692307692307693
    r = r * u + 0.09090909090909091
    r = r * u + 0.1111111111111111
    r = r * u + 0.14285714285714285
    r = r * u + 0.2
    r = r * u + 0.3333333333333333
    log = k * LN2_HIGH + (2.0 * s + (2.0 * s * u * r + (k * LN2_LOW + lost / y)))
    return np.where(x < 0, -log, log)
