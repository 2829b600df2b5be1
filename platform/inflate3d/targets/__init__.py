"""One file a target type; each is found by its file name, which is the type that cards state. See CONTRIBUTING.md."""

from __future__ import annotations

from inflate3d.targets.class_label import ClassTarget as ClassTarget
from inflate3d.targets.mask import MaskTarget as MaskTarget
from inflate3d.targets.multi_label import MultiLabelTarget as MultiLabelTarget
from inflate3d.targets.value import ValueTarget as ValueTarget
from inflate3d.targets.voxel_value import VoxelValueTarget as VoxelValueTarget
