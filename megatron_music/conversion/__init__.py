"""From a trained checkpoint to a Hugging Face Llama folder."""
