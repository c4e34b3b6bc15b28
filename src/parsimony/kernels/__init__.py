"""Triton kernels, each beside its torch reference, its count of bytes and operations, and the cases that check it.

The first function of each module (`tree_attention.attend`, `confidence_entropy.statistics`, ...) takes tensors of any
device: on a GPU it launches the kernel, elsewhere it is the torch reference.  Importing the package imports no kernel.
"""
