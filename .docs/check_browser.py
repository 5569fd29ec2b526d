"""Open a built site in headless Chromium: `python .docs/check_browser.py FOLDER [PICTURES]`.

The search finds what people search for, equations are set, and pages load nothing from elsewhere, report no error, and are no wider
than the screen of a desktop or a phone. With PICTURES, a folder, it gets a screenshot of each page at both widths. Each fault is
a line, and makes the status 1.
"""

import sys
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

WORDS = {
    "lengths": "guides/sequences",
    "DropConnect": "guides/sequences",
    "variational dropout": "guides/sequences",
    "torch": "guides/moving",
    "teacher forcing": "guides/glossary",
    "LSTMCell": "api/jaxrnn.cells",
}
"""What people search for, and a page that should be found."""

PAGES = [
    "index",
    "guides/sequences",
    "guides/speed",
    "guides/errors",
    "api/jaxrnn",
    "api/jaxrnn.cells",
    "notebooks/01_cells_and_gates",
]
WIDTHS = {"desktop": (1440, 900), "phone": (390, 844)}
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def browser(profile: str) -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    return webdriver.Chrome(options, webdriver.ChromeService("/usr/bin/chromedriver"))


def not_found(driver, address: str) -> Iterator[str]:
    """Words that the search does not find where it should."""
    for word, page in WORDS.items():
        driver.get(f"{address}/search.html?q={word.replace(' ', '+')}")
        WebDriverWait(driver, 30).until(lambda d: "found" in d.find_element(By.CSS_SELECTOR, ".search-summary").text.lower())
        results = [a.get_attribute("href") for a in driver.find_elements(By.CSS_SELECTOR, "#search-results li a")]
        if not any(f"/{page}.html" in result for result in results):
            yield f"the search for {word!r} finds {len(results)} pages, {page} not among them"


def ugly(driver, address: str, pictures: Path | None) -> Iterator[str]:
    """Faults of pages as a browser shows them, at each width."""
    for screen, (width, height) in WIDTHS.items():
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": screen == "phone"}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)  # a window is at least 500 wide; a screen is not
        for page in PAGES:
            driver.get(f"{address}/{page}.html")
            where = f"{page}, {screen}"
            WebDriverWait(driver, 30).until(lambda d: not d.find_elements(By.CSS_SELECTOR, "div.math:not(:has(mjx-container))"))
            for error in driver.find_elements(By.CSS_SELECTOR, "mjx-merror"):
                yield f"{where}: an equation that cannot be set: {error.get_attribute('title') or error.text}"
            if (shown := driver.execute_script("return document.documentElement.scrollWidth")) > width:
                yield f"{where}: {shown} wide, on a screen of {width}"
            loaded = driver.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
            yield from (f"{where}: loads {name}" for name in loaded if not name.startswith((address, "data:")))
            yield from (f"{where}: {entry['message']}" for entry in driver.get_log("browser") if entry["level"] == "SEVERE")
            if pictures is not None:
                pictures.mkdir(parents=True, exist_ok=True)
                driver.save_screenshot(str(pictures / f"{page.replace('/', '_')}_{screen}.png"))


def main(site: str, pictures: str | None = None) -> int:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    with tempfile.TemporaryDirectory() as profile:
        driver = browser(profile)
        try:
            found = [*not_found(driver, address), *ugly(driver, address, pictures and Path(pictures))]
        finally:
            driver.quit()
    print("\n".join(found) or "search, equations and widths are right")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
