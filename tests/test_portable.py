"""Portable files answer as their net does, say what it takes, and appear only if they do."""

from itertools import product

import inflate3d
import pytest
import torch
from inflate3d.models.architectures import smallest_of_each_family
from inflate3d.portable.formats import FORMATS
from inflate3d.portable.part import part_of_net
from inflate3d.portable.write import write_portable
from nightly import REPRESENTATIVE, some

KINDS = {row.family: row.name for row in smallest_of_each_family() if row.family in REPRESENTATIVE}
MATRIX = list(product(sorted(KINDS), ["onnx", "torch-export"]))


@pytest.mark.slow
@pytest.mark.parametrize(("family", "format"), some(MATRIX, [("vision_transformer", "torch-export")]))
def test_unlike_architectures_leave_and_answer_alike(family, format, tmp_path):
    torch.manual_seed(0)
    net = inflate3d.create_model(KINDS[family], plan="isotropic", num_classes=5).eval()
    part = part_of_net(net, (2 * net.depth_reduction, *net.trace_size))
    written = write_portable(part, tmp_path / "file", format=format)
    clip = torch.randn(2, 3, *part.size, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        got, expected = FORMATS[format].load(written.path)(clip), net(clip)
    print(family, net.net_spec.name, format, written.free, f"{written.difference:.1e}", flush=True)
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max().clamp_min(1)
