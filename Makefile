# make demo    trains GA-Faster R-CNN on generated shapes, evaluates it, draws pictures: output/demo
# make scopenet-demo  the same with ScopeNet: output/scopenet-demo
# make test    the tests
# make test-all  and those that take minutes each (pytest --long)
# make bench   the benchmarks, and the table of bars that the operators are held to: output/bench.csv
# make lint    ruff and clang-format
# make docs    the site: output/docs/index.html; a warning or a dead link within it is an error
# make linkcheck  its links to other places (a network)
# make cuda-check  compiles the CUDA kernels for every architecture; fails on spilled registers, and on hot loops that
#              need more instructions than benchmarks/cuda_budgets.json allows (a toolkit, no GPU)
# make gpu-check   all that needs a GPU: tests, sanitizers, benchmarks, short trainings (tools/gpu_check.sh)
# make install what all of them do first: a virtual environment with pinned versions, and the operators.
#              Redone when its inputs change. PYTHON=/path/to/python installs into an environment that has torch.

ifdef PYTHON
  PY := $(PYTHON)
  INSTALLED := build/.installed-$(subst /,_,$(PYTHON))
  INSTALL := tools/install.sh --into $(PYTHON)
else
  PY := .venv/bin/python
  INSTALLED := .venv/.installed
  INSTALL := tools/install.sh .venv
endif

SOURCES := $(shell find csrc -type f) setup.py pyproject.toml constraints.txt tools/install.sh tools/cuda_toolkit.py

.PHONY: install demo scopenet-demo test test-all bench lint docs linkcheck format cuda-check gpu-check clean

install: $(INSTALLED)

$(INSTALLED): $(SOURCES)
	$(INSTALL)
	@mkdir -p $(@D) && touch $@

DEMO := output/demo

demo: install
	$(PY) tools/make_shapes.py datasets/shapes
	$(PY) train_net.py --config-file configs/shapes/ga_faster_rcnn_R_18_FPN.yaml OUTPUT_DIR $(DEMO)
	$(PY) tools/visualize.py --config-file configs/shapes/ga_faster_rcnn_R_18_FPN.yaml --limit 20 \
	  --dataset shapes_val --output $(DEMO)/pictures MODEL.WEIGHTS $(DEMO)/model_final.pth

SCOPENET_DEMO := output/scopenet-demo
SCOPENET_CONFIG := configs/shapes/scopenet_R_18_FPN.yaml

scopenet-demo: install
	$(PY) tools/make_shapes.py datasets/shapes_4000 --train 4000
	$(PY) train_net.py --config-file $(SCOPENET_CONFIG) OUTPUT_DIR $(SCOPENET_DEMO)
	$(PY) tools/visualize.py --config-file $(SCOPENET_CONFIG) --limit 20 --score-thresh 0.3 \
	  --dataset shapes_4000_val --output $(SCOPENET_DEMO)/pictures MODEL.WEIGHTS $(SCOPENET_DEMO)/model_final.pth

# A process per core, up to eight; files whole, since their tests share what they train and build, in their order: by
# default those of many tests come first, and the last are of few that take long.
PYTEST := -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

test: install
	$(PY) $(PYTEST) --durations 15

test-all: install
	$(PY) $(PYTEST) --long

bench: install
	$(PY) -m benchmarks --csv output/bench.csv

lint: install
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(dir $(PY))clang-format --dry-run --Werror $(shell find csrc -type f)

docs: install
	$(PY) -m sphinx -q -W --keep-going -b html docs output/docs

linkcheck: install
	$(PY) -m sphinx -q -b linkcheck docs output/linkcheck

format: install
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .
	$(dir $(PY))clang-format -i $(shell find csrc -type f)

cuda-check: install
	$(PY) -m pip install --quiet -c constraints.txt nvidia-cuda-nvdisasm nvidia-cuda-cuobjdump
	$(PY) tools/check_cuda_build.py --output benchmarks/results/cuda_build.txt
	$(PY) tools/cuda_budget.py --output benchmarks/results/cuda_budget.txt

gpu-check: install
	tools/gpu_check.sh --python $(PY)

clean:
	rm -rf build ga_scope/*.so ga_scope/_build_record.json .venv/.installed
