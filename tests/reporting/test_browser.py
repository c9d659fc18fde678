"""The report in a real browser: it asks for nothing, runs nothing foreign, sorts, filters, opens, and fits a phone."""

from __future__ import annotations

import pytest

from neurollm.reporting import build_report

ROWS = "tbody:not([hidden]) > tr:first-child"


@pytest.fixture
def open_page(browser):
    """Open a report; afterwards nothing but the file may have been asked for and no error seen."""
    contexts, requests, problems = [], [], []

    def opener(path, **options):
        context = browser.new_context(viewport=options.pop("viewport", {"width": 1280, "height": 900}), **options)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.goto(path.as_uri())
        opener.path = path
        return page

    yield opener
    for context in contexts:
        context.close()
    assert {url for url in requests if not url.startswith("data:")} == {opener.path.as_uri()}
    assert problems == []


@pytest.fixture
def table(open_page, finished):
    page = open_page(finished / "report.html")
    return page.locator(".features").first


def column(table, number: int) -> list[float]:
    """The numbers of a column, top to bottom (`number` counts from 1)."""
    texts = table.locator(f"{ROWS} > :nth-child({number})").all_inner_texts()
    clean = [text.replace("−", "-").replace("\u202f", "").replace("<.001", ".0005").split()[0] for text in texts]
    return [float(text) for text in clean]


def test_sorting_by_size_and_by_p(table):
    head = table.locator("th[data-key=effect_size]")
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    sizes = column(table, 3)
    assert sizes == sorted(sizes, reverse=True) and len(sizes) == 50
    head.get_by_role("button").press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert column(table, 3) == sorted(sizes)
    p = table.locator("th[data-key=p]")
    p.get_by_role("button").click()
    assert p.get_attribute("aria-sort") == "ascending" and head.get_attribute("aria-sort") is None
    values = column(table, 9)
    assert values == sorted(values)


def test_filtering_by_text_and_significance(table):
    found = table.locator("tbody.significant").count()
    assert 0 < found < 50
    table.get_by_label("only").check()
    assert table.locator(ROWS).count() == found
    assert table.locator("output").inner_text() == f"{found} of 50 shown"
    table.get_by_label("only").uncheck()
    feature = table.locator(f"{ROWS} summary").nth(7).inner_text()
    table.get_by_label("Filter").fill(feature)
    assert feature in table.locator(f"{ROWS} summary").all_inner_texts()
    table.get_by_label("Filter").fill("no such word")
    assert table.locator(ROWS).count() == 0
    table.get_by_label("Filter").fill("")
    assert table.locator(ROWS).count() == 50


def test_a_row_opens_its_contexts(table):
    more = table.locator("tbody").nth(1).locator("tr.more")
    assert not more.is_visible()
    table.locator("summary").nth(1).press("Enter")
    assert more.is_visible()
    hot = more.locator("b.a9").first
    assert float(hot.get_attribute("title")) > 0
    assert hot.evaluate("e => getComputedStyle(e).backgroundColor").startswith("rgba(232, 119, 20, 0.62")
    assert "resting state" in more.inner_text() and "stimuli" in more.inner_text()
    table.locator("tbody").nth(1).locator("td").nth(3).click()
    assert not more.is_visible()


def test_copying_the_table_and_the_methods(open_page, finished):
    page = open_page(finished / "report.html", permissions=["clipboard-read", "clipboard-write"])
    page.locator("[data-table]").first.click()
    page.get_by_role("button", name="Copied").wait_for()
    lines = page.evaluate("navigator.clipboard.readText()").split("\n")
    assert len(lines) == 51 and lines[0].startswith("feature\teffect")
    page.get_by_role("button", name="Copy this paragraph").click()
    page.get_by_role("button", name="Copied").first.wait_for()


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_overflows(open_page, finished, width):
    page = open_page(finished / "report.html", viewport={"width": width, "height": 844})
    page.locator("summary").last.click()
    page.locator(".toggle summary").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = page.evaluate("Math.max(...[...document.querySelectorAll('.inner')].map((e) => e.offsetWidth))")
    assert wide <= width


def test_print_keeps_the_column_names(open_page, finished):
    page = open_page(finished / "report.html")
    page.emulate_media(media="print")
    assert page.locator("th[data-key=p]").first.inner_text() == "p"
    assert not page.locator(".tools").first.is_visible()


def test_it_reads_without_javascript(open_page, finished):
    page = open_page(finished / "report.html", java_script_enabled=False)
    assert not page.locator(".tools").first.is_visible()
    more = page.locator("tr.more").first
    page.locator(".toggle summary").first.click()
    assert more.is_visible()


@pytest.mark.parametrize("width", [1280, 390])
def test_hostile_text_runs_nothing_and_fits(open_page, tmp_path, make_study, hostile, width):
    contrasts = {hostile: "success - failure"}
    folder = make_study(tmp_path / "study", hostile=hostile + "w" * 90, n_perm=100, contrasts=contrasts)
    page = open_page(build_report(folder), viewport={"width": width, "height": 844})
    assert page.evaluate("window.hacked") is None
    assert page.locator("h1").inner_text().startswith("Success and failure</script><script>")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_contrast_meets_aa(open_page, finished, scheme):
    page = open_page(finished / "report.html", color_scheme=scheme)
    page.locator(".toggle summary").first.click()
    low = page.evaluate(CONTRAST)
    assert low == []


CONTRAST = """() => {
  const parse = (c) => { const v = c.match(/[\\d.]+/g).map(Number); return v.length < 4 ? [...v, 1] : v; };
  const over = (top, under) => top.slice(0, 3).map((v, i) => v * top[3] + under[i] * (1 - top[3]));
  const linear = (v) => v / 255 <= .03928 ? v / 255 / 12.92 : ((v / 255 + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
  const back = (e) => {
    const layers = [];
    for (; e; e = e.parentElement) layers.unshift(parse(getComputedStyle(e).backgroundColor));
    return layers.reduce((under, layer) => over(layer, under), [255, 255, 255]);
  };
  const low = [];
  for (const e of document.querySelectorAll("body *")) {
    if (!e.checkVisibility() || ![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) continue;
    const style = getComputedStyle(e), ground = back(e), svg = e.namespaceURI.endsWith("svg");
    const ink = light(over(parse(svg ? style.fill : style.color), ground)), paper = light(ground);
    const ratio = (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05);
    if (ratio < 4.5) low.push(`${e.tagName}.${e.className} ${e.textContent.slice(0, 30)} ${ratio.toFixed(2)}`);
  }
  return low.slice(0, 10);
}"""
