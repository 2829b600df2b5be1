"""The pass table: what it measures holds for every family, and it can tell a net that fails."""

from dataclasses import replace

import pytest
import torch
from inflate3d.inflation.layers import FoldedLinear
from inflate3d.reports import pass_table
from inflate3d.reports.pass_report import append_row, load_rows, render
from inflate3d.reports.pass_table import CASES, FULL_CASE, AllInDouble, Case, Row, measure_all
from nightly import families
from timm.layers import RmsNormFp32
from torch import nn


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_two_nets_pass_in_every_case(name, tmp_path):
    rows = list(measure_all(name))
    assert [row.faults for row in rows] == [[]] * len(CASES)
    full = next(row for row in rows if (row.taps, row.plan) == (FULL_CASE.taps, FULL_CASE.plan))
    assert (full.compiles, full.exports) == ("yes", "yes")
    assert full.levels >= 3
    for row in rows:
        append_row(tmp_path / "rows.jsonl", row)
    page = render(load_rows(tmp_path / "rows.jsonl"))
    assert page.count(f"| {name} |") == len(CASES)
    assert "every row passes: 1;" in page


@pytest.mark.slow
def test_a_net_that_is_inexact_or_blind_to_order_fails(monkeypatch):
    real = FoldedLinear.forward
    monkeypatch.setattr(FoldedLinear, "forward", lambda self, x: real(self, x) + 1e-5 * torch.rand_like(real(self, x)))
    (row,) = measure_all("test_vit", [Case("mean", "slow")])
    assert any("fp64" in fault for fault in row.faults)
    monkeypatch.undo()
    (row,) = measure_all("test_vit", [Case("mean", "2d")])  # the per-slice baseline is blind by design
    assert row.faults
    assert all("order" in fault for fault in row.faults)
    (row,) = measure_all("no_such_net", [Case("mean", "2d")])
    assert "no_such_net" in row.failure


GOOD = Row("toy", "mean", "isotropic", fp64=1e-15, fp32=1e-7, fp32_2d=1e-7, order=0.1, depths=2, stride=8)


def test_a_row_without_its_stride_fails():
    assert GOOD.faults == []
    assert replace(GOOD, depths=9).faults == [f"D 9, not {-(-pass_table.DEPTH // 8)}"]


def test_in_float32_a_net_may_differ_by_a_few_times_what_it_rounds_by_in_2d():
    assert replace(GOOD, fp32=3e-2, fp32_2d=1e-2).faults == []
    assert replace(GOOD, fp32=5e-2, fp32_2d=1e-2).faults == ["fp32 5.0e-02"]
    assert replace(GOOD, fp32=5e-2, fp32_2d=float("nan")).faults == ["fp32 5.0e-02"]  # a row of before the column


@pytest.mark.slow
def test_a_net_that_rounds_in_2d_shows_it(monkeypatch):
    real = pass_table.Subject.build

    class ToyRounded(nn.Module):
        """Adds and takes away a number so large that float32 forgets most of what it was added to."""

        def forward(self, x):
            return (x + 1e4) - 1e4

    def build(self, *, features_only):
        net = real(self, features_only=features_only)
        net.norm = nn.Sequential(net.norm, ToyRounded())
        return net

    monkeypatch.setattr(pass_table.Subject, "build", build)
    (row,) = measure_all("test_vit", [Case("mean", "slow")])
    assert row.fp32_2d > pass_table.MOST_FP32
    assert row.fp64 < pass_table.MOST_FP64
    assert row.faults == []


def test_float64_stays_where_a_net_casts_to_float32():
    norm = RmsNormFp32(8).double()
    x = torch.randn(4, 8, dtype=torch.float64)
    with AllInDouble():
        y = norm(x)
    torch.testing.assert_close(y, x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt(), rtol=1e-13, atol=0)


# Takes no image below 256 x 256, so minutes in float64: its row of docs/pass-table.md has to do.
TOO_LARGE = ("halonet_h1",)


@pytest.mark.slow
@pytest.mark.parametrize("row", families(without=TOO_LARGE))
def test_the_smallest_of_every_family_passes(row):
    (measured,) = measure_all(row.name, [Case("mean", "isotropic")])
    assert measured.faults == []
