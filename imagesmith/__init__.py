"""imagesmith: recipe -> plan -> layers -> artifacts."""

__version__ = "0.1.0"
