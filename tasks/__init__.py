"""One file a task; each is found by its file name. See CONTRIBUTING.md for how to add one."""
