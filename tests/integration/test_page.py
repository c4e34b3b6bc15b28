"""The page in a real browser: complete, sortable, offline, and no wider than a phone."""

import re
import shutil
import subprocess

import pytest
from synthetic import write_report_of

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def page(tmp_path_factory, root):
    return write_report_of(tmp_path_factory.mktemp("report"), root)


def browse(page, *arguments, fragment="", tmp_path="/tmp"):
    if BROWSER is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    command += ["--virtual-time-budget=3000", "--enable-logging=stderr", *arguments, f"file://{page}{fragment}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_it_is_self_contained(page):
    text = page.read_text()
    assert len(text) < 2_000_000
    outside = re.findall(r"""(?:src|href)=["'](?!data:|#)([^"']+)""", text) + re.findall(r"url\((?!#)([^)]+)\)", text)
    assert [link for link in outside if "${" not in link] == []
    assert len(re.findall(r'<tr><th scope="row">\w+</th><td>[\w ]+</td><td>(?:yes|not yet)', text)) == 53


def test_scripts_run_and_a_link_sorts(page, tmp_path):
    done = browse(page, "--dump-dom", fragment="#sort=board-spec_mix_speed:2:descending", tmp_path=tmp_path)
    assert not re.findall(r"CONSOLE.*(?:Error|error)", done.stderr), done.stderr
    dom = done.stdout
    assert 'aria-sort="descending"' in dom
    board = dom[dom.index('id="board-spec_mix_speed"') :]
    rows = re.findall(r"<tr><th.*?</tr>", board[: board.index("</table>")], re.S)
    first = [float(re.search(r'data-value="([^"]+)"', row).group(1)) for row in rows if "data-value" in row]
    assert first == sorted(first, reverse=True) and len(first) > 1
    assert dom.count("<svg") >= 2 and "<circle" in dom
    assert re.search(r'<output id="shown">\d+ claims', dom)


def test_it_fits_a_phone(page, tmp_path):
    """The document is no wider than the window: only tables scroll, each in its own frame."""
    wide = tmp_path / "wide.html"
    probe = "<script>document.title = 'width ' + document.documentElement.scrollWidth + ' of ' + innerWidth</script>"
    wide.write_text(page.read_text().replace("</body>", probe + "</body>"))
    done = browse(wide, "--window-size=500,900", "--dump-dom", tmp_path=tmp_path)
    width, window = map(int, re.search(r"<title>width (\d+) of (\d+)</title>", done.stdout).groups())
    assert width <= window
