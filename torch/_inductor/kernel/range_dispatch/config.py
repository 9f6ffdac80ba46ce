"""Knobs of range dispatch, in the style of ``torch._inductor.config``.

``from torch._inductor.kernel.range_dispatch import config`` and set an attribute, or use
``config.patch(name=value)`` as a context manager or decorator. An environment variable named
beside a knob sets its default.
"""

import os
import sys

from torch.utils._config_module import install_config_module


# Test switch, on every release: True makes an implementation win over the op itself wherever one
# can be used, whatever it returns; False makes the op itself win; None lets the measurements
# decide. Where the release has torch._inductor.config.test_configs.force_custom_op_decomposition,
# that works as well.
force_decomposition: bool | None = None

# Test switch, on every release: ranges with the same winner stay apart, so that a dispatch is
# generated even if one implementation wins everywhere. Where the release has
# torch._inductor.config.test_configs.force_no_impl_grouping, that works as well.
force_no_merge: bool = False

# Rounds of the tuning grid. In each round every candidate is timed once at the probe, in turn, so
# that a drift of the machine meets all of them; the median over the rounds counts.
tuning_rounds: int = int(os.environ.get("TORCH_RANGE_DISPATCH_ROUNDS", "5"))

# Milliseconds that one timing of one candidate may take. One that runs longer is called three times
# a round on a CPU, and once in a CUDA graph.
tuning_budget_ms: float = float(os.environ.get("TORCH_RANGE_DISPATCH_BUDGET_MS", "3"))

# Relative difference in time below which two candidates count as equally fast; where the spread of
# the measurements is larger, that counts. A range splits off from its neighbour only for more.
noise: float = float(os.environ.get("TORCH_RANGE_DISPATCH_NOISE", "0.02"))

# A branch of a dispatch is generated for its own range, a candidate is first measured as generated
# for all sizes. Where another candidate's time is within this fraction of the winner's, those whose
# code for the branch is other code are measured again as they will be generated, in one row with
# the rest of them; on a GPU also a winner whose branch has other kernels. What is slower so is
# generated as for all sizes. 0 turns it off.
remeasure_margin: float = float(os.environ.get("TORCH_RANGE_DISPATCH_REMEASURE_MARGIN", "0.1"))

# How many candidates may be generated again for that, each for one branch, in the tuning of one
# call. The closest ranges come first.
remeasure_most: int = int(os.environ.get("TORCH_RANGE_DISPATCH_REMEASURE_MOST", "6"))

# Under max-autotune Inductor takes a template and its blocks for a matmul by timings at one size.
# So a branch that has one is generated in parts, for some of its sizes each: those down to its
# probe over this factor, from there down to that over the factor again, and so on to 16. In
# Python's wrapper, parts that come out the same are one. It bounds how far a size is from the one
# that its template was chosen at. 0 turns it off.
template_parts: int = int(os.environ.get("TORCH_RANGE_DISPATCH_TEMPLATE_PARTS", "4"))

# Where all branches compute each element by itself, over the same elements and from the same
# tensors, compute them in one kernel that compares the size, if that measures no slower at any
# probe. There is no `if` in the generated wrapper then, unless force_no_merge, or stock's switch
# for that, asks for one.
unified_pointwise: bool = os.environ.get("TORCH_RANGE_DISPATCH_UNIFIED_POINTWISE") == "1"

# A candidate that took more than this many times the fastest one's time in two rounds is clearly
# out, and is not timed in the others. With every further round the distance from 1 halves.
early_stop: float = float(os.environ.get("TORCH_RANGE_DISPATCH_EARLY_STOP", "2"))

# Seconds that one call of a candidate may take at a probe, kernels compiled; one that takes longer
# is out for that range. It is not interrupted: a kernel that hangs, hangs. In a subprocess it is
# ended when there was no sign of life from it for five times as long.
time_limit_s: float = float(os.environ.get("TORCH_RANGE_DISPATCH_TIME_LIMIT_S", "10"))

# How many of the op's neighbours in the graph may move into the branches of a dispatch, to fuse
# there with what runs in each. The time of compiling grows with branches x neighbours; 0 leaves all
# of them outside.
region_nodes: int = int(os.environ.get("TORCH_RANGE_DISPATCH_REGION_NODES", "64"))
# Measure in a subprocess, so that a candidate that reads memory that is not its own, aborts or
# hangs can't take this process along. It is out then, everywhere or, if it hung, for that range.
#
# What it costs: on a CPU a fork for each row of the grid, some milliseconds. On a GPU one new
# interpreter, which takes as long to start as importing torch and the user's main module does, a
# context of its own on the device, and the inputs copied there through a file; where a candidate
# ends it, it is started again. What a candidate needs there must be defined by importing the main
# module, outside of `if __name__ == "__main__"`, and compiling must be inside. Where that is not
# so, and in a daemonic process, which may start no other, nothing is measured, with one warning,
# and the op itself runs.
measure_in_subprocess: bool = os.environ.get("TORCH_RANGE_DISPATCH_SUBPROCESS") == "1"

# Whether what was measured is kept, in memory and in files, and used again; see records.py.
use_records: bool = os.environ.get("TORCH_RANGE_DISPATCH_USE_RECORDS", "1") == "1"

# A folder for records beside Inductor's cache directory, and looked up before it.
records_folder: str | None = os.environ.get("TORCH_RANGE_DISPATCH_RECORDS") or None

# Measure anew whatever the files say, once in this process; what is measured replaces it there.
retune: bool = os.environ.get("TORCH_RANGE_DISPATCH_RETUNE") == "1"

# Never benchmark: the plan comes from the records, or else the op itself runs. Also in effect under
# torch.use_deterministic_algorithms(True) and torch._inductor.config.deterministic.
deterministic: bool = os.environ.get("TORCH_RANGE_DISPATCH_DETERMINISTIC") == "1"

# Progress of tuning on the standard error: None shows it where that is a terminal, True everywhere,
# False nowhere.
progress: bool | None = {"0": False, "1": True}.get(
    os.environ.get("TORCH_RANGE_DISPATCH_PROGRESS", "")
)

# Seed of the generated benchmark inputs. The global generators are neither read nor advanced.
input_seed: int = 0

# Not a knob: a hash of everything registered, set by fingerprint.publish(). It stands here so that
# Inductor's compile caches, which hash config modules, see a changed registration.
registrations: str = ""


# What Inductor's compile caches are not to tell apart.
_cache_config_ignore_prefix: list[str] = ["progress"]


# The knobs above become attributes of a config module, with patch(), save and load.
install_config_module(sys.modules[__name__])
