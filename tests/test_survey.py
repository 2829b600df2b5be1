"""The survey of all names: what it finds is what the table says, and what fails is counted."""

import pytest
from inflate3d.models.architectures import table
from inflate3d.reports import survey


@pytest.mark.parametrize("name", ["test_resnet", "torchvision/squeezenet1_1"])
def test_a_name_builds_in_every_way_and_is_as_the_table_says(name):
    found = survey.survey(name)
    assert found.failures == []
    assert found.offers_features
    assert found.line == table()[name]


@pytest.mark.slow
def test_what_fails_is_named_and_counted(monkeypatch):
    real = survey.create_model

    def create_model(name, **options):
        if options.get("in_chans") == 4:
            raise RuntimeError("four channels are too many")
        return real(name, **options)

    monkeypatch.setattr(survey, "create_model", create_model)
    found = survey.survey("test_resnet")
    assert found.failures == ["test_resnet (in_chans=4, num_classes=0): RuntimeError: four channels are too many"]
    assert survey.Survey.from_json(found.to_json()) == found
    head, _columns, line = survey.render([found]).splitlines()
    assert "; 0 of 1 names build and run" in head
    assert ": 1 failures;" in head
    assert line == table()["test_resnet"].to_line()
