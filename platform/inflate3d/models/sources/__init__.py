"""Where 2D nets come from: timm and torchvision."""
