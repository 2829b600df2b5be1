"""One file a type of head; its name is the type that publications state."""
