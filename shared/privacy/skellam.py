"""What integer Skellam noise costs: a Renyi bound."""

from __future__ import annotations

from shared.errors import PrivacyError


def skellam_rdp(order: int, *, l2: float, l1: float, variance: float) -> float:
    """Renyi divergence of an integer order that an integer vector plus Skellam noise never exceeds.

    l2, l1: sensitivities in integer steps. variance: of the noise in each entry, in steps squared. Agarwal, Kairouz &
    Liu 2021, arXiv 2110.04995, Corollary 3.6::

        order l2^2 / (2 variance) + min(((2 order - 1) l2^2 + 6 l1) / (4 variance^2), 3 l1 / (2 variance))

    The first term is the Gaussian's; the second vanishes against it as the variance grows.

    | case | result |
    |---|---|
    | l2 = l1 = 0 | 0: nothing depends on the unit |
    | order not an integer or below 2 | PrivacyError: the bound is proved for integer orders |
    | variance not positive, l1 < l2, anything negative | PrivacyError |
    """
    if order != int(order) or order < 2:
        raise PrivacyError(f"found Renyi order {order}; expected an integer of at least 2")
    if not (variance > 0 and 0 <= l2 <= l1):
        raise PrivacyError(f"found l2 = {l2}, l1 = {l1}, variance {variance}; expected l1 >= l2 >= 0, variance > 0")
    small = ((2 * order - 1) * l2**2 + 6 * l1) / (4 * variance**2)
    return order * l2**2 / (2 * variance) + min(small, 3 * l1 / (2 * variance))
