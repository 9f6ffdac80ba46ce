export PYTHONUNBUFFERED=1 TORCHINDUCTOR_CACHE_DIR=/tmp/ic
python3 -m pip install -q --no-index --no-deps --no-build-isolation .
timeout 400 python3 tools/benchmarks/end_to_end.py --json $OUT/e2e.jsonl --chart $OUT/e2e.svg --logs /tmp/logs --rivals ours python single eager --time-limit 370 > $OUT/e2e.log 2>&1; echo rc=$?; tail -150 $OUT/e2e.log | cut -c1-200
