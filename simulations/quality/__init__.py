"""How good the rankings are: baselines, measures and slices in one harness."""
