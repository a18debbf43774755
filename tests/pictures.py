"""README's pictures, of a sweep that has ended: `python -m tests.pictures runs/NAME`."""

import argparse
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser

from tests.board import serve
from tests.browser import chromium, visit
from tests.conftest import REPOSITORY
from tests.processes import wait_for
from tests.results import printed_link

IMAGES = REPOSITORY / ".images"
CHART = 430  # pixels of its height


def comparison(browser: Browser, root: Path, picture: Path) -> None:
    """TensorBoard as the printed link opens it, with room for what matters."""
    with serve(root / "tensorboard") as board:
        board.wait_for_all_of(root)
        with visit(browser, board.address + printed_link(root), picture, height=800) as page:
            # As if the pane of settings had been closed and the list of runs been widened to their names.
            settings = "{sideBarWidthInPercent: 28, timeSeriesSettingsPaneOpened: false}"
            page.evaluate(f"localStorage.setItem('_tb_global_settings', JSON.stringify({settings}))")
            page.reload()
            card = page.locator("metrics-pinned-view scalar-card")
            card.get_by_role("button", name="Toggle full size mode").click()
            card.locator(".chart-container").evaluate(f"chart => chart.style.height = '{CHART}px'")
            card.get_by_role("button", name="More line chart options").click()
            page.get_by_role("menuitem", name="Toggle Y-axis log scale").click()
            page.get_by_role("menu").wait_for(state="hidden")
            card.locator("tb-data-table-content-row").first.wait_for()
            wait_for(lambda: card.locator("canvas").evaluate("canvas => canvas.clientHeight") > CHART - 50)
            page.mouse.move(0, 0)


def report(browser: Browser, root: Path, picture: Path) -> None:
    """Its first screenful: from the verdict to the learning curves."""
    with visit(browser, (root / "report.html").resolve().as_uri(), picture) as page:
        page.locator(".main-svg").first.wait_for()
        whole, curves = (page.locator(part).first.bounding_box() for part in ("body", "section"))
        assert whole
        assert curves
    bottom = curves["y"] + curves["height"]
    Image.open(picture).crop((int(whole["x"]), 0, int(whole["x"] + whole["width"]), int(bottom))).save(picture)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.pictures", description=__doc__)
    parser.add_argument("sweep", type=Path, help="runs/NAME")
    root = parser.parse_args().sweep
    with chromium() as browser:
        for name, draw in {"tensorboard.png": comparison, "report.png": report}.items():
            picture = IMAGES / name
            draw(browser, root, picture)
            # Lines and letters have few colours: a third of the bytes.
            Image.open(picture).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(picture, optimize=True)
            print(f"{picture}: {picture.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
