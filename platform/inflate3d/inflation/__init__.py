"""2D -> 3D: taps fill the third axis of a kernel, a plan lays kernels and strides along D, folding runs the 2D net."""

from inflate3d.inflation.features import InflatedFeatureInfo as InflatedFeatureInfo
from inflate3d.inflation.network import Inflated as Inflated
from inflate3d.inflation.network import inflate as inflate
from inflate3d.inflation.network import inflate_in_place as inflate_in_place
from inflate3d.inflation.plan import PLAN_NAMES as PLAN_NAMES
from inflate3d.inflation.plan import PRESETS as PRESETS
from inflate3d.inflation.plan import InflationPlan as InflationPlan
from inflate3d.inflation.plan import resolve_plan as resolve_plan
from inflate3d.inflation.taps import TAP_NAMES as TAP_NAMES
from inflate3d.inflation.taps import Taps as Taps
from inflate3d.inflation.taps import inflate_kernel as inflate_kernel
from inflate3d.inflation.verify import InflationError as InflationError
