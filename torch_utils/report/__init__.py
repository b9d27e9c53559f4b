"""Plots, scatter pictures and HTML pages."""
