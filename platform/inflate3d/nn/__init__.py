"""Parts that two or more tasks share: heads, the segmentation decoder, losses, sliding windows.

`inflate3d.nn.metrics` is imported by name only: it needs torchmetrics, which the light core does not have.
"""

from inflate3d.nn.decoder import UNetDecoder as UNetDecoder
from inflate3d.nn.heads import LinearHead as LinearHead
from inflate3d.nn.losses import cross_entropy_loss as cross_entropy_loss
from inflate3d.nn.losses import soft_dice_loss as soft_dice_loss
from inflate3d.nn.sliding_window import sliding_window as sliding_window
