"""Plumbing without a word of diffusion in it: files, processes, random numbers, statistics, images."""
