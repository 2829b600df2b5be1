"""Transfer: what pretrained weights are worth on a target, against scratch and inflated-only starts."""
