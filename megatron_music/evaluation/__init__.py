"""What can be measured of a trained model, and the baselines to measure it against."""
