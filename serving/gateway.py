"""The gateway's HTTP API, put together from its routers. Everything behind it comes in as `Services`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI

from serving import problems
from serving.body_limit import BodyLimit
from serving.routes import actions, dashboard, docs, events, experiments, health, recommend, report, variants
from serving.services import Services

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]

DESCRIPTION = """A/B tests and canary rollouts of recommenders: route live traffic, report what users did with it,
inspect experiments, promote or roll back."""


def build_app(services: Services, lifespan: Lifespan | None = None) -> FastAPI:
    """The application of one gateway replica."""
    app = FastAPI(
        title="Crossfade",
        version=services.code_version,
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.services = services
    problems.install(app)
    for module in (recommend, events, experiments, actions, report, variants, health, dashboard):
        app.include_router(module.router)
    docs.install_docs(app)
    limits = {"/v1/events": services.settings.events_max_bytes}
    app.add_middleware(BodyLimit, limits=limits, default=services.settings.request_max_bytes)
    return app
