"""Nets by name: create_model, sources of weights, and the training backbone."""

from inflate3d.models.backbone import Backbone as Backbone
from inflate3d.models.backbone import BackboneConfig as BackboneConfig
from inflate3d.models.create import build_net as build_net
from inflate3d.models.create import create_model as create_model
from inflate3d.models.names import list_models as list_models
from inflate3d.models.names import list_pretrained as list_pretrained
from inflate3d.models.segmenter import Segmenter as Segmenter
from inflate3d.models.segmenter import create_segmenter as create_segmenter
from inflate3d.models.transform import create_transform as create_transform
