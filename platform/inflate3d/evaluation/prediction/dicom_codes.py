"""What the name of a segment means to a DICOM viewer: SNOMED codes from DICOM's own lists (PS3.16)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

_ANATOMY = ("cid7152", "cid7153", "cid7154", "cid7155", "cid7160")
"""Segmentation property types: cardiac, brain, abdominal, chest, pelvic."""
_ABNORMAL = "cid7159"
_NO_MEANING = ("Background", "Normal")  # of that list
_ALSO = {"Tumor": "Neoplasm", "Tumour": "Neoplasm"}


@dataclass(frozen=True)
class Meaning:
    """Codes of pydicom: what kind of thing, which one, and on which side, if the name says it."""

    category: Any
    kind: Any
    side: Any = None


def meaning_of(name: str) -> Meaning:
    """Return the codes of a name that is an organ's or a finding's in these lists, word for word; else SNOMED's tissue.

    `left` and `right`, in any place, are the side, unless they belong to a name in the lists (`left ventricle`). Case,
    blanks, hyphens and underscores do not matter.
    """
    from pydicom.sr.codedict import codes

    words = [word.capitalize() for word in re.findall(r"[A-Za-z0-9]+", name)]
    sides = [word for word in words if word in ("Left", "Right")]
    rest = "".join(word for word in words if word not in sides)
    side = getattr(codes.SCT, sides[0]) if len(sides) == 1 else None
    for keyword, side_of_it in (("".join(words), None), (_ALSO.get(rest, rest), side)):
        for listed in _ANATOMY:
            if keyword in dir(getattr(codes, listed)):
                return Meaning(codes.SCT.AnatomicalStructure, getattr(getattr(codes, listed), keyword), side_of_it)
        if keyword in dir(getattr(codes, _ABNORMAL)) and keyword not in _NO_MEANING:
            found = getattr(getattr(codes, _ABNORMAL), keyword)
            return Meaning(codes.SCT.MorphologicallyAbnormalStructure, found, side_of_it)
    return Meaning(codes.SCT.Tissue, codes.SCT.Tissue)
