# Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo quick test lint docs docs-site bench conformance fidelity engines mutants fuzz soak matrix sbom audit clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt pip setuptools
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[all,dev]'
	touch $@

demo: install
	$(BIN)/lengthwise demo

# The tests that take little time, 90 s on two cores: tests/quick.txt names them.
quick: install
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow and not vllm" @tests/quick.txt

test: install
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: install
	$(BIN)/python -m pytest tests/test_docs_readme.py tests/test_docs_site.py tests/test_notebooks.py

# The docs as a site, in build/site; .venv/bin/python -m http.server -d build/site shows it.
docs-site: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

conformance: install
	$(BIN)/python -m tests.conformance.run

fidelity: install
	$(BIN)/python -m benchmarks.fidelity

engines: install
	$(BIN)/python -m tests.engines.run

# Plants single mistakes and counts those that the tests notice: an hour or two on two cores.
mutants: install
	rm -rf build/map && LENGTHWISE_COVER=build/map $(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow" -p tests.mutants.cover
	$(BIN)/python -m tests.mutants build/map --out build/mutants.jsonl

# 2,000 spoiled inputs of every kind; FUZZ="--kind csv --inputs 20000 --seed 3" asks for others.
fuzz: install
	$(BIN)/python -m tests.fuzz $(FUZZ)

# The vLLM plugin in the real scheduler; SOAK="--minutes 600" goes on for longer than ten.
soak: install
	$(BIN)/python -m tests.soak $(SOAK)

# Every Python and the oldest and newest packages; MATRIX="--python 3.12 --packages oldest" is one.
matrix: install
	$(BIN)/python -m tests.matrix $(MATRIX)

sbom: install
	mkdir -p dist
	$(BIN)/python -m uv tool run --from cyclonedx-bom==7.5.0 cyclonedx-py environment $(BIN)/python --of JSON -o dist/sbom.json

audit: install
	$(BIN)/python -m uv tool run pip-audit==2.10.1 --strict --path $$($(BIN)/python -c "import site; print(site.getsitepackages()[0])")

bench: install
	$(BIN)/python -m benchmarks.engine_speed
	$(BIN)/python -m benchmarks.env_speed

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
