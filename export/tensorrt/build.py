"""An ONNX file to a TensorRT plan, with `tensorrt` 10 and 11 or, without a GPU, `tensorrt_rtx`: both have one API.

Experimental: plans of `tensorrt` have not yet been built or run on a GPU.

Networks are strongly typed: the ONNX graph says what is computed in fp16 or bf16, and the builder chooses nothing.
"""

import importlib
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from export.graphs import Graph
from export.precision import Precision
from training.files import whole_file

Runtime = Literal["tensorrt", "tensorrt_rtx"]
Hardware = Literal["none", "ampere_plus", "same_compute_capability"]
DTYPES = {torch.float32: "FLOAT", torch.int32: "INT32"}


class PlanError(ValueError):
    """A plan cannot be built or run here."""


@dataclass(frozen=True)
class BuildOptions:
    """What to build, and how. TensorRT-RTX accepts only the defaults."""

    runtime: Runtime
    precision: Precision
    optimization_level: int = 3
    """0 (builds fastest) to 5 (tries every kernel)."""
    version_compatible: bool = False
    """Also for later TensorRT releases of the same major version; the server needs a flag to accept such plans."""
    hardware: Hardware = "none"
    """Also for other GPUs than this one, at some cost in speed."""
    timing_cache: Path | None = None
    """File with measured times of kernels on this GPU, read and written: the next build takes seconds."""

    def record(self) -> dict[str, Any]:
        """The options that are properties of the plan."""
        kept = ("optimization_level", "version_compatible", "hardware")
        return {name: value for name, value in asdict(self).items() if name in kept}


@dataclass(frozen=True)
class PlanTensor:
    """An input or output of a plan. Shapes have the batch dimension, -1 if it varies. `profile` is min, opt, max."""

    name: str
    mode: Literal["input", "output"]
    dtype: str
    shape: tuple[int, ...]
    profile: tuple[tuple[int, ...], ...] = ()

    def __str__(self) -> str:
        limits = [f"{name} {list(shape)}" for name, shape in zip(("min", "opt", "max"), self.profile, strict=False)]
        return "  ".join([f"{self.mode:6} {self.name} {self.dtype} {list(self.shape)}", *limits])


@dataclass(frozen=True)
class Plan:
    """A serialised engine with its tensors and the TensorRT version; `content` is a buffer of bytes."""

    content: Any
    tensors: tuple[PlanTensor, ...]
    version: str


def load_runtime(runtime: Runtime) -> Any:
    """The Python module, imported.

    Raises:
        PlanError: it is not installed, too old, or there is no GPU for `tensorrt`; the message says what to do.
    """
    if runtime == "tensorrt" and not torch.cuda.is_available():
        raise PlanError(
            "TensorRT measures kernels on the GPU that will run them, and there is none here (or PyTorch lacks CUDA): "
            "build on the machine that serves, with this command or with trtexec in its container (docs/tensorrt.md). "
            "--tensorrt-rtx builds without a GPU"
        )
    try:
        trt = importlib.import_module(runtime)
    except ImportError as error:
        group = "export-" + runtime.replace("_", "-")
        raise PlanError(f"{runtime} cannot be imported ({error}): pip install --group {group}") from None
    if runtime == "tensorrt" and int(trt.__version__.split(".")[0]) < 10:
        raise PlanError(
            f"TensorRT {trt.__version__} is too old: version 10 or newer is needed for strongly typed networks"
        )
    return trt


def build_plan(graph: Graph, onnx: Path, options: BuildOptions) -> Plan:
    """Parse the ONNX file, check it against the graph's record, and build; shows the builder's phases meanwhile.

    Raises:
        PlanError: with the message of the parser or the builder and the names of nodes; or the file is not `graph`.
        KeyboardInterrupt: also where the builder was interrupted.
    """
    trt = load_runtime(options.runtime)
    logger = _error_log(trt)
    builder = trt.Builder(logger)
    network, parser = _parse(trt, builder, onnx, logger)
    profile = _profile(builder, graph)
    tensors = _describe_network(network, profile)
    _check_record(graph, onnx, tensors)
    config = _config(trt, builder, options)
    config.add_optimization_profile(profile)
    with tqdm(desc=graph.name, bar_format="{desc} [{elapsed}]", disable=None, leave=False) as bar:
        monitor = _monitor(trt, graph.name, bar)
        config.progress_monitor = monitor
        content = builder.build_serialized_network(network, config)
    if monitor.interrupted:
        raise KeyboardInterrupt
    if content is None:
        raise PlanError(f"{onnx}: no plan was built\n" + "\n".join(logger.errors))
    del parser  # it owns the weights of the network, so it must live until here
    _save_timing_cache(config, options)
    return Plan(content, tensors, trt.__version__)


def describe_engine(engine: Any) -> tuple[PlanTensor, ...]:
    """Inputs and outputs of a deserialised engine, with the shapes of its first profile. An engine needs a GPU."""
    described = []
    for name in (engine.get_tensor_name(index) for index in range(engine.num_io_tensors)):
        mode: Literal["input", "output"] = "input" if engine.get_tensor_mode(name).name == "INPUT" else "output"
        shapes = engine.get_tensor_profile_shape(name, 0) if mode == "input" else ()
        described.append(
            PlanTensor(
                name,
                mode,
                engine.get_tensor_dtype(name).name,
                tuple(engine.get_tensor_shape(name)),
                tuple(map(tuple, shapes)),
            )
        )
    return tuple(described)


def _error_log(trt: Any) -> Any:
    class ErrorLog(trt.ILogger):
        """Keeps errors for the message of the exception, and drops the rest, which is long."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.errors.append(message)

    return ErrorLog()


def _parse(trt: Any, builder: Any, onnx: Path, logger: Any) -> tuple[Any, Any]:
    # TensorRT 10 needs the flag. In 11 all networks are strongly typed, and the flag is ignored.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        lines = [f"  {error.node_name()} ({error.node_operator()}): {error.desc()}" for error in errors]
        raise PlanError("\n".join([f"{onnx}: TensorRT {trt.__version__} cannot parse it", *(lines or logger.errors)]))
    return network, parser


def _profile(builder: Any, graph: Graph) -> Any:
    profile = builder.create_optimization_profile()
    for spec in graph.inputs:
        shapes = [(rows, *spec.shape) for rows in (1, graph.opt_batch_size, graph.max_batch_size)]
        profile.set_shape(spec.name, *shapes)
    return profile


def _config(trt: Any, builder: Any, options: BuildOptions) -> Any:
    config = builder.create_builder_config()
    config.builder_optimization_level = options.optimization_level
    if options.precision != "tf32":
        # On by default; it would reduce what must stay in float32.
        config.clear_flag(trt.BuilderFlag.TF32)
    if options.runtime == "tensorrt_rtx":
        return config
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware != "none":
        levels = trt.HardwareCompatibilityLevel.__members__
        if options.hardware.upper() not in levels:
            raise PlanError(
                f"TensorRT {trt.__version__} has no hardware compatibility {options.hardware}: only {[*levels]}"
            )
        config.hardware_compatibility_level = levels[options.hardware.upper()]
    if options.timing_cache is not None:
        known = options.timing_cache.read_bytes() if options.timing_cache.is_file() else b""
        if not config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False):
            # The file is of another GPU or release.
            config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    return config


def _save_timing_cache(config: Any, options: BuildOptions) -> None:
    if options.timing_cache is not None and options.runtime == "tensorrt":
        with whole_file(options.timing_cache) as temporary:
            temporary.write_bytes(memoryview(config.get_timing_cache().serialize()))


def _describe_network(network: Any, profile: Any) -> tuple[PlanTensor, ...]:
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    described = [
        PlanTensor(
            tensor.name,
            "input",
            tensor.dtype.name,
            tuple(tensor.shape),
            tuple(map(tuple, profile.get_shape(tensor.name))),
        )
        for tensor in inputs
    ]
    described += [PlanTensor(tensor.name, "output", tensor.dtype.name, tuple(tensor.shape)) for tensor in outputs]
    return tuple(described)


def _check_record(graph: Graph, onnx: Path, tensors: tuple[PlanTensor, ...]) -> None:
    expected = {(spec.name, "input", DTYPES[spec.dtype], (-1, *spec.shape)) for spec in graph.inputs}
    expected |= {(spec.name, "output", DTYPES[spec.dtype], (-1, *spec.shape)) for spec in graph.outputs}
    actual = {(tensor.name, tensor.mode, tensor.dtype, tensor.shape) for tensor in tensors}
    if actual != expected:
        raise PlanError(f"{onnx} is not {graph.name}: it has {sorted(actual)}, the record says {sorted(expected)}")


def _monitor(trt: Any, name: str, bar: Any) -> Any:
    class Monitor(trt.IProgressMonitor):
        """Shows the innermost phase. The builder's threads call it; Ctrl-C ends the build at the next step."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.interrupted = False
            self.steps: dict[str, int] = {}
            self.lock = threading.Lock()

        def _show(self, phase: str, step: int) -> None:
            with self.lock:
                bar.set_description_str(f"{name}: {phase} {step}/{self.steps.get(phase, 0)}")

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.steps[phase] = steps
            self._show(phase, 0)

        def step_complete(self, phase: str, step: int) -> bool:
            try:
                self._show(phase, step + 1)
            except KeyboardInterrupt:  # must not unwind through the builder's own frames
                self.interrupted = True
            return not self.interrupted

        def phase_finish(self, phase: str) -> None:
            self.steps.pop(phase, None)

    return Monitor()
