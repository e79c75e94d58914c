"""The page for people: sign in, look at experiments, act on them with a reason. It acts through the API alone."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Request
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from experiment.metrics import METRICS
from experiment.ramp import ALLOWED
from experiment.report import build_report, coverage, timeseries
from serving import charts
from serving.auth import COOKIE, Principal, Scope, principal_of
from serving.problems import Problem
from serving.services import Services, services_of

router = APIRouter(include_in_schema=False)

Shared = Annotated[Services, Depends(services_of)]

_HERE = Path(__file__).parent.parent
_FILES = {"page.css": "text/css", "page.js": "text/javascript"}
_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; form-action 'self'"
)
_WEEK_S = 7 * 86_400
_DRAWN = 300  # looks that a chart shows; more would not be seen

_templates = Environment(loader=FileSystemLoader(_HERE / "templates"), autoescape=True, trim_blocks=True)


@router.get("/")
def home(request: Request, services: Shared) -> Response:
    """All experiments, newest first."""
    principal = _reader(request)
    if principal is None:
        return _to_login("/")
    rows = [(row, coverage(row)) for row in services.experiments.list()]
    return _page("home.html", principal, rows=rows)


@router.get("/experiments/{key}")
def experiment(key: str, request: Request, services: Shared) -> Response:
    """One experiment: its state in words, charts, tables, and what may be done now."""
    principal = _reader(request)
    if principal is None:
        return _to_login(f"/experiments/{key}")
    may_act = Scope.OPERATE in principal.scopes
    return _page("experiment.html", principal, **_content(key, services), may_act=may_act)


@router.get("/experiments/{key}/content")
def content(key: str, request: Request, services: Shared) -> Response:
    """What changes on the page, for its script to replace every few seconds."""
    principal = _reader(request)
    if principal is None:
        raise Problem(401, "unauthenticated", "sign in again")
    return _page("content.html", principal, **_content(key, services))


@router.get("/login")
def login_form(request: Request, to: str = "/") -> Response:
    """Asks for a token."""
    return _page("login.html", principal_of(request), to=_inside(to), wrong=False)


@router.post("/login")
def login(services: Shared, token: Annotated[str, Form()] = "", to: Annotated[str, Form()] = "/") -> Response:
    """Puts the token into a cookie that scripts cannot read and other sites cannot send."""
    if services.tokens.principal(token.strip()) is None:
        return _page("login.html", None, status=401, to=_inside(to), wrong=True)
    response = RedirectResponse(_inside(to), 303)
    response.set_cookie(COOKIE, token.strip(), max_age=_WEEK_S, httponly=True, samesite="strict")
    return response


@router.post("/logout")
def logout() -> Response:
    """Forgets the token."""
    response = RedirectResponse("/login", 303)
    response.delete_cookie(COOKIE)
    return response


@router.get("/static/{name}")
def static(name: str) -> Response:
    """The page's own style sheet and script."""
    if name not in _FILES:
        raise Problem(404, "not_found", f"no file is called {name!r}")
    return FileResponse(_HERE / "static" / name, media_type=_FILES[name], headers={"Cache-Control": "no-cache"})


def _content(key: str, services: Services) -> dict[str, Any]:
    row = services.experiments.get(key)
    decisions = services.experiments.decisions(key, thinned_to=_DRAWN)
    report = build_report(row, decisions)
    points = timeseries(row.spec, decisions)
    drawings = []
    for metric in row.spec.metrics:
        known = METRICS[metric.name]
        for arm in row.spec.treatments:
            title = f"{known.title} of {arm.arm} relative to {row.spec.control.arm} ({metric.role})"
            own = [point for point in points if (point["metric"], point["arm"]) == (metric.name, arm.arm)]
            svg = charts.confidence_sequence(own, title, increasing=known.increasing)
            drawings.append((title, Markup(svg)))  # noqa: S704 - charts escapes everything
    ctr = [(arm["arm"], arm["readings"]["ctr"]) for arm in report["arms"] if "ctr" in arm["readings"]]
    levels = Markup(charts.intervals(ctr, "click-through rate by arm"))  # noqa: S704 - same
    actions = [action.value for action, states in ALLOWED.items() if row.state in states]
    return {"report": report, "drawings": drawings, "levels": levels, "actions": actions, "window": row.spec}


def _page(template: str, principal: Principal | None, status: int = 200, **values: Any) -> HTMLResponse:
    text = _templates.get_template(template).render(principal=principal, **values)
    headers = {
        "Content-Security-Policy": _POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "same-origin",
    }
    return HTMLResponse(text, status, headers=headers)


def _reader(request: Request) -> Principal | None:
    principal = principal_of(request)
    return principal if principal is not None and Scope.READ in principal.scopes else None


def _to_login(wanted: str) -> Response:
    return RedirectResponse(f"/login?to={wanted}", 303)


def _inside(address: str) -> str:
    """Only places of this service: an open redirect would help phishers."""
    return address if address.startswith("/") and not address.startswith("//") and "\\" not in address else "/"


def percent(value: float | None, digits: int = 2, *, signed: bool = True) -> str:
    """A share in per cent, a dash where there is none."""
    return "–" if value is None else f"{100 * value:{'+' if signed else ''}.{digits}f} %"


def clock(time: str | datetime | None) -> str:
    """Date and time of day in UTC, without fractions."""
    if time is None:
        return "–"
    found = datetime.fromisoformat(time) if isinstance(time, str) else time
    return f"{found:%Y-%m-%d %H:%M:%S}"


_templates.filters["percent"] = percent
_templates.filters["clock"] = clock
