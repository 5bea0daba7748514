# make demo      install, then run the main job on the embedded pair
# make test      install with the test tools, then ruff, mypy and the fast tests
# make test-all  every other test that CI can bear
# make test-nightly  what is too long for CI: matrices of models, long kills, runs over real data sets
# make ui        open the MLflow UI on what was run
# make presets   list what ships by name
# make evaluate ARGS="-P experiment=arith_compare"
# make benchmark ARGS="-P quick=true"   how fast decoding is, beside generate() and the hardware's limit
# make labels, make judge   mine labels, then train and register a judge (ARGS as above)
# make docker-cpu, make docker-gpu   build an image; docker/MLproject runs the one built last
# make docker-project   write docker/MLproject anew from MLproject
# make screenshots   the README's pictures, of the newest comparison here (wants chromium and chromium-driver)
PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
PORT ?= 5000
DOCKER ?= docker
# Two tests at a time, each on one thread: these models are too small to share one forward among cores.
PYTEST := OMP_NUM_THREADS=1 pytest -n 2
export MLFLOW_DISABLE_TELEMETRY ?= true
# MLflow starts `python`: the one of this environment.
export PATH := $(BIN):$(PATH)

.PHONY: demo test test-all test-nightly check ui presets evaluate benchmark labels judge screenshots clean
.PHONY: docker-cpu docker-gpu docker-project

demo: $(VENV)/.installed
	mlflow run . --env-manager local -P output=runs/demo-$(shell date +%Y%m%d-%H%M%S)

test: check
	$(PYTEST) -m "not slow and not nightly"

test-all: check
	$(PYTEST) -m "slow and not nightly"

test-nightly: check
	$(PYTEST) -m nightly

check: $(VENV)/.installed-test
	ruff check .
	ruff format --check .
	mypy

ui: $(VENV)/.installed
	mlflow ui --workers 1 --port $(PORT)

presets: $(VENV)/.installed
	python -m entrypoints presets $(NAME)

evaluate: $(VENV)/.installed
	mlflow run . --env-manager local -e evaluate $(ARGS)

benchmark: $(VENV)/.installed
	mlflow run . --env-manager local -e benchmark $(ARGS)

labels: $(VENV)/.installed
	mlflow run . --env-manager local -e collect_labels $(ARGS)

judge: $(VENV)/.installed
	mlflow run . --env-manager local -e train_judge $(ARGS)

# DOCKER_ARGS: further arguments, say --build-arg BASE=... for a mirror. The user inside is the one who builds.
docker-cpu docker-gpu: docker-%:
	$(DOCKER) build --file docker/Dockerfile.$* --tag specexp-base:$* --tag specexp-base:latest \
		--build-arg USER_ID=$(shell id -u) --build-arg GROUP_ID=$(shell id -g) \
		--build-arg REVISION=$(shell git rev-parse HEAD) $(DOCKER_ARGS) .

docker-project:
	$(PYTHON) docker/project.py

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	pip install --quiet --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	pip install --quiet --editable '.[test]'
	touch $@

screenshots: $(VENV)/.installed
	pip install --quiet --editable '.[screenshots]'
	python .ci/screenshots.py $(NAMES)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
