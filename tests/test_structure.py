"""The shape of the repository, held by the files themselves: who imports whom, what is shipped, what is not said."""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from export.configs import parse_config
from support.common import ROOT, tracked

FOLDERS = ("client", "export", "model_repository", "server", "training")
OWN = {"client": {"brats_ldm_client"}, "model_repository": {"mri_ldm"}}
ALLOWED = {"export": {"training"}, "training": {"brats_ldm_client"}}
SERVING = ROOT / "model_repository" / "mri_ldm" / "1"
PACKAGES = dict.fromkeys(("benchmarks", "export", "server", "training"), ROOT)
PACKAGES |= {"brats_ldm_client": ROOT / "client", "mri_ldm": SERVING}


class Imports(ast.NodeVisitor):
    """Dotted names of all imports of a file of `package`; `types`: also of those that only type checkers see."""

    def __init__(self, path: Path, package: str = "", types: bool = True) -> None:
        self.package, self.types, self.names = package.split("."), types, set[str]()
        self.visit(ast.parse(path.read_text()))

    def visit_If(self, node: ast.If) -> None:
        if self.types or "TYPE_CHECKING" not in ast.unparse(node.test):
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self.names |= {alias.name for alias in node.names}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        above = self.package[: len(self.package) + 1 - node.level] if node.level else []
        module = ".".join([*above, *filter(None, [node.module])])
        self.names |= {f"{module}.{alias.name}" for alias in node.names}


def imported(path: Path) -> set[str]:
    """First names of all absolute imports of a file."""
    return {name.split(".")[0] for name in Imports(path).names} - {""}


def modules() -> dict[str, Path]:
    """The files of all packages by their dotted names."""
    files = {}
    for package, folder in PACKAGES.items():
        for path in (folder / package).rglob("*.py"):
            files[".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__")] = path
    return files


def test_no_module_imports_itself_in_a_circle() -> None:
    files = modules()
    assert len(files) > 150
    graph = {}
    for name, path in files.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        names = Imports(path, package, types=False).names
        # `from package import name` is an import of the module package.name, or of package where that is no module.
        targets = {target if target in files else target.rpartition(".")[0] for target in names}
        graph[name] = (targets & set(files)) - {name}
    list(TopologicalSorter(graph).static_order())  # CycleError names the circle


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_go_one_way(folder: str) -> None:
    allowed = {folder} | OWN.get(folder, set()) | ALLOWED.get(folder, set())
    others = {*FOLDERS, "benchmarks", "brats_ldm_client", "mri_ldm"} - allowed
    for path in (ROOT / folder).rglob("*.py"):
        assert not imported(path) & others, path
        if folder in ("client", "model_repository", "server") and path.parent.name != "torch_export":
            assert "torch" not in imported(path), path


def test_serving_code_runs_in_the_stock_image() -> None:
    known = set(sys.stdlib_module_names) | {"mri_ldm", "numpy", "triton_python_backend_utils"}
    for path in SERVING.rglob("*.py"):
        assert imported(path) <= known, path
    for path in (ROOT / "deploy").glob("*.py"):
        assert imported(path) <= set(sys.stdlib_module_names) | {"plans"}, path


def test_both_front_models_are_one_code() -> None:
    link = ROOT / "model_repository" / "mri_ldm_stream" / "1"
    assert link.is_symlink()
    assert link.resolve() == SERVING


def test_noise_is_drawn_by_one_code() -> None:
    link = ROOT / "server" / "backends" / "torch_export" / "torch_noise.py"
    assert not link.readlink().is_absolute()
    assert link.resolve() == SERVING / "mri_ldm" / "noise.py"


def test_front_models_take_the_same_tensors() -> None:
    unary, stream = (parse_config(SERVING.parents[1] / name / "config.pbtxt") for name in ("mri_ldm", "mri_ldm_stream"))
    assert list(stream.input)[: len(unary.input)] == list(unary.input)
    assert [tensor.name for tensor in list(stream.input)[len(unary.input) :]] == ["preview_every", "preview_decoder"]
    assert list(stream.output)[: len(unary.output)] == list(unary.output)
    previews = ["step", "preview", "preview_image", "preview_source"]
    assert [tensor.name for tensor in list(stream.output)[len(unary.output) :]] == previews
    assert stream.model_transaction_policy.decoupled
    assert not unary.model_transaction_policy.decoupled
    assert stream.parameters == unary.parameters


@pytest.mark.parametrize("model", ["unet", "vae_decoder"])
def test_profiles_declare_the_same_tensors(model: str) -> None:
    folder = ROOT / "model_repository" / model
    default, *others = [parse_config(path) for path in (folder / "config.pbtxt", *folder.glob("configs/*.pbtxt"))]
    assert others
    for other in others:
        assert (other.input, other.output, other.max_batch_size) == (
            default.input,
            default.output,
            default.max_batch_size,
        )


def test_batch_limits_agree() -> None:
    repository = ROOT / "model_repository"
    unet, decoder, front = (
        parse_config(repository / name / "config.pbtxt") for name in ("unet", "vae_decoder", "mri_ldm")
    )
    assert int(front.parameters["max_rows_in_flight"].string_value) <= unet.max_batch_size
    assert int(front.parameters["decode_batch"].string_value) <= decoder.max_batch_size


def test_files_stay_small() -> None:
    for path in tracked(".py"):
        assert len(path.read_text().splitlines()) <= 400, path
    for suffixes, most in (((".onnx",), 20e6), ((".safetensors", ".png", ".npz", ".gz"), 10e6)):
        assert sum(path.stat().st_size for path in tracked() if path.suffix in suffixes) <= most


def test_the_repository_names_no_machine() -> None:
    for path in filter(Path.is_file, tracked()):
        content = path.read_bytes()
        for secret in (b"/ro" + b"ot/", b"/wo" + b"rk/", b"/ho" + b"me/"):
            assert secret not in content, path
