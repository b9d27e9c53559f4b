"""What a snapshot holds: trunks bound to a preconditioning, a velocity, an encoder or coefficients."""
