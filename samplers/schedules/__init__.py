"""Where noise levels come from without looking at a model: formulas, published lists, noise tables."""
