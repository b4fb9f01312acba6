"""Export as one HTML page that classifies dropped pictures without any network request.

The page embeds the model and onnxruntime-web's module and WebAssembly, which the user installs
(``npm install onnxruntime-web``). A Content-Security-Policy forbids all connections.
"""

import base64
import gzip
import json
from pathlib import Path
from typing import Any

from fgvc_core.errors import DataError
from fgvc_core.export.onnx_graph import confidence_facts, preprocessing
from fgvc_core.inference.trained import TrainedModel
from fgvc_core.words import escaped

_MODULE, _WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"


def make_page(trained: TrainedModel, graph: bytes, runtime: Path) -> str:
    """The page.

    Args:
        trained: The model; supplies class names, preprocessing and the rule of confidence.
        graph: A float or int8 graph with this package's inputs and outputs.
        runtime: Folder of the onnxruntime-web package, or its ``dist``.

    Raises:
        DataError: if the runtime's files are missing.
    """
    files, version = find_runtime(runtime)
    facts: dict[str, Any] = {
        "class_names": list(trained.class_names),
        "preprocessing": preprocessing(trained),
        "confidence": confidence_facts(trained),
    }
    values = {
        "TITLE": escaped(trained.recipe.name),
        "VERSION": escaped(version),
        "TOLD": escaped(facts["confidence"]["told"]),
        "SURE": f"{100 * facts['confidence']['sure']:g}",
        # A class name may contain "</script>".
        "FACTS": json.dumps(facts).replace("<", "\\u003c"),
        "RUNTIME": _packed(files[_MODULE].read_bytes()),
        "WASM": _packed(files[_WASM].read_bytes()),
        "MODEL": _packed(graph),
    }
    page = Path(__file__).with_name("browser.html").read_text(encoding="utf-8")
    for name, value in values.items():
        page = page.replace(f"@@{name}@@", value)
    return page


def find_runtime(runtime: Path) -> tuple[dict[str, Path], str]:
    """onnxruntime-web's files by name, and its version ("unknown" without its package.json)."""
    for folder in (runtime / "dist", runtime, runtime / "onnxruntime-web/dist"):
        files = {name: folder / name for name in (_MODULE, _WASM)}
        if all(path.is_file() for path in files.values()):
            return files, _version(folder.parent / "package.json")
    raise DataError(
        f"There is no onnxruntime-web in '{runtime}': {_MODULE} and {_WASM} are looked for.",
        why="The page carries the runtime in itself, so that it asks nothing of any network.",
        remedy="Run 'npm install onnxruntime-web' and name the folder node_modules.",
    )


def _version(path: Path) -> str:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"


def _packed(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()
