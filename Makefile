# Two commands are enough: `make run` and `make test`. Both set up what they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Pins of what `make setup` does not leave installed: what builds packages, and the other extras.
KEPT_PINS := dagster-postgres greenlet hatchling playwright psycopg2-binary py4j pyspark setuptools wheel
# What is tested a second time, with the ledger on Postgres: the ledger, and the crashes that meet its transactions.
ON_POSTGRES := tests/test_ledger.py tests/test_crash.py -k "$(subst |, or ,test_postgres|test_ledger|_05_|_09_|_10_|_51_|random)"
READY := $(VENV)/.ready

# Every tick is a new process: without compiled modules it would take twice as long to start.
unexport PYTHONDONTWRITEBYTECODE

# The project and an extra of it, at the pinned versions.
define install
	@if command -v uv >/dev/null 2>&1; then \
	  VIRTUAL_ENV=$(VENV) uv pip install --quiet --build-constraint constraints.txt -c constraints.txt -e '.[$(1)]'; \
	else \
	  PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(1)]'; \
	fi
endef

.PHONY: run test test-browser test-kafka test-postgres test-promtool test-spark setup setup-browser setup-postgres \
  setup-spark secrets lint constraints clean

run: setup  ## Broker, traffic and the Dagster UI, on this machine; Ctrl-C stops it
	@exec $(BIN)/uniq-pipeline demo $(DEMO)

test: setup lint  ## All tests that need nothing but Python
	@$(BIN)/python -m pytest -n auto --dist worksteal $(TESTS)
	@if [ -n "$(TESTS)" ]; then :; \
	elif why=$$(cd tests && ../$(BIN)/python -m support.kafka.jars); then $(MAKE) --no-print-directory test-kafka; \
	elif [ -n "$$CI" ]; then echo "$$why"; exit 1; else echo "left out, the tests against real Apache Kafka: $$why"; fi

test-kafka: setup  ## Against real Apache Kafka, which Maven fetches once (43 MB); needs Java 17 or newer
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m kafka tests

setup-browser: $(READY)-browser

test-browser: setup-browser  ## Clicks through the UI; needs Chromium
	@$(BIN)/python -m pytest -m browser tests/test_browser.py

test-promtool: setup  ## Metrics, alert rules and configuration, as Prometheus' own promtool sees them
	@$(BIN)/python -m pytest -m promtool tests/test_promtool.py

setup-postgres: $(READY)-postgres

test-postgres: setup-postgres  ## Dagster and the ledger on Postgres; needs a Postgres server to start (Debian: postgresql)
	@UNIQ_CRASH_SEEDS=2 $(BIN)/python -m pytest -n 3 --dist worksteal --ledger=postgres -m "postgres or not slow and not kafka" tests/test_postgres.py $(ON_POSTGRES)

setup-spark: $(READY)-spark

test-spark: setup-spark  ## Interchange with Apache Spark; needs Java 17 or newer
	@$(BIN)/python -m pytest -m spark tests/test_spark.py

lint: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) --version 2>&1); see PYTHON=..."; exit 1; }
	@echo "setting up $(VENV), about a minute the first time"
	@if command -v uv >/dev/null 2>&1; then \
	  uv venv --quiet --allow-existing --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" $(VENV); \
	else \
	  $(PYTHON) -m venv $(VENV); \
	fi
	$(call install,test)
	@$(BIN)/python -m compileall -q $(VENV)/lib uniq_pipeline assets || true
	@touch $(READY)

$(READY)-postgres: $(READY)
	$(call install,postgres)
	@touch $@

$(READY)-spark: $(READY)
	@echo "installing Apache Spark into $(VENV), 500 MB, about a minute"
	$(call install,spark)
	@touch $@

$(READY)-browser: $(READY)
	$(call install,browser)
	@touch $@

constraints:  ## Renews the pins from what is installed
	@{ sed -n '/^#/p' constraints.txt; \
	   $(BIN)/python -m pip freeze --exclude-editable $(addprefix --exclude ,$(KEPT_PINS)); \
	   for name in $(KEPT_PINS); do sed -n "/^$$name==/p" constraints.txt; done; } \
	  > constraints.new && mv constraints.new constraints.txt

secrets:  ## Random passwords for docker-compose.yml, in secrets/; those that are there stay
	@mkdir -p -m 700 secrets
	@[ -s secrets/postgres_password ] || $(PYTHON) -c 'import secrets; print(secrets.token_urlsafe(32))' > secrets/postgres_password
	@{ printf '[dagster]\nhost=postgres\nport=5432\ndbname=dagster\nuser=dagster\npassword=%s\n' \
	  "$$(cat secrets/postgres_password)"; } > secrets/pg_service.new
	@mv -f secrets/pg_service.new secrets/pg_service.conf
	@chmod 444 secrets/postgres_password secrets/pg_service.conf  # for users of containers; the folder is ours alone

clean:  ## Removes the virtual environment and the demo's data
	@rm -rf $(VENV) data
