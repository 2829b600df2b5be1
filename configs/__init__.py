"""Configs as documents; `platform fit --config NAME.yaml` finds them here by bare name."""
