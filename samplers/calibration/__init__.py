"""Few-step solvers fitted to a model: coefficients and noise levels nearest to a teacher."""
