"""The pages as a person sees them: in a real browser, under the strict content policy, without an error."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from service.client import Client, Experiment
from tests.conftest import RunningStack
from tests.harness.experiments import SHORT, finish, submit

pytestmark = [pytest.mark.browser, pytest.mark.ray]

IS_DRAWN = """() => {
    const canvas = document.querySelector(".curve canvas");
    return canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.some((value) => value > 0);
}"""
NAME = "<script>alert(1)</script> & co"


@pytest.fixture(scope="module")
def finished(stack: RunningStack) -> Experiment:
    with Client(stack.url) as client:
        experiment = submit(client, NAME, SHORT)
        return finish(client, experiment["id"], epochs=5)


@pytest.fixture
def page() -> Iterator[Page]:
    """Return a page that fails the test when the browser complains."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium",
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"],
        )
        opened = browser.new_page()
        complaints: list[str] = []
        opened.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
        yield opened
        if folder := os.environ.get("SCREENSHOTS"):
            opened.screenshot(path=Path(folder) / f"{len(opened.content())}.png", full_page=True)
        browser.close()
        assert complaints == []


expect.set_options(timeout=60_000)


def test_the_list_leads_to_an_experiment_with_its_curves(stack: RunningStack, page: Page, finished: Experiment) -> None:
    page.goto(f"{stack.url}/ui")
    page.get_by_role("link", name=NAME).first.click()
    expect(page.locator("#state")).to_have_text("succeeded")
    expect(page.get_by_role("heading", name=NAME)).to_be_visible()
    page.wait_for_function(IS_DRAWN)
    expect(page.get_by_role("cell", name="t0000")).to_be_visible()
    assert finished["id"] in page.url


def test_the_documentation_needs_no_network(stack: RunningStack, page: Page) -> None:
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.goto(f"{stack.url}/docs")
    expect(page.get_by_text("/experiments", exact=True).first).to_be_visible()
    assert all(url.startswith((stack.url, "data:")) for url in requested)
