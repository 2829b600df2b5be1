"""From stored members to what a net sees: decoding, cutting, normalising, augmenting."""
