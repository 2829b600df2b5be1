"""Pictures: curves, samples, filters, plans and raw cases."""
