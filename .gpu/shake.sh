python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target /tmp/site .whl/*.whl
export PYTHONPATH=/tmp/site PYTHONUNBUFFERED=1 TORCHINDUCTOR_CACHE_DIR=/tmp/ic
python3 -m pip install -q --no-index --no-deps --no-build-isolation .
(cd test/inductor && time python3 -c "import range_dispatch_common as c, torch._inductor.compile_fx, torch._inductor.select_algorithm; print(c.DEVICES)")
time timeout 150 python3 -m pytest -n 14 test/inductor/test_range_dispatch_region.py test/inductor/test_range_dispatch_cpp.py test/inductor/test_range_dispatch_cudagraphs.py test/inductor/test_range_dispatch_tuning.py -k "device_cuda or cudagraphs or Cuda or Gpu or Capture or Illegal" --show-capture=no --tb=short -p no:cacheprovider > $OUT/pytest.log 2>&1
echo pytest rc=$?; tail -25 $OUT/pytest.log | cut -c1-300
time timeout 170 python3 tools/benchmarks/end_to_end.py --workloads rms_norm skinny_matmul --sizes 1 17 1024 4097 --json $OUT/shake.jsonl --logs $OUT/logs --time-limit 150 > $OUT/shake.log 2>&1; echo rc=$?; tail -60 $OUT/shake.log | cut -c1-200
