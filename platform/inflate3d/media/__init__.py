"""One file a medium; each is found by its file name, which is what cards state as `media`. See CONTRIBUTING.md."""
