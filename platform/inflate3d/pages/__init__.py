"""Pages to look at, as HTML: one style, one way to fill a template."""
