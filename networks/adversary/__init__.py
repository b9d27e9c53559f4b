"""What judges samples in adversarial training: discriminators and their pretrained backbones."""
