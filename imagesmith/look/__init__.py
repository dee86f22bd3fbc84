"""Looking into images that are there: what they are, and what system they hold. Nothing is mounted or booted."""
