"""Planning: from a folder of raw files to a config, by its fingerprint."""
