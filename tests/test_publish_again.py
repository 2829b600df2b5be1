"""Publishing what was published before: its weights as they are, with what was learnt of them since in the card."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import inflate3d
import pytest
from inflate3d.cli.main import main
from inflate3d.models.publication.fetch import published_folder

SHIPPED = "tf_efficientnet_lite0_3d.v2"  # with heads and reports


@pytest.fixture(scope="module")
def published() -> Path:
    folder = published_folder(SHIPPED)
    assert folder is not None
    return folder


def transferred(folder: Path, *, mean: float) -> Path:
    """What a transfer leaves that a card takes in."""
    folder.mkdir()
    row = {
        "start": "ours",
        "metric": "dice",
        "mean": mean,
        "low": mean - 0.1,
        "high": mean + 0.1,
        "std": 0.0,
        "runs": 1,
    }
    (folder / "results.json").write_text(json.dumps([row]))
    (folder / "report.html").write_text(f"<p>{mean}</p>")
    return folder


@pytest.mark.slow
def test_what_was_learnt_since_goes_into_the_card_and_the_weights_stay(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.md").write_text("Good for organs.")
    first, second = transferred(tmp_path / "organs", mean=0.5), transferred(tmp_path / "glands", mean=0.25)
    place = tmp_path / "w"
    told = ["--transfer", str(first), "--transfer", str(second), "--notes", str(tmp_path / "notes.md")]
    assert main(["publish", SHIPPED, "--output", str(place), *told]) == 0
    card = (place / "README.md").read_text()
    assert "| ours | dice | 0.5000 | 0.4000 to 0.6000 | 0.0000 | 1 |" in card
    assert "[transfer-glands.html](transfer-glands.html), [transfer-organs.html](transfer-organs.html)" in card
    assert "Good for organs." in card
    assert (place / "transfer-organs.html").read_text() == "<p>0.5</p>"
    for name in ("model.safetensors", "heads.safetensors", "replay.safetensors", "conv1.png"):
        assert (place / name).read_bytes() == (published / name).read_bytes()
    net = inflate3d.create_segmenter(f"local-dir:{place}", pretrained=True)
    assert net.label_names == ["background", "Anterior", "Posterior"]
    # Again with nothing new: everything stays, in another place too.
    assert main(["publish", f"local-dir:{place}", "--output", str(tmp_path / "copy")]) == 0
    assert (tmp_path / "copy" / "SHA256SUMS").read_bytes() == (place / "SHA256SUMS").read_bytes()
    # A page that was not fetched, as from a server, is not lost without a word.
    (place / "transfer-organs.html").unlink()
    assert main(["publish", str(place), "--output", str(tmp_path / "third")]) == 2
    assert "transfer-organs.html is missing" in capsys.readouterr().err


def restated(folder: Path, **changed: object) -> None:
    """Change entries of a publication's config.json, and its hash."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changed}))
    own = f"{hashlib.sha256((folder / 'config.json').read_bytes()).hexdigest()}  config.json"
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    (folder / "SHA256SUMS").write_text("\n".join(own if x.endswith("config.json") else x for x in lines) + "\n")


@pytest.mark.slow
def test_a_strangers_config_names_no_file_outside_its_folder(published: Path, tmp_path: Path) -> None:
    folder, place = tmp_path / "source", tmp_path / "w"
    shutil.copytree(published, folder)
    (tmp_path / "secret.html").write_text("mine")
    training = json.loads((folder / "config.json").read_text())["training"]
    restated(folder, training={**training, "reports": ["../secret.html", "transfer-none.html", "README.md", 7]})
    assert main(["publish", str(folder), "--output", str(place)]) == 0
    assert json.loads((place / "config.json").read_text())["training"]["reports"] == []
    own = {file.name for file in published.iterdir() if not file.name.startswith("transfer-")}
    assert {file.name for file in place.iterdir()} == own | {"example.nii.gz"}


@pytest.mark.slow
def test_weights_of_data_that_forbid_it_stay_private_whatever_the_config_says(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "source"
    shutil.copytree(published, folder)
    training = json.loads((folder / "config.json").read_text())["training"]
    data = [{**card, "weights_may_be_published": False} for card in training["data"]]
    restated(folder, training={**training, "data": data}, private=False)
    assert main(["publish", str(folder), "--output", "s3://bucket/nets"]) == 2
    assert "forbids publishing weights" in capsys.readouterr().err
    assert main(["publish", str(folder), "--output", str(tmp_path / "w")]) == 0
    assert (tmp_path / "w" / "PRIVATE").is_file()


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("runs/none", [], "'runs/none' does not exist; give a run folder"),
        (
            "PUBLISHED",
            ["--heads", "--domain", "adrenal"],
            "is not a run folder or checkpoint; --domain, --heads needs one",
        ),
        ("PUBLISHED", ["--transfer", "nowhere"], "--transfer nowhere: has no results.json and report.html"),
        ("PUBLISHED", ["--output", "hf-hub:lab/run"], "forbids publishing weights"),
        ("DAMAGED", [], "SHA256SUMS"),
    ],
)
def test_a_publication_that_cannot_go_on_is_refused(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, options: list[str], message: str
) -> None:
    folder = tmp_path / "source"
    shutil.copytree(published, folder)
    if "hf-hub:lab/run" in options:
        restated(folder, private=True)
    if source == "DAMAGED":
        (folder / "replay.safetensors").write_bytes(b"\0" * 100)
    place = folder if source in ("PUBLISHED", "DAMAGED") else source
    assert main(["publish", str(place), "--output", str(tmp_path / "w"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "w").exists()
