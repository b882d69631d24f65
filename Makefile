# make demo    run the whole pipeline on a toy data set; sets up .venv first
# make lint    check format and style with ruff
# make test    run the tests; make test-matrix also uses other processors, thread counts and library versions
# make readme  fill README.md's tables from results/
# make report  build report.pdf and its figures from results/; PHOTOS=Food-11 if the records are of Food-11
# make clean   remove the files of demo and test, but not .venv and .venv-oldest
PYTHON ?= python3
PHOTOS ?= stand-in
venv := .venv/bin/python
toy := toy_food11

.PHONY: demo test lint test-matrix readme report clean

.venv/ready: requirements.txt
	@echo "setting up .venv (a few GB, some minutes)"
	test -x $(venv) || $(PYTHON) -m venv .venv
	$(venv) -m pip install --quiet --requirement requirements.txt
	@touch $@

.venv/installed: requirements.txt tests/requirements.txt report/requirements.txt experiments/requirements.txt
	@echo "setting up .venv with what the tests need (a few GB, some minutes)"
	test -x $(venv) || $(PYTHON) -m venv .venv
	$(venv) -m pip install --quiet --requirement tests/requirements.txt
	@touch $@

demo: .venv/ready
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
