"""A blocking client of the HTTP API, for the command line, the demo and people's own scripts."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from serving.errors import ServingError
from serving.question import Question

ATTEMPTS = 4
FIRST_WAIT_S = 0.25
LONGEST_WAIT_S = 10.0


class ApiError(ServingError):
    """The service refused or could not be reached.

    status: of HTTP, 0 when nothing answered. code: stable, see the API's problem documents; "unreachable" when nothing
    answered, "not_the_api" when something else did. errors: (field, reason) pairs.
    """

    def __init__(self, status: int, code: str, detail: str, errors: Sequence[tuple[str, str]] = ()) -> None:
        fields = "; ".join(f"{field}: {reason}" for field, reason in errors if reason not in detail)
        super().__init__(f"{detail} ({fields})" if fields else detail)
        self.status, self.code, self.detail, self.errors = status, code, detail, tuple(errors)


class ApiClient:
    """One connection pool and one token. Every method raises ApiError; close it, or use it in a `with`.

    An answer 503 is asked for again after the Retry-After that it names. A lost connection is tried again only where
    the same request cannot act twice: reads, events (their ids), actions (their idempotency key).
    """

    def __init__(
        self,
        base_url: str,
        token: str,
        timeout_s: float = 10.0,
        *,
        sleep: Callable[[float], None] = time.sleep,
        new_key: Callable[[], str] = lambda: str(uuid.uuid4()),
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        self._http = httpx.Client(base_url=base_url, headers=headers, timeout=timeout_s, transport=transport)
        self._sleep, self._new_key = sleep, new_key

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def recommend(
        self,
        user_id: str,
        history: Sequence[str] = (),
        k: int = 10,
        *,
        liked: Sequence[str] = (),
        profile: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """One slate: request_id, items, and where the user was routed."""
        return self._post("/v1/recommend", {"user_id": user_id} | Question(history, k, liked, profile or {}).body())

    def events(self, events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Report events: {accepted, refused: [{index, event_id, field, reason}]}."""
        return self._post("/v1/events", {"events": list(events)}, repeatable=True)

    def create_experiment(self, spec_text: str, content_type: str = "application/yaml") -> dict[str, Any]:
        """Create an experiment from its specification; it waits for `start`."""
        headers = {"Content-Type": content_type}
        return self._object("POST", "/v1/experiments", content=spec_text.encode(), headers=headers)

    def action(
        self,
        key: str,
        action: str,
        reason: str,
        *,
        arm: str | None = None,
        idempotency_key: str | None = None,
        if_match: str | int | None = None,
    ) -> dict[str, Any]:
        """start, pause, resume, advance, promote, rollback, stop or restart; the experiment afterwards.

        It happens once under its idempotency key, which is made up when none is given. if_match: the version that the
        decision was based on; ApiError 412 when it is no longer that one.
        """
        headers = {"Idempotency-Key": idempotency_key or self._new_key()}
        if if_match is not None:
            headers["If-Match"] = f'"{if_match}"' if isinstance(if_match, int) else if_match
        body = {"reason": reason} | ({} if arm is None else {"arm": arm})
        return self._post(f"{_address(key)}/{quote(action, safe='')}", body, headers=headers, repeatable=True)

    def experiments(self) -> list[dict[str, Any]]:
        """All experiments in short, newest first."""
        return list(self._get("/v1/experiments")["experiments"])

    def experiment(self, key: str) -> dict[str, Any]:
        """One experiment with its specification."""
        return self._get(_address(key))

    def status(self, key: str) -> dict[str, Any]:
        """Where the ramp stands and what the last look said."""
        return self._get(f"{_address(key)}/status")

    def report(self, key: str) -> dict[str, Any]:
        """Everything about the current run."""
        return self._get(f"{_address(key)}/report")

    def timeseries(self, key: str) -> list[dict[str, Any]]:
        """The confidence sequences: one point per look, metric and treatment."""
        return list(self._get(f"{_address(key)}/timeseries")["points"])

    def decisions(self, key: str, *, with_evidence: bool = False) -> list[dict[str, Any]]:
        """The log of decisions, oldest first; `with_evidence` adds what each look saw."""
        query = "?with_evidence=true" if with_evidence else ""
        return list(self._get(f"{_address(key)}/decisions{query}")["decisions"])

    def variants(self) -> list[dict[str, Any]]:
        """The deployed variants."""
        return list(self._get("/v1/variants")["variants"])

    def add_variant(self, name: str, checkpoint: str) -> dict[str, Any]:
        """Deploy a checkpoint folder of the cluster's as another variant; answers once the variant does."""
        return self._post("/v1/variants", {"name": name, "checkpoint": checkpoint})

    def _get(self, path: str) -> dict[str, Any]:
        return self._object("GET", path, repeatable=True)

    def _post(
        self, path: str, body: object, *, headers: Mapping[str, str] | None = None, repeatable: bool = False
    ) -> dict[str, Any]:
        sent = {"Content-Type": "application/json", **(headers or {})}
        return self._object("POST", path, content=json.dumps(body).encode(), headers=sent, repeatable=repeatable)

    def _object(
        self,
        method: str,
        path: str,
        *,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        repeatable: bool = False,
    ) -> dict[str, Any]:
        """The JSON object of a 2xx answer."""
        attempt, wait = 1, FIRST_WAIT_S
        while True:
            last, pause = attempt == ATTEMPTS, wait
            try:
                response = self._http.request(method, path, content=content, headers=headers)
            except (httpx.TransportError, httpx.InvalidURL) as error:
                if last or not (isinstance(error, httpx.ConnectError) or (repeatable and _passing(error))):
                    text = f"{self._http.base_url} does not answer: {error or type(error).__name__}"
                    raise ApiError(0, "unreachable", text) from error
            else:
                if last or response.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                    return _read(response)
                pause = retry_after_s(response.headers.get("Retry-After"), wait)
            self._sleep(pause)
            attempt, wait = attempt + 1, min(2 * wait, LONGEST_WAIT_S)


def _passing(error: Exception) -> bool:
    """Whether another try may go better."""
    return not isinstance(error, httpx.UnsupportedProtocol | httpx.InvalidURL)


def retry_after_s(header: str | None, otherwise: float) -> float:
    """Seconds that a Retry-After header asks for, at most LONGEST_WAIT_S; `otherwise` when it does not say."""
    text = (header or "").strip()
    return min(float(text), LONGEST_WAIT_S) if text.isascii() and text.isdigit() else otherwise


def _read(response: httpx.Response) -> dict[str, Any]:
    try:
        body = response.json() if response.content else {}
    except ValueError:
        body = None
    if response.is_success and isinstance(body, dict):
        return body
    if not isinstance(body, dict) or "code" not in body:
        raise ApiError(response.status_code, "not_the_api", f"{response.url} answered {response.status_code}")
    errors = [(str(error.get("field", "")), str(error.get("reason", ""))) for error in body.get("errors", [])]
    raise ApiError(response.status_code, str(body["code"]), str(body.get("detail", "")), errors)


def _address(key: str) -> str:
    return f"/v1/experiments/{quote(key, safe='')}"
