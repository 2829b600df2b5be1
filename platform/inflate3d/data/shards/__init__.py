"""Data at rest: WebDataset tars with an index beside each, and the manifest that describes them."""
