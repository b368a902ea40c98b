"""The chaos suite: what the segment job promises while everything around it dies. See docs/reliability.md."""
