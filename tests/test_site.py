"""The built book, in a real browser: complete, offline, readable in light and dark, on a desk and on a phone.

HDLIB_SITE names a built site to test instead of building one. HDLIB_NO_BROWSER=1 leaves the browser out; without
it, a machine on which no browser starts fails these tests.
"""

import http.server
import os
import shutil
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import nbformat
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Error, sync_playwright
from test_pages import no_numbers

from hdlib.report import pages

ROOT = Path(__file__).parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PAGES = [line.split("file:")[1].strip() for line in (ROOT / "_toc.yml").read_text().splitlines() if "file:" in line]
PAGES.append("book/introduction")
# faults of the theme's own frame, not of a page
THEME_FAULTS = {"region"}
# a table's third row and those after it look as the first two; cells with markup of their own may not
ALIKE = {"exclude": ["tbody tr:nth-child(n+3) td:not(:has(*))"]}
UNFADED = "*, ::before, ::after { transition: none !important }"  # colours are at once those of the other theme
SCREENS = {
    "desktop": dict(width=1280, height=900),
    "phone": dict(width=390, height=844),
    "narrow phone": dict(width=320, height=640),
}
FRAMES = "[...document.querySelectorAll('.hd-scroll, .pst-scrollable-table-container')]"


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The folder of the site, built from the recorded runs by the same steps as `make book`, in a copy."""
    if named := os.environ.get("HDLIB_SITE"):
        assert (Path(named) / "index.html").is_file(), f"HDLIB_SITE names {named!r}, which has no index.html."
        return Path(named).resolve()
    copy = tmp_path_factory.mktemp("book") / "project"
    built = shutil.ignore_patterns(".*", "_build", "data", "*.ipynb", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=built)
    return pages.build(copy, say=lambda *_, **__: None).parent


@pytest.fixture(scope="session")
def address(site):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="session")
def browser():
    if os.environ.get("HDLIB_NO_BROWSER") == "1":
        pytest.skip("THE BROWSER TESTS DID NOT RUN: HDLIB_NO_BROWSER=1 is set.")
    flags = ["--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        flags.append("--no-sandbox")
    with sync_playwright() as playwright:
        for path in (*filter(None, map(shutil.which, BROWSERS)), None):  # None: playwright's own
            try:
                browser = playwright.chromium.launch(executable_path=path, args=flags)
            except Error:
                continue
            yield browser
            browser.close()
            return
        pytest.fail("NO CHROMIUM STARTS ON THIS MACHINE: install chromium or google-chrome.", pytrace=False)


def test_every_page_of_the_contents_is_built(site):
    for page in PAGES:
        assert (site / f"{page}.html").is_file(), page
    assert (site / "index.html").is_file()


@pytest.fixture(scope="session")
def visited(address, browser):
    """What is wrong with the pages; each is loaded once and seen on every screen, in light and then in dark.

    Of accessibility, the second theme is asked for its contrasts alone: in all else it is the first. What is around a
    page is the same on all, and is looked at once there.
    """
    context = browser.new_context(viewport=SCREENS["desktop"])
    works, accessible = [], []
    page = context.new_page()
    page.on("request", lambda r: r.url.startswith((address, "data:")) or works.append(f"asks for {r.url}"))
    page.on("console", lambda m: m.type == "error" and works.append(f"console: {m.text}"))
    page.on("pageerror", lambda e: works.append(f"script error: {e}"))
    page.on("response", lambda r: r.status >= 400 and works.append(f"{r.status} for {r.url}"))
    for name in PAGES:
        for scheme, rules in (("light", {}), ("dark", {"runOnly": ["color-contrast"]})):
            page.emulate_media(color_scheme=scheme)
            if scheme == "light":
                page.goto(f"{address}/{name}.html")
                page.add_style_tag(content=UNFADED)
            load_figures(page)
            if scheme == "light":
                page.wait_for_timeout(500)  # the theme looks for what scrolls 0.3 s after the layout
            before = len(works)
            where = ALIKE | ({"include": ["article"]} if scheme == "dark" and name != PAGES[0] else {})
            found = Axe().run(page, where, {"resultTypes": ["violations"]} | rules).response["violations"]
            for violation in found:
                if violation["id"] not in THEME_FAULTS:
                    places = [node["html"][:100] for node in violation["nodes"][:3]]
                    accessible.append(f"{name} in {scheme}: {violation['id']}: {places}")
            del works[before:]  # the rules ask for style sheets of their own
            for screen, size in SCREENS.items():
                page.set_viewport_size(size)
                works += faults_of(page, f"{name} on a {screen}", scheme)
            page.set_viewport_size(SCREENS["desktop"])
    context.close()
    return dict(works=works, accessible=accessible)


def load_figures(page):
    """Load the figures that a reader would have to scroll to, and wait for them."""
    page.evaluate("() => { for (const image of document.images) image.loading = 'eager' }")
    page.wait_for_function(
        "() => [...document.images].filter(i => i.offsetWidth > 0).every(i => i.complete && i.naturalWidth > 0)",
        timeout=120_000,  # milliseconds: a busy machine is slow, and that is no fault of a page
    )


def faults_of(page, name, scheme):
    """Return what is wrong with the layout of a page that is open."""
    found = page.evaluate(
        """() => ({
            theme: document.documentElement.dataset.theme,
            wide: document.documentElement.scrollWidth - window.innerWidth,
            nameless: [...document.querySelectorAll('article img')].filter(i => !i.alt.trim()).length,
            figures: [...document.querySelectorAll('figure.hd-frame')].map(f =>
                [...f.querySelectorAll('img')].filter(i => i.offsetWidth > 0 && i.naturalWidth > 0)
                    .map(i => i.className)),
            grounds: [...document.querySelectorAll('figure.hd-frame, .hd-scroll')].map(f => {
                for (let e = f; e; e = e.parentElement) {
                    const [r, g, b, a] = getComputedStyle(e).backgroundColor.match(/[0-9.]+/g).map(Number);
                    if (a !== 0) return (r + g + b) / 3;
                }
                return 255;
            }),
            captions: [...document.querySelectorAll('figcaption')].filter(c => c.offsetHeight == 0).length,
        })"""
    )
    faults = []
    if found["theme"] != scheme:
        faults.append(f"{name} is {found['theme']} and not {scheme}")
    if found["wide"] > 0:
        faults.append(f"{name} is {found['wide']} px wider than the screen")
    if found["nameless"]:
        faults.append(f"{name} has {found['nameless']} images without alternative text")
    if found["captions"]:
        faults.append(f"{name} hides {found['captions']} captions")
    if any((ground > 128) != (scheme == "light") for ground in found["grounds"]):
        faults.append(f"{name} puts a figure or table on a ground of the other theme")
    for shown in found["figures"]:
        if len(shown) != 1 or f"hd-{scheme}" not in shown[0]:
            faults.append(f"{name} shows {shown} in {scheme}")
    return faults


def test_every_page_works_offline_on_a_desk_and_on_a_phone(visited):
    assert not visited["works"], "\n".join(visited["works"])


def test_a_page_that_is_opened_in_the_dark_is_dark(address, browser):
    page = browser.new_page(viewport=SCREENS["desktop"], color_scheme="dark")
    page.goto(f"{address}/book/introduction.html", wait_until="networkidle")
    load_figures(page)
    assert not faults_of(page, "introduction", "dark")
    page.close()


def test_pages_are_accessible(visited):
    assert not visited["accessible"], "\n".join(visited["accessible"])


def test_on_paper_nothing_is_cut_off_and_the_ground_is_white(address, browser):
    page = browser.new_page(viewport=dict(width=700, height=1000), color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    for name in ("claims", "guide", "online-tuning"):
        page.goto(f"{address}/book/{name}.html", wait_until="networkidle")
        page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        cut = page.evaluate(
            """() => [...document.querySelectorAll('article pre, .hd-scroll, article table.table')]
                .filter(e => e.offsetWidth > 0 && e.scrollWidth > e.clientWidth + 1)
                .map(e => e.innerText.slice(0, 60))"""
        )
        assert not cut, f"{name}: {cut}"
        assert page.evaluate("document.documentElement.dataset.theme") == "light"
    page.close()


def test_figures_come_with_their_data(site, address, browser):
    page = browser.new_page()
    page.goto(f"{address}/book/tuning-logreg.html")
    with page.expect_download() as download:
        page.get_by_text("Data of this figure (CSV)").first.click()
    lines = Path(download.value.path()).read_text().splitlines()
    assert lines[0].startswith("model,method,alpha0") and len(lines) > 100
    page.close()


def test_the_ledger_shows_its_verdicts_without_scrolling(address, browser):
    page = browser.new_page(viewport=dict(width=1280, height=900))
    page.goto(f"{address}/book/claims.html")
    frame, verdict = (
        page.locator(".hd-scroll").first.bounding_box(),
        page.get_by_role("cell", name="reproduced", exact=True).first,
    )
    assert verdict.bounding_box()["x"] + verdict.bounding_box()["width"] <= frame["x"] + frame["width"]
    page.close()


def test_what_scrolls_says_so_and_nothing_else_does(address, browser):
    page = browser.new_page(viewport=dict(width=390, height=800))
    page.goto(f"{address}/book/claims.html", wait_until="networkidle")
    says = "getComputedStyle(f, '::before').content.includes('Scroll sideways')"
    page.wait_for_function(f"() => {FRAMES}.every(f => {says} == f.scrollWidth > f.clientWidth + 1)")
    assert page.evaluate(f"() => {FRAMES}.some(f => {says})")
    page.set_viewport_size(dict(width=2500, height=800))
    page.wait_for_function(f"() => !{FRAMES}.some(f => {says})")
    page.close()


@pytest.mark.parametrize("name", ["claims", "guide", "vgg"])  # tables of code, of prose, and figures
def test_what_scrolls_can_be_reached_with_the_keyboard_and_has_a_name(address, browser, name):
    page = browser.new_page(viewport=SCREENS["phone"])
    page.goto(f"{address}/book/{name}.html", wait_until="networkidle")
    page.wait_for_function(f"() => {FRAMES}.some(f => f.hasAttribute('data-more'))")
    scrolls = f"{FRAMES}.filter(f => f.scrollWidth > f.clientWidth + 1)"
    found = page.evaluate(f"() => {scrolls}.map(f => [f.tabIndex, f.getAttribute('role'), f.ariaLabel?.length > 5])")
    assert found and all(one == [0, "region", True] for one in found), found
    still = page.evaluate(f"() => {FRAMES}.filter(f => !{scrolls}.includes(f)).map(f => f.tabIndex)")
    assert all(index == -1 for index in still)
    page.close()


def test_a_page_is_light_and_asks_for_the_figures_of_its_theme_alone(site, address, browser):
    heavy = {path.stem: path.stat().st_size for path in (site / "book").glob("*.html") if path.stat().st_size > 300e3}
    assert not heavy
    page, asked = browser.new_page(viewport=SCREENS["phone"]), []
    page.on("request", lambda r: r.url.endswith("figure.svg") and asked.append(r.url))
    page.goto(f"{address}/book/online-tuning-logreg.html", wait_until="networkidle")
    first, figures = len(asked), page.locator("figure.hd-frame").count()
    assert 0 <= first < figures  # those below come when they are scrolled to
    for place in page.locator("figure.hd-frame").all():
        place.scroll_into_view_if_needed()
        page.wait_for_timeout(200)
    page.wait_for_load_state("networkidle")
    assert len(asked) == len(set(asked)) == figures
    page.close()


def test_what_is_printed_has_the_figures_that_were_not_scrolled_to(address, browser):
    page = browser.new_page(viewport=SCREENS["phone"])
    page.goto(f"{address}/book/online-tuning-logreg.html", wait_until="networkidle")
    shown = "[...document.querySelectorAll('img.hd-light')]"
    assert page.evaluate(f"() => {shown}.some(i => !i.complete || !i.naturalWidth)")
    page.pdf()
    page.wait_for_function(f"() => {shown}.every(i => i.complete && i.naturalWidth > 0)")
    page.close()


def test_what_a_page_of_several_does_not_show_is_not_announced_on_it(site):
    sections = {page: (site / "book" / f"{page}.html").read_text() for page in ("vgg", "vgg-variants")}
    assert ["<h2>With no β at all" in sections[page] for page in sections] == [False, True]
    assert ["<h2>How large may β be?" in sections[page] for page in sections] == [True, False]


def test_links_and_anchors_lead_somewhere(site):
    lychee = Path(sys.executable).parent / "lychee"
    command = [lychee, "--offline", "--include-fragments", "--no-progress", "--root-dir", site]
    command += ["--exclude-path", "_static", *site.glob("*.html"), *site.glob("book/*.html")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_notebook_of_a_page_can_be_downloaded(site, address, browser):
    page = browser.new_page()
    page.goto(f"{address}/book/tuning-logreg.html")
    link = page.locator(".btn-download-source-button").first
    assert link.get_attribute("href").endswith("tuning-logreg.ipynb")
    with page.expect_download() as download:
        link.evaluate("link => link.click()")  # it is in a menu
    notebook = nbformat.read(download.value.path(), as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.hdlib.effective.model == "logreg"
    page.close()


def test_the_site_opens_from_its_folder_without_a_server(site, browser):
    faults = []
    page = browser.new_page()
    page.on("request", lambda r: r.url.startswith(("file:", "data:")) or faults.append(r.url))
    page.on("console", lambda m: m.type == "error" and faults.append(m.text))
    page.goto((site / "index.html").as_uri(), wait_until="networkidle")
    page.wait_for_url("**/book/introduction.html")
    page.goto((site / "book" / "method.html").as_uri(), wait_until="networkidle")
    assert page.locator("mjx-container").count() > 5
    page.close()
    assert not faults, "\n".join(faults)


def test_no_page_shows_what_is_no_number(site):
    executed = sorted((site / "_sources" / "book").glob("*.ipynb"))
    assert len(executed) == len(pages.read_pages(ROOT))
    assert {path.stem: found for path in executed if (found := no_numbers(path))} == {}


def test_no_page_names_a_folder_of_the_machine_that_made_it(site):
    folders = [str(folder) for folder in (ROOT, sys.prefix, site.parents[1])]
    files = [path for path in site.rglob("*") if path.suffix in {".html", ".ipynb", ".js"} and path.is_file()]
    named = {str(path.relative_to(site)): f for path in files for f in folders if f in path.read_text(errors="replace")}
    assert not named


def test_every_executed_page_is_in_the_contents():
    listed = {f"book/{page.name}" for page in pages.read_pages(ROOT)}
    assert listed <= set(PAGES)
