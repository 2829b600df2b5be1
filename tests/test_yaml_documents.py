"""YAML as people write it: read as it is meant, or refused with the line and the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from inflate3d.cli.config import load_config
from inflate3d.cli.main import main
from inflate3d.data.samples.augment import read_spec
from inflate3d.document import read_any, read_document, read_value
from inflate3d.errors import InputError


def read(folder: Path, text: str | bytes) -> dict[str, Any]:
    path = folder / "a.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_document(path)[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: &x {p: 1, q: 2}\nb: {<<: *x, q: 3}\n", {"a": {"p": 1, "q": 2}, "b": {"p": 1, "q": 3}}),
        ("a: &x {p: 1, q: 2}\nb: {q: 3, <<: *x}\n", {"a": {"p": 1, "q": 2}, "b": {"p": 1, "q": 3}}),
        (
            "a: &x {p: 1}\nb: &y {p: 2, q: 5}\nc: {<<: [*x, *y]}\n",
            {"a": {"p": 1}, "b": {"p": 2, "q": 5}, "c": {"p": 1, "q": 5}},
        ),
        (
            "a: &x {s: {p: 1}}\nb: &y {<<: *x, t: 1}\nc:\n  <<: *y\n  s: {q: 2}\n",
            {"a": {"s": {"p": 1}}, "b": {"s": {"p": 1}, "t": 1}, "c": {"s": {"q": 2}, "t": 1}},
        ),
        ("a: 10:00:00:00\nb: 12:30:00\nc: 1:40.5\n", {"a": "10:00:00:00", "b": "12:30:00", "c": "1:40.5"}),
        ("a: 2024-01-01\nb: 2024-01-01 10:00:00\n", {"a": "2024-01-01", "b": "2024-01-01 10:00:00"}),
        ("a: 1e-3\nb: 1.5e3\nc: .5\nd: -1E+2\ne: 1_000\n", {"a": 0.001, "b": 1500.0, "c": 0.5, "d": -100.0, "e": 1000}),
        ("a: 0x1F\nb: 0\nc: -7\nd: 0.5\ne: 08\n", {"a": 31, "b": 0, "c": -7, "d": 0.5, "e": "08"}),
        ("a: no\nb: On\nc: 'no'\nd: ~\n", {"a": False, "b": True, "c": "no", "d": None}),
        ("a: '0100'\nb: \"12:30\"\n", {"a": "0100", "b": "12:30"}),
        ("a: 1\r\nb: 2\r\n", {"a": 1, "b": 2}),
        ("\ufeffa: 1\n", {"a": 1}),
        ("a: ä\n".encode("utf-16"), {"a": "ä"}),
        ("", {}),
        ("# nothing\n", {}),
    ],
)
def test_values_are_what_was_written(tmp_path: Path, text: str | bytes, value: dict[str, Any]) -> None:
    assert read(tmp_path, text) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: 0100\n", r"a.yaml:2: .*0100 is an octal number in YAML 1.1; write it without the 0, or as text"),
        ("a: {b: 1,\n  c: 2, b: 3}\n", r"a.yaml:2: a.b appears twice, first on line 1; keep one"),
        ("a:\n- {b: 1,\n   b: 2}\n", r"a.yaml:3: .*b appears twice, first on line 2; keep one"),
        ("a: &x {p: 1}\nb: {<<: *x, q: 1, q: 2}\n", r"a.yaml:2: b.q appears twice"),
        ("a: 1\n---\na: 2\n", r"a.yaml:2: a second document begins; a config is one"),
        ("a: *x\n", r"a.yaml:1: not valid YAML: found undefined alias"),
        ("a: &x [*x]\n", "nested too deeply, or an alias stands for what it lies in"),
        ("a:\n" + " [\n" * 3000 + " ]" * 3000, "nested too deeply"),
        (
            "a: &a [x,x,x,x,x,x,x,x,x]\n"
            + "".join(f"{n}: &{n} [{','.join([f'*{m}'] * 9)}]\n" for m, n in zip("abcdef", "bcdefg", strict=True)),
            "holds more than 100000 values, perhaps by aliases of aliases",
        ),
        (b"a: 1 # \xe9\n", "not valid YAML: .*save it as UTF-8"),
        ("on: 1\n", "a.yaml:1: the key True is not text; put it in quotes"),
        ("12: 1\n", "a.yaml:1: the key 12 is not text"),
        ("a: !!python/object/apply:os.system [x]\n", "a.yaml:1: not valid YAML"),
        ("{<<: 1}\n", "a.yaml:1: not valid YAML: expected a mapping or list of mappings for merging"),
        ("\ta: 1\n", "a.yaml:1: not valid YAML"),
        ("a: 1\0\n", "not valid YAML"),
    ],
)
def test_what_would_be_misread_is_refused_with_its_line(tmp_path: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read(tmp_path, text)


def test_what_an_alias_stands_for_is_a_value_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("data: {datasets: {a: &x {batch_size: 8, sample: {n: 1}}, b: *x}}\n")
    config = load_config([str(tmp_path / "a.yaml")], ["--data.datasets.b.sample.n", "2"])
    assert config.get("data", "datasets") == {
        "a": {"batch_size": 8, "sample": {"n": 1}},
        "b": {"batch_size": 8, "sample": {"n": 2}},
    }
    assert config.where("data", "datasets", "a", "batch_size") == "a.yaml:1: data.datasets.a.batch_size"


def test_a_merged_value_is_known_by_the_line_that_wrote_it(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: &x\n  p: 1\n  q: 2\nb:\n  <<: *x\n  q: 3\n")
    _, lines = read_document(tmp_path / "a.yaml")
    assert (lines["b", "p"], lines["b", "q"]) == (2, 6)


@pytest.mark.parametrize(
    "text", ["10:00:00:00", "1:12:00:00", "01:00:00:00", "12:30:00", "2024-01-01", "a: b: c", "08"]
)
def test_an_option_that_is_no_number_stays_the_text(tmp_path: Path, text: str) -> None:
    assert read_value(text) == text


def test_an_option_with_an_octal_number_or_a_doubled_key_is_refused() -> None:
    with pytest.raises(InputError, match="'0100': 0100 is an octal number"):
        read_value("0100")
    with pytest.raises(InputError, match="a appears twice"):
        read_value("{a: 1, a: 2}")


def test_a_time_that_lightning_cannot_read_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.yaml").write_text("trainer: {max_time: 12:30:00}\n")
    assert main(["fit", "--config", "quickstart.yaml", "--config", str(tmp_path / "a.yaml")]) == 2
    told = capsys.readouterr().err
    assert "a.yaml:1: trainer.max_time is '12:30:00'; expected days, hours, minutes and seconds as DD:HH:MM:SS" in told


def test_lists_of_transforms_are_read_by_the_same_rules(tmp_path: Path) -> None:
    path = tmp_path / "ct.yaml"
    path.write_text("- &flip {class_path: RandomFlip, init_args: {p: 1e-1}}\n- *flip\n")
    assert read_spec(str(path), where="x") == [{"class_path": "RandomFlip", "init_args": {"p": 0.1}}] * 2
    path.write_text("- {class_path: RandomFlip, class_path: RandomNoise}\n")
    with pytest.raises(InputError, match=r"x: .*ct.yaml:1: .*class_path appears twice"):
        read_spec(str(path), where="x")
    path.write_text("")
    assert read_any(path) is None
