"""The page in a real browser, against the real service."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import uuid4

import httpx
import pytest

from tests.integration.conftest import Service
from tests.integration.test_api import SPEC

pytestmark = pytest.mark.integration

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")


@pytest.fixture(scope="module")
def key(service: Service, eventually: Callable[..., None]) -> Iterator[str]:
    """A running experiment with some looks behind it."""
    name = f"page-{uuid4().hex[:8]}"
    with service.http("operate") as http:
        headers = {"Content-Type": "application/yaml"}
        http.post("/v1/experiments", content=SPEC.format(key=name), headers=headers).raise_for_status()
        http.post(f"/v1/experiments/{name}/start", json={"reason": "a page to look at"}).raise_for_status()
        eventually(lambda: http.get(f"/v1/experiments/{name}/report").json()["looks"] > 1, "the gate looks")
        yield name
        http.post(f"/v1/experiments/{name}/stop", json={"reason": "the test is over"})


@contextmanager
def signed_in(service: Service, token: str) -> Iterator[httpx.Client]:
    """A client with the cookie that the login gives."""
    with httpx.Client(base_url=service.cluster.url, timeout=20, follow_redirects=True) as http:
        assert http.post("/login", data={"token": service.cluster.tokens[token]}).status_code == 200
        yield http


def test_nobody_sees_anything_without_a_token(service: Service, key: str) -> None:
    with service.http(None) as http:
        for path in ("/", f"/experiments/{key}"):
            answer = http.get(path)
            assert answer.status_code == 303
            assert answer.headers["location"].startswith("/login")
        assert http.get(f"/experiments/{key}/content").status_code == 401
        assert http.post("/login", data={"token": "made up"}).status_code == 401
        assert http.post("/login", data={"token": service.cluster.tokens["events"]}).status_code == 303
        assert http.get("/").status_code == 303, "a token that may only report events does not look"


def test_the_page_shows_state_reasons_and_charts_and_loads_nothing_from_outside(service: Service, key: str) -> None:
    with signed_in(service, "read") as http:
        page = http.get(f"/experiments/{key}")
        assert page.status_code == 200
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "<svg" in page.text
        assert "running" in page.text
        assert 'id="act"' not in page.text, "a reader cannot act"
        assert "http://" not in page.text.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in page.text
        docs = http.get("/docs")
        assert "https://" not in docs.text
        assert http.get("/docs/swagger-ui-bundle.js").status_code == 200
        assert http.get("/openapi.json").json()["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"


def test_another_sites_page_cannot_act_with_a_visitors_cookie(service: Service, key: str) -> None:
    with signed_in(service, "operate") as http:
        path, body = f"/v1/experiments/{key}/pause", {"reason": "not me"}
        assert http.post(path, json=body, headers={"Origin": "https://evil.example"}).status_code == 401
        assert http.post(path, json=body).status_code == 401, "a request without an origin comes from no page"


def test_the_login_never_leads_outside(service: Service) -> None:
    with httpx.Client(base_url=service.cluster.url) as http:
        token = service.cluster.tokens["read"]
        for target in ("https://evil.example", "//evil.example", "/\\evil.example"):
            answer = http.post("/login", data={"token": token, "to": target})
            assert answer.headers["location"] == "/"


@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver: apt install chromium-driver")
def test_a_person_signs_in_looks_and_pauses_with_a_reason(
    service: Service, key: str, eventually: Callable[..., None]
) -> None:
    from selenium import webdriver
    from selenium.webdriver.common.by import By

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    try:
        browser.get(f"{service.cluster.url}/experiments/{key}")
        browser.find_element(By.ID, "token").send_keys(service.cluster.tokens["operate"])
        browser.find_element(By.CSS_SELECTOR, "button.primary").click()
        eventually(lambda: key in browser.title, "the page of the experiment")
        assert browser.find_elements(By.CSS_SELECTOR, "svg.chart")
        visible = [
            button.text for button in browser.find_elements(By.CSS_SELECTOR, "#act button") if button.is_displayed()
        ]
        assert "pause" in visible
        assert "resume" not in visible
        browser.find_element(By.ID, "reason").send_keys("looked odd <script>alert(1)</script>")
        next(b for b in browser.find_elements(By.CSS_SELECTOR, "#act button") if b.text == "pause").click()
        eventually(lambda: "paused" in browser.find_element(By.CSS_SELECTOR, "#live h1").text, "the page says paused")
        assert "looked odd <script>alert(1)</script>" in browser.find_element(By.ID, "live").text
        assert not [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    finally:
        browser.quit()
    with service.http("operate") as http:
        last = http.get(f"/v1/experiments/{key}/decisions").json()["decisions"]
        assert ("operate", "pause") in {(line["actor"], line["verdict"]) for line in last}
        assert http.post(f"/v1/experiments/{key}/resume", json={"reason": "it was fine"}).status_code == 200
