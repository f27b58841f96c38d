"""The contestants that tables and pictures know by name, for those that do not run them."""

BASELINE = "MONAI's loop, fp32"
BF16_LOOP = "MONAI's loop, bf16 autocast"
COMPILED_LOOP = "MONAI's loop, torch.compile"
DIFFUSERS_LOOP = "diffusers' DDIM, fused attention"
LOOP_IN_EXECUTE = "Triton, loop in execute()"
OURS = "tritonserver, this repository"
OPENVINO = f"{OURS}, profile openvino"
DECODER_IN_BF16, IN_BF16 = f"{OPENVINO}, decoder in bf16", f"{OPENVINO} in bf16"


def few_steps(steps: int) -> str:
    """Ours, with the sampler for few steps."""
    return f"{OURS}, {steps} steps of DPM-Solver++"


def litserve(rows: int) -> str:
    """LitServe, whose batches are at most that large."""
    return f"LitServe, max_batch_size {rows}"


def by_preset(server: str, preset: str) -> str:
    """One of ours, asked for a preset."""
    return f"{server}, {preset}"
