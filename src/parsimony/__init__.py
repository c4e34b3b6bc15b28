"""Parsimony: published ways of making generative models and codecs cheaper, measured side by side."""

__version__ = "0.1.0"
