"""A web server in the guest answers as it should."""

from __future__ import annotations

import http.client
from typing import Annotated

from pydantic import Field

from imagesmith.checks._ask import eventually, shown
from imagesmith.errors import CheckFailed
from imagesmith.interfaces import Guest
from imagesmith.kinds import Check, Duration

_ANSWER_SECONDS = 30.0
_BODY_LIMIT = 1 << 20


class Http(Check, name="http", version=1, shorthand="path"):
    """A GET request from outside the guest brings the expected status and content. Redirects are not followed."""

    path: Annotated[str, Field(pattern=r"^/[!-~]*$", description="The path to ask for, with its query.")] = "/"
    port: Annotated[int, Field(ge=1, le=65535, description="The TCP port.")] = 80
    status: Annotated[int, Field(ge=100, le=599, description="The HTTP status that is expected.")] = 200
    contains: Annotated[str, Field(description="Text that the first MiB of the body must contain.")] = ""
    within: Annotated[Duration, Field(ge=0, description="How long to wait for it.")] = 60.0

    def describe(self) -> str:
        """See Kind."""
        return f"{self.path}" + (f" on port {self.port}" if self.port != 80 else "")

    def check(self, guest: Guest) -> str:
        """See Check."""
        return eventually(lambda: self._once(guest), self.within)

    def _once(self, guest: Guest) -> str:
        host, port = guest.forward(self.port)
        connection = http.client.HTTPConnection(host, port, timeout=_ANSWER_SECONDS)
        try:
            connection.request("GET", self.path, headers={"Host": "localhost", "Connection": "close"})
            answer = connection.getresponse()
            body = answer.read(_BODY_LIMIT).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as error:
            what = str(error) or type(error).__name__
            raise CheckFailed(f"expected an answer on port {self.port}, got none: {what}") from error
        finally:
            connection.close()
        if answer.status != self.status:
            raise CheckFailed(f"expected status {self.status}, got {answer.status}; the answer's end:\n{shown(body)}")
        if self.contains not in body:
            raise CheckFailed(f"expected '{self.contains}' in the answer, which ends with:\n{shown(body)}")
        return f"status {answer.status}, {len(body)} characters"
