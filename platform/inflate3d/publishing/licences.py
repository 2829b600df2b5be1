"""What the licences of weights allow, computed from the data's cards and the licence of the source weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

COMMERCIAL = frozenset(
    ("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-3.0", "isc")
)


def may_be_published(cards: Iterable[Mapping[str, Any]]) -> bool:
    """Whether every dataset's card allows publishing weights trained on it."""
    return all(card["weights_may_be_published"] for card in cards)


def commercial_use(
    cards: Iterable[Mapping[str, Any]], source_licence: str | None, *, has_source: bool, dimensions: str = "2D"
) -> tuple[bool, str]:
    """Return (allowed, why): the most restrictive part decides, and unknown counts as no. dimensions: of the source."""
    for card in cards:
        if card["commercial_use"] is not True:
            word = "unknown" if card["commercial_use"] is None else "not allowed"
            return False, f"{card['name']} ({card['licence']}): commercial use {word}"
    if has_source and (source_licence or "").lower() not in COMMERCIAL:
        return False, f"the {dimensions} source weights' licence is {source_licence or 'unknown'}"
    return True, f"every dataset and the {dimensions} source weights allow it"


def hub_licence(cards: Iterable[Mapping[str, Any]], source_licence: str | None, *, has_source: bool) -> str:
    """Return the Hub's identifier if all parts share one that it knows, else "other"; the card lists them."""
    licences = {str(card["licence"]).lower() for card in cards}
    if has_source:
        licences.add((source_licence or "unknown").lower())
    (only, *others) = licences or {"other"}
    return only if not others and only in HUB_LICENCES else "other"


HUB_LICENCES = COMMERCIAL - {"cc-by-3.0"} | {"cc-by-nc-4.0", "cc-by-nc-sa-4.0"}
