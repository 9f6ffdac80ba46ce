# Owner(s): ["module: inductor"]
"""What registers nothing is compiled as if the patch were not there.

Processes of their own compile the same models: with stock's module, with the patch, and with the
patch and a registration that the models do not use. The generated code is compared byte by byte.
"""

import functools
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

from range_dispatch_common import DEVICES, HAS_CPU, HAS_GPU, stock_custom_op
from range_dispatch_scratch import scratch_folder

import torch
from torch._inductor.kernel import custom_op
from torch._inductor.test_case import run_tests, TestCase
from torch.testing._internal.common_utils import instantiate_parametrized_tests, parametrize


try:
    from pytest import mark

    on_one_worker = mark.xdist_group("range_dispatch_unchanged")  # or each makes the processes
except ImportError:

    def on_one_worker(cls):
        return cls


INSTALLED = Path(torch.__file__).resolve().parent
OURS = Path(custom_op.__file__).resolve()
STOCK = stock_custom_op()
MODES = ("stock", "patched", "registered")

# Runs in a process of its own: MODE, DEVICE, the two versions of custom_op.py, the output file.
SCRIPT = """
    import importlib.util
    import json
    import pathlib
    import sys
    import zipfile

    mode, device, stock, ours, target = sys.argv[1:]
    MODULE = "torch._inductor.kernel.custom_op"
    PACKAGE = "torch._inductor.kernel.range_dispatch"


    class Finder:
        def find_spec(self, name, path=None, target=None):
            folder = pathlib.Path(ours).parent / "range_dispatch"
            if name == MODULE:
                file = stock if mode == "stock" else ours
                return importlib.util.spec_from_file_location(name, file)
            if name == PACKAGE and mode != "stock":
                return importlib.util.spec_from_file_location(
                    name, folder / "__init__.py", submodule_search_locations=[str(folder)]
                )


    sys.meta_path.insert(0, Finder())

    import torch
    from torch._dynamo.utils import counters
    from torch._inductor import config
    from torch._inductor.kernel import custom_op
    from torch._inductor.utils import run_and_get_code
    from torch.nn.attention.flex_attention import flex_attention

    assert custom_op.__file__ == (stock if mode == "stock" else ours), custom_op.__file__
    if mode == "registered":

        @torch.library.custom_op("unchanged::other", mutates_args=())
        def other(x: torch.Tensor) -> torch.Tensor:
            return x + 1

        other.register_fake(lambda x: torch.empty_like(x))
        custom_op.register_custom_op_autotuning(
            other, configs=[custom_op.CustomOpConfig(lambda x: 1 + x)]
        )


    @torch.library.custom_op("unchanged::plain", mutates_args=())
    def plain(x: torch.Tensor, n: int = 1) -> torch.Tensor:
        return x + n


    plain.register_fake(lambda x, n=1: torch.empty_like(x))


    def cond_on_data(x, y):
        return torch.cond(x.sum() > 0, lambda x: x.sin() @ y, lambda x: x.cos() @ y, (x,))


    def cond_on_size(x, y):
        return torch.cond(
            x.shape[0] <= 8,
            lambda x: x * 2,
            lambda x: torch.cond(x.shape[0] <= 16, torch.relu, torch.sin, (x,)),
            (x,),
        )


    def fused(x, y):
        return torch.nn.functional.layer_norm(x, x.shape[-1:]).relu() @ y + x.sum(1, keepdim=True)


    def calls_an_op(x, y):
        return plain(x * 2, 3) + plain(x, n=2)


    def attention(q, k, v):
        return flex_attention(q, k, v, score_mod=lambda s, b, h, i, j: s + (i - j))


    def inputs(rows=12, columns=32):
        torch.manual_seed(0)
        return torch.randn(rows, columns, device=device), torch.randn(columns, 16, device=device)


    # Where a choice is left to timings, two runs may differ: one backend has one choice.
    one_choice = {
        "max_autotune": True,
        "max_autotune_gemm_backends": "ATEN",
    }
    cases = {
        "cond_on_data": (cond_on_data, False, {}),
        "cond_on_size": (cond_on_size, True, {}),
        "fused": (fused, False, {}),
        "fused_dynamic": (fused, True, {}),
        "max_autotune": (lambda x, y: torch.mm(x, y).relu(), False, one_choice),
        "max_autotune_dynamic": (lambda x, y: torch.addmm(y[0], x, y), True, one_choice),
        "op": (calls_an_op, False, {}),
        "op_dynamic": (calls_an_op, True, {}),
        "attention": (attention, False, {}),
    }
    found = {}
    for name, (function, dynamic, settings) in cases.items():
        torch._dynamo.reset()
        args = inputs()
        if name == "attention":
            args = [torch.randn(1, 2, 128, 16, device=device) for _ in range(3)]
        with config.patch({"fx_graph_cache": False, **settings}):
            compiled = torch.compile(function, dynamic=dynamic)
            result, codes = run_and_get_code(compiled, *args)
        torch.testing.assert_close(result, function(*args), rtol=1e-3, atol=1e-3)
        found[name] = codes

    # AOTInductor's sources, without compiling them.
    class Model(torch.nn.Module):
        def forward(self, x, y):
            return x.sin() * 2 + y[0, 0]  # of several buffers, stock's order varies on 2.11

    rows = torch.export.Dim("rows", min=2, max=64)
    program = torch.export.export(Model(), inputs(), dynamic_shapes={"x": {0: rows}, "y": None})
    package = torch._inductor.aoti_compile_and_package(
        program,
        package_path=target + ".pt2",
        inductor_configs={"aot_inductor.package_cpp_only": True},
    )
    with zipfile.ZipFile(package) as archive:
        sources = [n for n in sorted(archive.namelist()) if n.endswith((".cpp", ".h"))]
        texts = [archive.read(n).decode() for n in sources]
        # Commands are appended each time that a process finds the file in the cache folder.
        texts = [text.partition("// Compile cmd")[0].rstrip() for text in texts]
        found["aoti"] = texts

    # The keys of the compile cache: what one process has stored, the next one finds.
    torch._dynamo.reset()
    counters.clear()
    with config.patch(fx_graph_cache=True):
        torch.compile(fused)(*inputs(7))
    found["cache"] = dict(counters["inductor"])
    pathlib.Path(target).write_text(json.dumps(found))
"""
CODES = (
    "cond_on_data",
    "cond_on_size",
    "fused",
    "fused_dynamic",
    "max_autotune",
    "max_autotune_dynamic",
    "op",
    "op_dynamic",
    "attention",
    "aoti",
)


@functools.cache
def scratch():
    return scratch_folder("unchanged")


@functools.cache
def compiled(mode, device):
    """What the process in ``mode`` has generated, by case. All share one cache folder."""
    if mode != MODES[0]:
        compiled(MODES[0], device)  # what stock stores, the others may find
    script = scratch() / "compile.py"
    script.write_text(textwrap.dedent(SCRIPT))
    target = scratch() / f"{mode}-{device}.json"
    hidden = ("TORCH_RANGE_DISPATCH", "PYTHONPATH", "TORCHINDUCTOR_")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    environ |= {
        "PYTHONPATH": str(INSTALLED.parent),
        "PYTHONHASHSEED": "0",  # some orders in the code are those of sets
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
        "TORCHINDUCTOR_CACHE_DIR": str(scratch() / "cache"),
        "TORCHINDUCTOR_AUTOGRAD_CACHE": "0",
        "TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS": "0",
    }
    done = subprocess.run(
        [sys.executable, str(script), mode, device, str(STOCK), str(OURS), str(target)],
        env=environ,
        cwd=scratch(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    if done.returncode:
        raise AssertionError(done.stderr[-4000:])
    return json.loads(target.read_text())


@on_one_worker
class UnchangedTest(TestCase):
    def setUp(self):
        super().setUp()
        if STOCK.samefile(OURS):
            self.skipTest("stock's module is not here: this PyTorch was built with the patch")

    @parametrize("device", DEVICES)
    @parametrize("case", CODES)
    @parametrize("mode", MODES[1:])
    def test_generated_code_is_the_same(self, device, case, mode):
        stock, ours = compiled("stock", device)[case], compiled(mode, device)[case]
        self.assertGreater(len("".join(stock)), 500)
        self.assertTrue(stock == ours, f"{case}: the code differs")

    @parametrize("device", DEVICES)
    def test_cases_are_what_they_are_meant_to_be(self, device):
        codes = {
            case: "\n".join(codes)
            for case, codes in compiled("stock", device).items()
            if case in CODES
        }
        self.assertRegex(codes["cond_on_size"], r"<= ?8")
        self.assertIn("true_graph", codes["cond_on_data"])
        self.assertIn("unchanged.plain", codes["op"])
        self.assertIn("extern_kernels.mm", codes["max_autotune"])
        self.assertIn("AOTInductorModel", codes["aoti"])

    @parametrize("device", DEVICES)
    def test_compile_cache_keys_are_the_same(self, device):
        counts = {mode: compiled(mode, device)["cache"] for mode in MODES}
        self.assertEqual(counts["stock"].get("fxgraph_cache_miss"), 1)
        self.assertEqual(counts["patched"].get("fxgraph_cache_hit"), 1)
        # A registration changes the keys, whatever it is about.
        self.assertEqual(counts["registered"].get("fxgraph_cache_miss"), 1)


instantiate_parametrized_tests(UnchangedTest)

if __name__ == "__main__":
    if HAS_CPU or HAS_GPU:
        run_tests()
