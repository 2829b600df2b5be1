"""One file per dataset, found by its file name. See CONTRIBUTING.md for how to add one."""

if __name__ == "datasets":
    # Hugging Face's package has the same name. Libraries that probe for it catch ImportError.
    raise ImportError(
        "this folder is inflate3d.datasets, not Hugging Face's 'datasets': import inflate3d.datasets, "
        "and run the tests with `pytest`, not `python -m pytest`"
    )
