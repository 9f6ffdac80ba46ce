python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target /tmp/site .whl/*.whl
export PYTHONPATH=/tmp/site PYTHONUNBUFFERED=1 TORCHINDUCTOR_CACHE_DIR=/tmp/ic
python3 -m pip install -q --no-index --no-deps --no-build-isolation .
(cd test/inductor && time python3 -c "import range_dispatch_common as c, torch._inductor.compile_fx, torch._inductor.select_algorithm; print(c.DEVICES)")
time timeout 400 python3 -m pytest -n 10 test/inductor -k "device_cuda or triton_op or cudagraphs or Capture" --ignore test/inductor/test_range_dispatch_overlay.py --ignore test/inductor/test_range_dispatch_property.py --ignore test/inductor/test_range_dispatch_pure.py --ignore test/inductor/test_range_dispatch_registration.py --ignore test/inductor/test_range_dispatch_landing.py --ignore test/inductor/test_range_dispatch_cli.py --ignore test/inductor/test_range_dispatch_newuser.py --ignore test/inductor/test_range_dispatch_benchmarks.py --show-capture=no --tb=short -p no:cacheprovider > $OUT/pytest.log 2>&1
echo pytest rc=$?; grep -E "^FAILED|^ERROR|passed|failed" $OUT/pytest.log | cut -c1-250
