"""What serves large language models."""
