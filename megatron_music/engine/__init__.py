"""The only room that imports megatron.core: processes, network, step, precision, checkpoints."""
