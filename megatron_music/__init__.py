"""Pretraining music language models on megatron-core: from songs to codec tokens to a model that sings."""

__version__ = "0.1.0"
