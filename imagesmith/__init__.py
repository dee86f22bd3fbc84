"""imagesmith: recipe -> plan -> layers -> artifacts. Python programs find here what ``api`` gives."""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from imagesmith.api import (
        Artifact,
        BuildError,
        CheckResult,
        Event,
        ImagesmithError,
        Interrupted,
        Plan,
        Recipe,
        RecipeError,
        Result,
        build,
        load,
        load_all,
        make_plan,
    )

__all__ = [
    "Artifact", "BuildError", "CheckResult", "Event", "ImagesmithError", "Interrupted", "Plan", "Recipe", "RecipeError",
    "Result", "build", "load", "load_all", "make_plan",
]  # fmt: skip


def __getattr__(name: str) -> object:
    """Import the API when it is used first: ``import imagesmith`` alone, and the command's start, cost nothing."""
    if name in __all__:
        from imagesmith import api

        return getattr(api, name)
    raise AttributeError(f"module 'imagesmith' has no attribute '{name}'")
