"""The front door: turns HTTP into envelopes."""
