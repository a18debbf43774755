"""Headless Chromium at a page, and what no page may do there: report an error, or ask anyone but where it came from."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Browser, ConsoleMessage, Page, Request, Response, expect, sync_playwright

_PATIENCE = 60_000  # milliseconds; a page that is busy drawing beside other work may need some
_BANNERS = "alert-display-snackbar, .warning-message"  # TensorBoard's: at the foot, and in place of all content

expect.set_options(timeout=_PATIENCE)


@contextmanager
def chromium() -> Iterator[Browser]:
    """The system's own, as playwright's downloads come from elsewhere. Without its sandbox: all pages are ours."""
    path = shutil.which("chromium")
    assert path, "these tests need Chromium: `apt-get install --no-install-recommends chromium`"
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, chromium_sandbox=False)
        yield browser
        browser.close()


@contextmanager
def visit(browser: Browser, address: str, picture: Path, height: int = 900) -> Iterator[Page]:
    """A page for as long as the block lasts; after it a picture is taken, and there must have been no complaint."""
    complaints: list[str] = []
    own = address if address.startswith("file:") else "{0.scheme}://{0.netloc}/".format(urlsplit(address))

    def heard(message: ConsoleMessage) -> None:
        if message.type == "error":
            complaints.append(f"console: {message.text}")

    def asked(request: Request) -> None:
        if not request.url.startswith((own, "data:", "blob:")):
            complaints.append(f"asked elsewhere: {request.url}")

    def answered(response: Response) -> None:
        if not response.ok:
            complaints.append(f"answered with {response.status}: {response.url}")

    page = browser.new_page(viewport={"width": 1400, "height": height})
    page.set_default_timeout(_PATIENCE)
    page.on("console", heard)
    page.on("pageerror", lambda error: complaints.append(f"uncaught: {error}"))
    page.on("request", asked)
    page.on("response", answered)
    page.on("websocket", lambda socket: complaints.append(f"opened a socket: {socket.url}"))
    try:
        page.goto(address)
        yield page
        complaints += [f"banner: {text}" for text in page.locator(_BANNERS).all_inner_texts()]
        assert not complaints, "\n".join(complaints)
    finally:
        page.screenshot(path=picture, full_page=True)
        page.close()
