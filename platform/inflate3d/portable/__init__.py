"""Portable files: a part of a model as ONNX, torch.export or TorchScript, which run without this package."""
