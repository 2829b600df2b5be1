"""Raw files as people have them: readers, geometry, keys and splits."""
