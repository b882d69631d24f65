# make demo    a toy Food-11 through the whole pipeline, on a fresh machine too
# make lint    format and lint by ruff, as pyproject.toml says
# make test    the tests; make test-matrix runs them on other processors, thread counts and library versions too
# make readme  fill README.md's tables from results/
# make report  report.pdf and its figures from results/; PHOTOS=Food-11 where the records are of the real photos
# make clean   remove what demo and test have made, but not .venv and .venv-oldest
PYTHON ?= python3
PHOTOS ?= stand-in
venv := .venv/bin/python
toy := toy_food11

.PHONY: demo test lint test-matrix readme report clean

.venv/installed: requirements.txt tests/requirements.txt report/requirements.txt
	@echo "setting up .venv (a few GB, some minutes)"
	$(PYTHON) -m venv .venv
	$(venv) -m pip install --quiet --requirement tests/requirements.txt
	@touch $@

demo: .venv/installed
	$(venv) -m experiments.demo

test: .venv/installed
	$(venv) -m pytest -q -n auto tests

lint: .venv/installed
	$(venv) -m ruff format --check .
	$(venv) -m ruff check .

test-matrix: .venv/installed
	PYTHON="$(PYTHON)" bash tests/matrix.sh

readme: .venv/installed
	$(venv) results/fill_readme.py

.venv/report-installed: report/requirements.txt
	test -x $(venv) || $(PYTHON) -m venv .venv
	$(venv) -m pip install --quiet --requirement report/requirements.txt
	@touch $@

report: .venv/report-installed
	$(venv) report/build.py --photos "$(PHOTOS)"

clean:
	rm -rf $(toy) runs/demo .pytest_cache __pycache__ tests/__pycache__
