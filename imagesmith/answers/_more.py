"""Answer files that do not come alone: a script that starts the installer, passwords in a file of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from imagesmith.kinds import Answer


class Accompanied(Answer):
    """An answer file with more files of ours at its side."""

    more: ClassVar[Mapping[str, str]] = {}
    """Their names, and their templates in ``templates/answers/``, which see the options and ``own``: whether the
    answer file is the user's own."""

    def also(self) -> dict[str, str]:
        """The other files' texts. Raises ValueError where a template of ours does not go with the options."""
        assert self._own is not None, "an answer file needs the loader's context"
        values = {name: getattr(self, name) for name in type(self).model_fields}
        values["own"] = self.file is not None
        return {name: self._own(f"answers/{template}", values).text for name, template in self.more.items()}

    def identity(self) -> dict[str, object]:
        """See Answer: the other files count, too."""
        return {**super().identity(), "more": self.also()}
