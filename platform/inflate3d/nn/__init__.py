"""Parts that two or more tasks share: the base of heads and of classification tasks, losses, teachers, sliding windows.

`inflate3d.nn.metrics` is imported by name only: it needs torchmetrics, which the light core does not have.
"""

from inflate3d.nn.classification import ClassificationTask as ClassificationTask
from inflate3d.nn.heads import Head as Head
from inflate3d.nn.losses import cross_entropy_loss as cross_entropy_loss
from inflate3d.nn.losses import known_mean as known_mean
from inflate3d.nn.losses import merge_unannotated as merge_unannotated
from inflate3d.nn.losses import region_loss as region_loss
from inflate3d.nn.losses import soft_dice_loss as soft_dice_loss
from inflate3d.nn.sliding_window import sliding_window as sliding_window
from inflate3d.nn.teacher import move_towards as move_towards
