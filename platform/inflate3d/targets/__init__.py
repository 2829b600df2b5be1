"""One file a target type; each is found by its file name, which is the type that cards state. See CONTRIBUTING.md."""
