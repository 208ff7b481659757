# `make demo`, `make demo-tts` and `make demo-transfer` show the whole thing on real speech; `make test` checks it. All do their own set-up.
PYTHON ?= python3
VENV ?= $(if $(filter $(PYTHON),python3),.venv,.venv-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
# A CPU build of this version runs the comparisons; any torch >= 2.9 does.
TORCH ?= torch==2.13.0
# Tests of what a new Python or JAX changes: layers and gradients, front end, optimizers, checkpoints, other runtimes.
PORTABLE := $(addprefix tests/nn/test_,layers.py lora.py dot_attention.py) tests/frontend tests/decoding/test_greedy.py \
	tests/optim tests/training/test_checkpoints.py \
	$(addprefix tests/interop/test_,stablehlo.py saved_model.py litert.py)
# Unit tests that neither compile big programs nor start processes.
QUICK := $(addprefix tests/data_pipelines/,batching core storage text tokenizers) \
	$(addprefix tests/decoding/test_,alignment.py boosting.py greedy.py kneser_ney.py ngram.py prefix_beam.py spelling.py) \
	$(addprefix tests/evaluation/test_,minimal_pairs.py normalizers.py report.py spoken_pairs.py translation.py wer.py) \
	$(addprefix tests/interop/test_,parakeet.py tokenizer_files.py transformer_interop.py wav2vec2_bert.py weight_files.py) \
	$(addprefix tests/launch/test_,final_statuses.py job.py manifests.py slurm_job.py stopped_status.py tpu_pod.py) \
	$(addprefix tests/planning/test_,chips.py costs.py) tests/parallel/test_mesh.py tests/serving/test_batcher.py \
	$(addprefix tests/training/test_,concerns.py goodput.py logs.py) tests/units/test_measures.py \
	$(addprefix tests/cli/test_,impossible_options.py kinds.py) $(addprefix tests/inference/test_,transcript.py windows.py) \
	tests/core tests/apps/test_self_training.py tests/test_names_of_tasks.py

.PHONY: help docs notebooks demo demo-tts demo-transfer test test-slow test-parity test-quick test-portable test-newest lint format golden clean

help:
	@echo "make demo         fetch speech, pretrain, finetune, evaluate, export: a page at the end (10 minutes on 2 cores)"
	@echo "make demo-tts     fetch speech of one voice, train a small voice, synthesise, judge it (sized for 10 minutes on 2 idle cores)"
	@echo "make demo-transfer  fetch a Whisper and speech, measure, finetune, measure again, export (sized for 10 minutes on 2 idle cores)"
	@echo "make test         set up and run the tests (20 to 35 minutes on 2 cores)"
	@echo "make test-slow    a soak of twenty kills, four processes, the largest plan by the real TPU compiler"
	@echo "make test-parity  install torch and transformers, run the live comparisons"
	@echo "make test-quick   unit tests without big programs or processes (a minute and a half on 2 cores)"
	@echo "make test-portable  tests of what a new Python or JAX changes, with few packages installed (a few minutes)"
	@echo "make test-newest  the same on the newest Python found on PATH or in pyenv, and the newest packages for it"
	@echo "make docs         the documentation as a site, in build/site (half a minute)"
	@echo "make notebooks    the tutorials as notebooks, in build/notebooks"
	@echo "make lint         ruff and the floors of the packages, check only;  make format  ruff, fix"
	@echo "make golden       write the golden arrays again (needs what test-parity installs; make_ngram.py needs KenLM's tools)"
	@echo "PYTHON=python3.12 chooses the interpreter; each has its own virtual environment"

$(VENV)/.installed: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make ... PYTHON=python3.11")'
	@$(PYTHON) -c 'import venv, ensurepip' || { echo "The venv module is missing: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable .
	@if command -v c++ > /dev/null; then $(BIN)/pip install --quiet --editable '.[ngram]'; else false; fi \
		|| echo "kenlm was not built, so n-gram models are left out: apt-get install g++, then remove $(VENV)/.installed"
	@touch $@

$(VENV)/.tests: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

$(VENV)/.parity: $(VENV)/.tests
	$(BIN)/pip install --quiet '$(TORCH)'
	$(BIN)/pip install --quiet --editable '.[dev,parity]'
	@touch $@

$(VENV)/.portable: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable '.[portable,litert]'
	@touch $@

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable '.[docs]'
	@touch $@

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 JAX_PLATFORMS=cpu $(BIN)/mkdocs build --strict --quiet
	@echo "build/site/index.html"

notebooks: $(VENV)/.docs
	$(BIN)/python docs/site/notebooks.py
	@echo "build/notebooks: pip install notebook, then jupyter notebook build/notebooks"

demo: $(VENV)/.installed
	$(BIN)/python scripts/demo.py

demo-tts: $(VENV)/.installed
	$(BIN)/python scripts/demo_tts.py

demo-transfer: $(VENV)/.installed
	$(BIN)/python scripts/demo_transfer.py

test: $(VENV)/.tests
	$(BIN)/pytest -m "not parity and not slow" -n auto --dist loadfile --no-loadscope-reorder --max-worker-restart 0 --durations=15 $(PYTEST_ARGS)

test-slow: $(VENV)/.tests
	$(BIN)/pytest -m slow --durations=0 $(PYTEST_ARGS)

test-parity: $(VENV)/.parity
	$(BIN)/pytest -m parity -n auto --dist loadfile $(PYTEST_ARGS)

test-quick: $(VENV)/.tests
	$(BIN)/pytest -m "not parity and not slow" -n auto --dist loadfile $(QUICK) $(PYTEST_ARGS)

test-portable: $(VENV)/.portable
	$(BIN)/pytest -m "not slow" -n auto --dist loadfile $(PORTABLE) $(PYTEST_ARGS)

test-newest:
	scripts/newest_python.sh $(MAKE) test-portable

golden: $(VENV)/.parity
	for script in $(filter-out tests/golden/make_ngram.py,$(wildcard tests/golden/make_*.py)); do $(BIN)/python $$script; done

lint: $(VENV)/.tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: $(VENV)/.tests
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-* build *.egg-info
