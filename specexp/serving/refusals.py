"""What a served request is refused with: an HTTP status, and the error object of the OpenAI interface.

{"error": {"message": "...", "type": "invalid_request_error", "param": null, "code": null}}
"""

from __future__ import annotations

from typing import Any

from specexp.errors import RequestError

INVALID, NOT_FOUND, UNAUTHORIZED = "invalid_request_error", "not_found_error", "authentication_error"
OVERLOADED, FAILED = "rate_limit_error", "server_error"


class Refusal(RequestError):
    """A request that is not answered. `retry_after` are the seconds after which it may be sent again; 0 is never."""

    def __init__(
        self, message: str, status: int = 400, kind: str = INVALID, code: str | None = None, retry_after: int = 0
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.code, self.retry_after = status, kind, code, retry_after

    @property
    def headers(self) -> dict[str, str]:
        result = {"Retry-After": str(self.retry_after)} if self.retry_after else {}
        return result | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"message": str(self), "type": self.kind, "param": None, "code": self.code}}


def of_invalid(error: Exception) -> Refusal:
    """The refusal of a request that is wrong; one that is a refusal already stays as it is."""
    return error if isinstance(error, Refusal) else Refusal(str(error))


def of_failure(error: BaseException) -> Refusal:
    """The refusal of a request whose decoding failed."""
    if isinstance(error, Refusal):
        return error
    lines = str(error).strip().splitlines()
    words = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return Refusal(f"decoding failed: {words}", 500, FAILED)
