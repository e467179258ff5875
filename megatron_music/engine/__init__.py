"""The only room that imports megatron.core: processes, network, step, precision, checkpoints."""

import warnings

# Megatron-core says at every start, and on every process, that Transformer Engine and Apex are absent, and torch that
# megatron-core calls its collectives by their older names: nothing that a user of this package could mend.
warnings.filterwarnings("ignore", module=r"megatron\.")
warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.")
