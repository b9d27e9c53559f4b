# Two commands do everything on a fresh machine: `make demo` and `make test`. Both create .venv first, once.
PYTHON ?= python3
BIN := .venv/bin
DEMO_MIMG ?= 0.06
DEMO_CRES ?= 1,1
STAMP := .venv/.installed

.PHONY: venv demo test test-slow test-portable margins lint format bench clean

venv: $(STAMP)

$(STAMP): requirements.txt requirements-dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	# Its functions of features check ours; what it needs to read images would replace torch by another build.
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps torch-fidelity==0.4.0
	touch $(STAMP)

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 -m "not slow"

test-slow: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadfile -m slow

# The golden tests as two other processors compute them: torch, oneDNN, MKL, numpy and its BLAS have a switch each. The
# cases also come in another order and without the first of each kind, because another set of golden files may.
SSE := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE OPENBLAS_CORETYPE=Nehalem \
    NPY_DISABLE_CPU_FEATURES="X86_V3 X86_V4"
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_CBWR=AVX2 OPENBLAS_CORETYPE=Haswell \
    NPY_DISABLE_CPU_FEATURES="X86_V4"
GOLDEN := -q -m "golden and not slow" --margins

test-portable: $(STAMP)
	$(SSE) OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE FEWSTEP_GOLDEN_CASES=reversed $(BIN)/pytest $(GOLDEN)
	$(AVX2) OMP_NUM_THREADS=1 FEWSTEP_GOLDEN_CASES=fewer $(BIN)/pytest $(GOLDEN) -n 2

# How near every comparison of the suite is to its tolerance, on the two processors of test-portable.
margins: $(STAMP)
	$(SSE) OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 -m "not slow" --margins
	$(AVX2) OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 -m "not slow" --margins

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The main job on real data, as a list of the commands a user would type. Ends in runs/demo/index.html.
DEMO := runs/demo
NET = $$(ls $(DEMO)/train/network-snapshot-*.pkl | tail -1)

demo: $(STAMP)
	rm -rf $(DEMO)
	$(BIN)/python dataset_tool.py --source=digits --dest=$(DEMO)/digits.zip
	$(BIN)/python train.py --outdir=$(DEMO)/train --nosubdir --data=$(DEMO)/digits.zip --cond=1 --seed=0 \
	    --cbase=32 --cres=$(DEMO_CRES) --num-blocks=2 --batch=128 --duration=$(DEMO_MIMG) --lr=2e-3 --lr-rampup=0.01 \
	    --ema=0.01 --ema-rampup=0.1 --dropout=0 --augment=0 --tick=4 --snap=100
	$(BIN)/python fid.py ref --data=$(DEMO)/digits.zip --features=pixels --dest=$(DEMO)/digits-pixels.npz
	$(BIN)/python generate.py --network=$(NET) --calibrate=3,4,8,10,5 --num-warmup=64 --seeds=0-63 \
	    --save-schedule=$(DEMO)/demo.json --grid=$(DEMO)/calibrated-5.png
	$(BIN)/python generate.py --network=$(NET) --schedule=$(DEMO)/demo.json --nfe=3 --seeds=0-63 \
	    --grid=$(DEMO)/calibrated-3.png
	$(BIN)/python generate.py --network=$(NET) --seeds=0-7 --steps=12 --save-traj=$(DEMO)/trajectory.npz
	$(BIN)/python analyze.py compare --network=$(NET) --outdir=$(DEMO) --nfe=3,4,5,8,10,35 --num=128 \
	    --ref=$(DEMO)/digits-pixels.npz --num-fid=1797 --solvers=edm,euler,ipndm \
	    --schedule=$(DEMO)/demo.json
	$(BIN)/python analyze.py trajectory $(DEMO)/trajectory.npz --outdir=$(DEMO)
	$(BIN)/python analyze.py curve $(DEMO)/train --outdir=$(DEMO)
	cp $$(ls $(DEMO)/train/samples-*.png | tail -1) $(DEMO)/classes.png
	$(BIN)/python analyze.py page $(DEMO) --title="Fewstep demo: 8x8 digits" \
	    --caption=classes.png="Samples of the trained network, one class per row (EDM sampler, 35 evaluations)." \
	    --caption=calibrated-3.png="64 samples in 3 network evaluations each (calibrated solver)." \
	    --caption=calibrated-5.png="64 samples in 5 network evaluations each (calibrated solver)."

bench: $(STAMP)
	$(BIN)/python -m bench.train --preset=digits
	$(BIN)/python -m bench.sample --preset=digits

clean:
	rm -rf runs datasets samples
