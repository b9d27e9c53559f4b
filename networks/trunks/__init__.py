"""What computes: layers, U-Nets and MLPs, without a word on noise levels or training."""
