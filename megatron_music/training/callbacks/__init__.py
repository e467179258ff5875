"""What happens beside the steps: metrics, validation, samples, checkpoints."""
