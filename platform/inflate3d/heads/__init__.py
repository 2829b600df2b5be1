"""One file a kind of head; each is found by its file name, which is the type that publications state."""
