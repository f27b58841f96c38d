"""Plans into a repository: build, compare with the float32 graph on the GPU, place, stamp. A failed plan is not placed.

Experimental: plans of `tensorrt` have not yet been built or run on a GPU.

The reference is the repository's own model.onnx, run by ONNX Runtime on the CPU. Export has compared it with PyTorch.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from export.compare import Array, Parity, require_parity_of_outputs
from export.graphs import GRAPHS, Graph, random_inputs
from export.onnx.run import cpu_session, run_all
from export.onnx.write import onnx_file
from export.precision import Precision
from export.tensorrt.build import BuildOptions, Plan, PlanError, Runtime, build_plan, describe_engine, load_runtime
from training.files import sha256, whole_file

PLAN_FILE = "model.plan"
Run = Callable[[tuple[torch.Tensor, ...]], Sequence[Array]]


class Engine:
    """A plan on the GPU. Takes and returns tensors on the CPU, in the order of the graph's record. Not thread-safe."""

    def __init__(self, graph: Graph, runtime: Runtime, content: Any, version_compatible: bool = False) -> None:
        """Deserialise. A version compatible plan carries code of its own, which is then run.

        Raises:
            PlanError: this GPU or this release of TensorRT does not accept the plan, or PyTorch sees no GPU.
        """
        trt = load_runtime(runtime)
        if not torch.cuda.is_available():
            raise PlanError("there is no GPU here to run it, or PyTorch lacks CUDA")
        self.runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))  # outlives the engine
        self.runtime.engine_host_code_allowed = version_compatible
        self.engine = self.runtime.deserialize_cuda_engine(content)
        if self.engine is None:
            raise PlanError(f"{runtime} {trt.__version__} on {torch.cuda.get_device_name()} does not accept this plan")
        self.graph = graph
        self.tensors = describe_engine(self.engine)
        self.context = self.engine.create_execution_context()

    def __call__(self, inputs: tuple[torch.Tensor, ...]) -> list[Array]:
        """Waits for the result."""
        outputs = {
            spec.name: torch.empty((len(inputs[0]), *spec.shape), dtype=spec.dtype, device="cuda")
            for spec in self.graph.outputs
        }
        tensors = {spec.name: tensor.cuda() for spec, tensor in zip(self.graph.inputs, inputs, strict=True)}
        stream = torch.cuda.Stream()  # on the default stream TensorRT synchronises more than it must
        stream.wait_stream(torch.cuda.current_stream())
        for name, tensor in tensors.items():
            self.context.set_input_shape(name, tuple(tensor.shape))
            self.context.set_tensor_address(name, tensor.data_ptr())
        for name, tensor in outputs.items():
            self.context.set_tensor_address(name, tensor.data_ptr())
        if not self.context.execute_async_v3(stream.cuda_stream):
            raise PlanError(f"{self.graph.name}: TensorRT failed to run the plan")
        stream.synchronize()
        return [tensor.cpu().numpy() for tensor in outputs.values()]


def require_plan_parity(graph: Graph, reference: Path, run: Run, precision: Precision) -> Parity:
    """Compare `run` with the float32 file `reference` for 1, opt and max rows; each may use other kernels.

    Returns the worst result.

    Raises:
        ParityError: it differs by more than `precision` allows.
    """
    session = cpu_session(reference)
    results = []
    for rows in sorted({1, graph.opt_batch_size, graph.max_batch_size}):
        inputs = random_inputs(graph, rows, seed=rows)
        what = f"{graph.name}: the plan, {rows} rows,"
        results.append(require_parity_of_outputs(what, graph, run_all(graph, session, inputs), run(inputs), precision))
    return max(results, key=lambda parity: parity.relative_l2)


def add_plans(
    folder: Path, options: BuildOptions, report: Callable[[str], None] = print, graphs: Sequence[Graph] = GRAPHS
) -> list[dict[str, Any]]:
    """Build a plan for each network of the repository `folder` and place all of them; returns their stamps.

    Raises:
        PlanError, ParityError: nothing has been placed.
    """
    plans = {graph.name: _checked_plan(graph, folder, options, report) for graph in graphs}
    for name, (plan, _) in plans.items():
        with whole_file(folder / name / "1" / PLAN_FILE) as temporary:
            temporary.write_bytes(memoryview(plan.content))
    return [stamp for _, stamp in plans.values()]


def _checked_plan(
    graph: Graph, folder: Path, options: BuildOptions, report: Callable[[str], None]
) -> tuple[Plan, dict[str, Any]]:
    version_folder = folder / graph.name / "1"
    onnx = version_folder / onnx_file(options.precision)
    if not onnx.is_file():
        raise PlanError(f"{onnx} does not exist: export the weights with --onnx {options.precision} first")
    report(f"{graph.name}: building a plan of {options.runtime}, {options.precision}")
    plan = build_plan(graph, onnx, options)
    for tensor in plan.tensors:
        report(f"  {tensor}")
    parity = _measured(graph, version_folder / "model.onnx", plan, options)
    if isinstance(parity, Parity):
        report(f"{graph.name}: the plan differs from float32 by {parity.relative_l2:.1e} (relative L2)")
        measured: dict[str, Any] = {"parity": parity.record()}
    else:
        report(f"{graph.name}: parity was not measured: {parity}")
        measured = {"parity": None, "parity_not_measured": parity}
    stamp = _stamp(graph, onnx, plan, options)
    return plan, stamp | measured


def _stamp(graph: Graph, onnx: Path, plan: Plan, options: BuildOptions) -> dict[str, Any]:
    """The manifest's entry for a plan, without its parity."""
    return {
        "model": graph.name,
        "file": f"{graph.name}/1/{PLAN_FILE}",
        "runtime": options.runtime,
        "version": plan.version,
        "gpu": gpu_record(),
        "precision": options.precision,
        "onnx_sha256": sha256(onnx),
        "profile": {"min": 1, "opt": graph.opt_batch_size, "max": graph.max_batch_size},
        "options": options.record(),
    }


def _measured(graph: Graph, reference: Path, plan: Plan, options: BuildOptions) -> Parity | str:
    """The parity, or why it was not measured. Only TensorRT-RTX builds plans where they cannot run."""
    try:
        engine = Engine(graph, options.runtime, plan.content, options.version_compatible)
    except PlanError as error:
        if options.runtime == "tensorrt":
            raise
        return str(error)
    return require_plan_parity(graph, reference, engine, options.precision)


def gpu_record() -> dict[str, str] | None:
    """Name and compute capability of the GPU, or None."""
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return {"name": torch.cuda.get_device_name(), "capability": f"{major}.{minor}"}
