"""The contracts that plug-ins fulfil: datasets, media, targets, tasks and zoos. No torch is imported here at run time.

A dataset turns raw files into shards; training never sees its class, only the shards' manifest, which carries the card.
A card names a medium (what a sample is) and targets (what is known of it); a task turns them into a loss, metrics and
predictions. Plug-ins know the platform; the platform names no plug-in, no medium and no target.
"""

from __future__ import annotations

from inflate3d.contracts.card import DatasetCard as DatasetCard
from inflate3d.contracts.card import InputSpec as InputSpec
from inflate3d.contracts.card import Intensity as Intensity
from inflate3d.contracts.dataset import SPLITS as SPLITS
from inflate3d.contracts.dataset import AbstractDataset as AbstractDataset
from inflate3d.contracts.dataset import Case as Case
from inflate3d.contracts.dataset import RawSample as RawSample
from inflate3d.contracts.dataset import Split as Split
from inflate3d.contracts.exhibit import Exhibit as Exhibit
from inflate3d.contracts.exhibit import Panel as Panel
from inflate3d.contracts.medium import AbstractMedium as AbstractMedium
from inflate3d.contracts.medium import Plane as Plane
from inflate3d.contracts.medium import SampleOptions as SampleOptions
from inflate3d.contracts.medium import Stage as Stage
from inflate3d.contracts.medium import medium_named as medium_named
from inflate3d.contracts.medium import medium_of as medium_of
from inflate3d.contracts.prediction import Features as Features
from inflate3d.contracts.prediction import Images as Images
from inflate3d.contracts.prediction import Masks as Masks
from inflate3d.contracts.prediction import Prediction as Prediction
from inflate3d.contracts.prediction import Probabilities as Probabilities
from inflate3d.contracts.prediction import Values as Values
from inflate3d.contracts.target import AbstractTarget as AbstractTarget
from inflate3d.contracts.task import AbstractTask as AbstractTask
from inflate3d.contracts.task import Encoder as Encoder
from inflate3d.contracts.task import FeatureInfo as FeatureInfo
from inflate3d.contracts.task import SupervisedTask as SupervisedTask
from inflate3d.contracts.zoo import AbstractZoo as AbstractZoo
from inflate3d.contracts.zoo import ZooNet as ZooNet
from inflate3d.contracts.zoo import find_zoo as find_zoo
from inflate3d.contracts.zoo import zoo_names as zoo_names
