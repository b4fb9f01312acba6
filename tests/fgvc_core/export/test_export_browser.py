"""One page holds the model, and a dropped picture is classified with no network."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fgvc_core.data.files import FileSource
from fgvc_core.data.transforms import square
from fgvc_core.errors import DataError
from fgvc_core.export import browser
from fgvc_core.export.browser import find_runtime, make_page
from tests.browser import Browser, needs_chromium
from tests.fgvc_core.data.test_reader import write_profiled

from .browser_lab import chromium, drop
from .conftest import noise


def fake_runtime(folder: Path, version: str | None = "9.9.9") -> Path:
    (folder / "dist").mkdir(parents=True)
    (folder / "dist" / "ort.wasm.bundle.min.mjs").write_text("export const env = {};")
    (folder / "dist" / "ort-wasm-simd-threaded.wasm").write_bytes(b"\0asm")
    if version:
        (folder / "package.json").write_text(json.dumps({"version": version}))
    return folder


def test_the_page_names_no_other_address_and_forbids_itself_every_connection(trained, tmp_path):
    page = make_page(trained, b"graph", fake_runtime(tmp_path / "onnxruntime-web"))
    assert not re.search(r"(?:src|href|action)\s*=\s*[\"']?\s*(?:https?:)?//", page)
    assert "https://" not in page
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert "default-src 'none'" in policy
    assert "connect-src" not in policy
    assert "http" not in policy
    assert "@@" not in page
    assert "onnxruntime-web 9.9.9" in page


def test_a_class_name_cannot_break_out_of_the_page(trained, tmp_path):
    page = make_page(trained, b"graph", fake_runtime(tmp_path))
    assert "</script><b>" in trained.class_names
    assert "</script><b>" not in page
    (facts,) = re.findall(r'id="facts">(.*?)</script>', page, re.S)
    assert json.loads(facts)["class_names"] == list(trained.class_names)


def test_the_runtime_is_found_in_a_package_its_dist_and_node_modules(tmp_path):
    package = fake_runtime(tmp_path / "onnxruntime-web", None)
    for place in (tmp_path, package, package / "dist"):
        assert find_runtime(place)[1] == "unknown"
    with pytest.raises(DataError, match="no onnxruntime-web") as caught:
        find_runtime(tmp_path / "elsewhere")
    assert "npm install onnxruntime-web" in caught.value.remedy


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    """onnxruntime-web: a folder that is named, or fetched from the npm registry."""
    named = os.environ.get("FIELDMARK_ORT_WEB")
    if named:
        return Path(named)
    if shutil.which("npm") is None:
        pytest.skip("npm is not here to fetch onnxruntime-web")
    folder = tmp_path_factory.mktemp("npm")
    install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "onnxruntime-web"]
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"npm could not fetch onnxruntime-web: {done.stderr[-200:]}")
    return folder / "node_modules"


@pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js on this machine")
def test_the_pages_square_is_the_products_also_of_thin_pictures(tmp_path):
    """The page's own functions in Node: to the bit, and without resizing a thin picture whole."""
    page = (Path(browser.__file__).parent / "browser.html").read_text()
    script = page[page.index("const BITS") : page.index("// A PNG of 16 bits")]
    shapes = [(90, 61), (61, 90), (32, 32), (500, 40), (2, 30_000)]
    code = [script, "const fs = require('fs'); let at = 0;"]
    for n, (width, height) in enumerate(shapes):
        picture_HWC = noise_of(n, height, width)
        (tmp_path / f"{n}.raw").write_bytes(picture_HWC.tobytes())
        code.append(
            f"{{ const size = 32, short = 37, [w, h] = [{width}, {height}];"
            "const s = short / Math.min(w, h);"
            "const [a, b] = [Math.max(halfToEven(w * s), size), Math.max(halfToEven(h * s), size)];"
            f"const rgb = new Uint8Array(fs.readFileSync('{n}.raw'));"
            f"fs.writeFileSync('{n}.out', centre(rgb, w, h, a, b, 'bicubic', size)); }}"
        )
    (tmp_path / "a.js").write_text("\n".join(code))
    done = subprocess.run(
        ["node", "--max-old-space-size=256", "a.js"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for n, (width, height) in enumerate(shapes):
        expected = square(noise_of(n, height, width), 32, 32 / 37, "bicubic").astype(int)
        out = np.frombuffer((tmp_path / f"{n}.out").read_bytes(), np.uint8).reshape(32, 32, 3)
        thin = min(width, height) < 10
        assert np.abs(expected - out).max() <= (2 if thin else 0)


@needs_chromium
@pytest.mark.browser
def test_the_page_applies_color_profiles_as_the_product_does(tmp_path):
    """The page's own functions in Chromium; other marks of color are left alone, as in Python."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    write_profiled(pictures)
    linear = PngInfo()
    linear.add(b"gAMA", (100_000).to_bytes(4, "big"))
    Image.open(pictures / "same-none.png").save(pictures / "same-gamma.png", pnginfo=linear)
    page = (Path(browser.__file__).parent / "browser.html").read_text()
    script = page[page.index("const BITS") : page.index("// The rule of confidence")]
    names = sorted(path.name for path in pictures.iterdir() if path.suffix != ".tif")
    held = {n: base64.b64encode((pictures / n).read_bytes()).decode() for n in names}
    code = (
        "(async () => {const facts = {preprocessing: {size: 8, short_side: 8, interpolation: "
        f"'bilinear', depth: null}}}}; {script}; const found = {{}};"
        f"for (const [name, text] of Object.entries({json.dumps(held)})) {{"
        "const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));"
        "found[name] = Array.from(await square(new Blob([bytes])));}"
        "return JSON.stringify(found);})()"
    )
    with Browser(tmp_path / "browser") as window:
        answer = window.tell(
            "Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True
        )
    found = json.loads(answer["result"]["value"])
    for name in names:
        expected = square(FileSource(pictures, [name]).picture(0), 8, 1.0, "bilinear").astype(int)
        seen = np.array(found[name]).reshape(8, 8, 3)
        assert np.abs(seen - expected).max() <= 3, name


def noise_of(seed, height, width):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("kind", ["float", "int8"])
def test_a_dropped_picture_is_classified_in_the_browser_as_in_python(
    kind, files, trained, runtime, tmp_path
):
    graph = files.float_bytes if kind == "float" else files.int8_bytes
    # Neither square nor of the model's size: the page resizes and crops as Pillow does.
    picture_HWC = np.ascontiguousarray(noise(1, 90)[0][:61])
    held = io.BytesIO()
    Image.fromarray(picture_HWC).save(held, "PNG")
    said, asked = drop(make_page(trained, graph, runtime), held.getvalue(), tmp_path)
    import onnx

    from fgvc_core.export.onnx_graph import OnnxModel

    view_HWC = trained.view(picture_HWC)
    expected_K = OnnxModel(onnx.load_from_string(graph)).logits(view_HWC[None])[0]
    tolerance = 1e-3 if kind == "float" else 0.5
    assert np.abs(np.array(said["logits"]) - expected_K).max() <= tolerance
    assert said["best"] == trained.class_names[int(expected_K.argmax())]
    assert said["rows"] == 3
    # The server saw the two pages and a browser's own favicon; the page tried and was stopped.
    assert set(asked) <= {"/", "/page.html", "/favicon.ico"}
    assert said["blocked"] == "yes"
    assert said["resources"] == []
