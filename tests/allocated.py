"""How much memory the tensors of some code take at most."""

import weakref
from typing import Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class MostAllocated(TorchDispatchMode):
    """The largest number of bytes of results that lived at the same time within it.

    Tensors alone, whatever a kernel takes for a moment: that is another thing on every processor and build of PyTorch.
    """

    def __enter__(self) -> Self:
        self.sizes, self.largest = {}, 0
        return super().__enter__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if torch.is_tensor(x)}
        result = function(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if torch.is_tensor(x) and x.untyped_storage().data_ptr() not in given:
                storage = x.untyped_storage()
                self.sizes[id(storage)] = storage.nbytes()
                weakref.finalize(storage, self.sizes.pop, id(storage), None)
        self.largest = max(self.largest, sum(self.sizes.values()))
        return result
