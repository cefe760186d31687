"""Files: strict headers, whole or not at all."""
