# A virtual environment is made and filled as each target needs it.
# PYTHON= makes it; without, one that server/find_python.sh finds or fetches into it.
PYTHON ?=
VENV ?= .venv
BIN := $(VENV)/bin
# Tests often wait for a server, so three processes suit two cores. One thread of PyTorch each: the networks are tiny,
# and threads would wait for one another.
JOBS ?= 3
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder
KIT_PYTHON ?= $(BIN)/python
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# Material for MkDocs prints a notice about a later MkDocs, which pyproject.toml excludes.
export NO_MKDOCS_2_WARNING := 1

.DEFAULT_GOAL := help
.PHONY: help demo lesions studio serve test test-fast test-reliability check bench perf-analyzer demo-weights gpu gpu-kit clean

help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

demo: $(VENV)/.server  ## Start the server, generate 8 slices into out/demo, stop the server
	@$(BIN)/python -m examples.demo

lesions: $(VENV)/.server  ## Start the server, draw one seed with five label maps into out/lesions.png, stop the server
	@$(BIN)/python -m examples.lesions

studio: $(VENV)/.studio  ## Start the server and a page in the browser to generate, compare and walk; ARGS=--help
	@$(BIN)/python -m examples.studio $(ARGS)

serve: $(VENV)/.server  ## Start the server with the demo weights and stay
	@$(BIN)/python -m server

test: $(VENV)/.test $(VENV)/.tools  ## Run all tests, JOBS=3 at a time; README says how long they take
	$(PYTEST)

test-fast: $(VENV)/.test $(VENV)/.tools  ## Run the tests that need no server, no export and no training (within a minute)
	$(PYTEST) -m "not slow and not gpu"

test-reliability: $(VENV)/.test  ## Faults, storms, bad input and a long soak, with a table; ARGS=--help
	$(BIN)/python tests/reliability $(ARGS)

check: $(VENV)/.test $(VENV)/.tools  ## Lint, formatting, types, shell scripts, container and Kubernetes files, alert rules, balancer, documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p brats_ldm_client -p mri_ldm -p server -p training -p export -p benchmarks
	$(BIN)/mypy deploy/container.py deploy/plans.py
	$(BIN)/shellcheck .ci/run benchmarks/serving/gpu/run_kit.sh deploy/kubernetes/prometheus-rule.sh deploy/slurm/bulk.sbatch server/find_python.sh tests/support/fetch_debian.sh
	$(BIN)/hadolint deploy/Dockerfile deploy/kubernetes/Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec deploy/compose.yaml
	$(BIN)/python tests/support/manifests.py
	$(BIN)/promtool check config deploy/monitoring/prometheus.yml
	$(BIN)/promtool test rules tests/data/alerts_test.yml
	$(BIN)/haproxy -c -f deploy/balancer
	$(BIN)/mkdocs build --strict

bench: $(VENV)/.bench  ## Measure the server beside what one would run instead; goes on where it stopped (an hour)
	$(BIN)/python -m benchmarks.serving --weights bundle

perf-analyzer: $(VENV)/.server  ## Measure with Triton's tool; ARGS="--concurrency 4 --steps 10", ARGS=--help
	@$(BIN)/python -m benchmarks.serving.analyzer $(ARGS)

demo-weights: $(VENV)/.export $(VENV)/.tools  ## Train weights like the committed ones (hours)
	$(BIN)/python -m training.phantom --out data/colin27 --volumes 160 --seed 0 --colin27 $(VENV)/ch2better.nii.gz
	$(BIN)/python -m training.train_autoencoder --config demo --data data/colin27 --out runs/demo/autoencoder
	$(BIN)/python -m training.train_diffusion --config demo-labels --autoencoder runs/demo/autoencoder/snapshot \
		--data data/colin27 --out runs/demo/diffusion
	$(BIN)/python -m training.distil_decoder --config demo --snapshot runs/demo/diffusion/snapshot --data data/colin27
	$(BIN)/python -m training.align_steps --snapshot runs/demo/diffusion/snapshot --data data/colin27
	$(BIN)/python -m export repository runs/demo/diffusion/snapshot --into model_repository --name brats_phantom_demo \
		--monai-layers

gpu: $(VENV)/.test  ## Measure on this machine's GPU; writes benchmarks/serving/gpu-*.json (under ten minutes)
	$(BIN)/python -m benchmarks.serving --device gpu

gpu-kit: $(VENV)/.test  ## Pack what the same needs on a bare GPU machine; KIT_PYTHON: a Python of its PyTorch's minor
	$(BIN)/python -m benchmarks.serving.gpu.kit --python $(KIT_PYTHON)

clean:  ## Remove the virtual environment and built files; data/ and runs/ stay
	rm -rf $(VENV) build out

$(BIN)/python:
	@# A half-made environment would be taken for a whole one next time.
	@python="$(or $(PYTHON),$$(server/find_python.sh $(VENV)/cpython))" && "$$python" -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# PyPI has no Chromium, promtool, dciodvfy, HAProxy, jq or SLURM. KServe's wheel is read, not installed: it needs much that clashes with the rest.
$(VENV)/.tools: tests/support/fetch_debian.sh tests/support/fonts.conf Makefile | $(BIN)/python
	@tests/support/fetch_debian.sh $(BIN)
	@tests/support/fetch_debian.sh $(VENV) colin27
	@$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --dest $(VENV)/wheels kserve==0.21.0
	@touch $@

$(VENV)/.%: pyproject.toml | $(BIN)/python
	@case $* in server|test) $(BIN)/python -m server.find;; esac
	@echo "installing what '$*' needs into $(VENV) ..."
	@$(PIP_INSTALL) --upgrade "pip>=25.1" # the first that knows dependency groups
	@$(PIP_INSTALL) --editable . --group $*
	@touch $@
