"""Connected components of a label map, of which the largest of a class stays."""

# X Y Z the axes of a file as it is stored.

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def largest_components(labels_XYZ: np.ndarray, classes: Iterable[int]) -> np.ndarray:
    """Return the map with only the largest component of each of these classes; the rest of it becomes background, 0.

    Voxels are connected that share a face, an edge or a corner. Of several that are as large, the one stays whose
    first voxel comes first.
    """
    from scipy import ndimage

    kept_XYZ = labels_XYZ.copy()
    boxes = ndimage.find_objects(labels_XYZ)
    for label in classes:
        box = boxes[label - 1] if label <= len(boxes) else None
        if box is None:
            continue
        parts, count = ndimage.label(labels_XYZ[box] == label, structure=np.ones((3, 3, 3)))
        if count > 1:
            largest = int(np.bincount(parts.ravel())[1:].argmax()) + 1
            kept_XYZ[box][(parts > 0) & (parts != largest)] = 0
    return kept_XYZ
