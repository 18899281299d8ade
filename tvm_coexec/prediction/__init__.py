"""Learn how long halves take: features, predictors, the memory model, residuals and their evaluation."""
