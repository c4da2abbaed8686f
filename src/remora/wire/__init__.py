"""The wire protocol without input or output: bytes in, messages out."""
