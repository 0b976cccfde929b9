"""Texts in files to embeddings in files."""

from daskmeans.embed.encoder import Encoder, get_encoder
from daskmeans.embed.step import embed

__all__ = ["Encoder", "embed", "get_encoder"]
