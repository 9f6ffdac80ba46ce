"""Right answers only: what a candidate returns is compared with what the op itself returns.

A tolerance is one number for a dtype. For floating and complex values it is relative, to the
element or to the root mean square of the output, whichever is larger: elements near zero in a
sum of large terms are as inexact as the others. So are those in a row or a column of larger values,
as of a channel with a large scale: there its own root mean square counts. For integers it is an
absolute difference. A float32 output of float16 or bfloat16 tensors is no more exact than those:
whether what lies between was rounded depends on what was fused.
"""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._inductor.kernel.range_dispatch.call import BoundCall
from torch._inductor.kernel.range_dispatch.candidates import Candidate, invoke
from torch._inductor.kernel.range_dispatch.trace import first_line, flatten


log = logging.getLogger(__name__)

DEFAULT_TOLERANCES: Mapping[torch.dtype, float] = {
    torch.float64: 1e-8,
    torch.complex128: 1e-8,
    torch.float32: 1e-4,
    torch.complex64: 1e-4,
    torch.float16: 1e-2,
    torch.complex32: 1e-2,
    torch.bfloat16: 3e-2,
}
# Other floating dtypes have three bits of a fraction or fewer: one rounding apart is 1/8 or more.
_SMALL_FLOAT_TOLERANCE = 0.26
# Where matrix products of float32 may be computed in TensorFloat32, which has ten bits.
_TENSOR_FLOAT_TOLERANCE = 1e-2
_NARROW = {torch.float16, torch.bfloat16}
_WIDE = (torch.float32, torch.float64)
# Elements that are compared at a time, so that the comparison needs little memory.
_CHUNK = 1 << 22
# Times the tolerance, for the same computation compiled and not.
_LOOSE = 10


@dataclass(frozen=True)
class Mismatch:
    """How far an output is from the op's.

    Attributes:
        output: Index of the output.
        absolute: Largest absolute error; NaN where one of the two is NaN and the other is not.
        relative: Largest error relative to the op's element.
    """

    output: int
    absolute: float
    relative: float

    def __str__(self) -> str:
        return (
            f"output {self.output} differs from the op's, largest absolute error "
            f"{self.absolute:.3g}, largest relative error {self.relative:.3g}"
        )


def tolerance(dtype: torch.dtype, given: Mapping[torch.dtype, float]) -> float:
    """The tolerance for ``dtype``: the user's, or the default.

    >>> tolerance(torch.int64, {}), tolerance(torch.float16, {torch.float16: 0.1})
    (0.0, 0.1)
    """
    if dtype in given:
        return given[dtype]
    if not (dtype.is_floating_point or dtype.is_complex):
        return 0.0
    if dtype is torch.float32 and torch.get_float32_matmul_precision() != "highest":
        return _TENSOR_FLOAT_TOLERANCE
    return DEFAULT_TOLERANCES.get(dtype, _SMALL_FLOAT_TOLERANCE)


def tolerances_of(
    tensors: Iterable[Any], given: Mapping[torch.dtype, float]
) -> dict[torch.dtype, float]:
    """The user's tolerances, and those for results of ``tensors`` that are wider than they are.

    >>> tolerances_of([torch.zeros(1, dtype=torch.bfloat16)], {})[torch.float32]
    0.03
    """
    narrow = {t.dtype for t in tensors if isinstance(t, torch.Tensor)} & _NARROW
    least = max((tolerance(dtype, given) for dtype in narrow), default=0.0)
    return {dtype: max(tolerance(dtype, given), least) for dtype in _WIDE} | dict(given)


def find_mismatch(
    actual: Sequence[torch.Tensor],
    expected: Sequence[torch.Tensor],
    given: Mapping[torch.dtype, float],
    scales: Sequence[float] | None = None,
) -> Mismatch | None:
    """The first output that is further from the expected one than the tolerances allow.

    Args:
        actual: The outputs.
        expected: The op's.
        given: The user's tolerances by dtype.
        scales: ``scale`` of each of the expected ones, where that is known already.
    """
    for i, (ours, theirs) in enumerate(zip(actual, expected, strict=True)):
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            return Mismatch(i, math.nan, math.nan)
        allowed = tolerance(theirs.dtype, given)
        typical = scale(theirs) if scales is None else scales[i]
        if _surely_close(ours, theirs, allowed * typical):
            continue
        absolute, relative, fits = _compare(ours, theirs, allowed, typical)
        if not fits and not _fits_its_lines(ours, theirs, allowed):
            return Mismatch(i, absolute, relative)
    return None


def scale(expected: torch.Tensor) -> float:
    """The root mean square of the finite elements of an inexact output, 0 for others."""
    if not _inexact(expected):
        return 0.0
    total, count = 0.0, 0
    for part in _chunks(expected):
        square = float(torch.linalg.vector_norm(_narrow(part), dtype=_wide_dtype(part))) ** 2
        size = part.numel()
        if not math.isfinite(square):
            sizes = _wide(part).abs()
            sizes = sizes[sizes.isfinite()]
            square, size = float(sizes.square().sum()), sizes.numel()
        total += square
        count += size
    return math.sqrt(total / count) if count else 0.0


def _surely_close(ours: torch.Tensor, theirs: torch.Tensor, limit: float) -> bool:
    """Whether no element differs by more than ``limit``: quick, and for most outputs all it takes.

    What it can't tell, as of infinities, it denies.
    """
    if not _inexact(theirs):
        return torch.equal(ours, theirs)
    return all(
        # The difference itself is rounded.
        bool((_narrow(a) - _narrow(b)).abs().max() <= 0.9 * limit)
        for a, b in zip(_chunks(ours), _chunks(theirs), strict=True)
    )


def _compare(
    ours: torch.Tensor, theirs: torch.Tensor, allowed: float, typical: float
) -> tuple[float, float, bool]:
    """The largest absolute and relative errors, and whether all are within ``allowed``."""
    inexact = _inexact(theirs)
    if theirs.dtype is torch.float4_e2m1fn_x2:
        ours, theirs = ours.view(torch.uint8), theirs.view(torch.uint8)
    absolute = relative = 0.0
    fits = True
    for a, b in zip(_chunks(ours), _chunks(theirs), strict=True):
        same = a == b
        if inexact:
            a, b = _wide(a), _wide(b)
            same = (a == b) | (a.isnan() & b.isnan())
        if bool(same.all()):
            continue
        a, b = (_wide(part[~same]) for part in (a, b))
        error, size = (a - b).abs(), b.abs()
        limit = allowed * size.clamp(min=typical) if inexact else torch.full_like(size, allowed)
        # An error that is not finite is one of NaN or infinity against another value.
        fits = fits and bool(((error <= limit) & error.isfinite()).all())
        absolute = _larger(absolute, float(error.max()))
        relative = _larger(relative, float((error / size).max()))
    return absolute, relative, fits


def _fits_its_lines(ours: torch.Tensor, theirs: torch.Tensor, allowed: float) -> bool:
    """Whether each error is within ``allowed`` of its element, its row or its column.

    A column are the elements at one place of the last dimension.
    """
    if not _inexact(theirs) or theirs.dim() < 2 or not theirs.numel():
        return False
    a, b = (tensor.detach().reshape(-1, tensor.shape[-1]) for tensor in (ours, theirs))
    rows = max(1, _CHUNK // b.shape[1])
    squares = sum(_finite_squares(part).sum(0) for part in b.split(rows))
    columns = (squares / b.shape[0]).sqrt()
    for one, other in zip(a.split(rows), b.split(rows), strict=True):
        one, other = _wide(one), _wide(other)
        line = _finite_squares(other).mean(1, keepdim=True).sqrt()
        error = (one - other).abs()
        limit = allowed * torch.maximum(other.abs(), torch.maximum(line, columns))
        same = (one == other) | (one.isnan() & other.isnan())
        if not bool((same | ((error <= limit) & error.isfinite())).all()):
            return False
    return True


def _finite_squares(values: torch.Tensor) -> torch.Tensor:
    sizes = _wide(values).abs()
    return torch.where(sizes.isfinite(), sizes, torch.zeros_like(sizes)).square()


def _inexact(tensor: torch.Tensor) -> bool:
    """Whether values are rounded. Two float4 values in a byte are compared as that byte."""
    if tensor.dtype is torch.float4_e2m1fn_x2:
        return False
    return tensor.dtype.is_floating_point or tensor.dtype.is_complex


def _larger(one: float, other: float) -> float:
    return math.nan if math.isnan(one) or math.isnan(other) else max(one, other)


def _wide(values: torch.Tensor) -> torch.Tensor:
    return values.to(_wide_dtype(values))


def _wide_dtype(values: torch.Tensor) -> torch.dtype:
    return torch.complex128 if values.dtype.is_complex else torch.float64


def _narrow(values: torch.Tensor) -> torch.Tensor:
    """``values`` as they are, or in the next dtype that there is arithmetic for."""
    if values.dtype is torch.complex32:
        return values.to(torch.complex64)
    return values.float() if values.dtype.itemsize == 1 else values


def _chunks(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tensor.detach().reshape(-1).split(_CHUNK) if tensor.numel() else ()


class Check:
    """Compares candidates' outputs at one probe with the op's own, which it computes here.

    Args:
        call: The call that is tuned.
        inputs: Real operands at the probe.
        tolerances: The user's, by dtype; None turns the comparison off.
    """

    def __init__(
        self,
        call: BoundCall,
        inputs: Sequence[Any],
        tolerances: Mapping[torch.dtype, float] | None,
    ) -> None:
        self._call = call
        self._inputs = inputs
        self._tolerances = tolerances_of(inputs, tolerances or {})
        self._expected: list[torch.Tensor] | None = None
        self._scales: list[float] = []
        self._repeats: bool | None = None
        self._of_op: list[torch.Tensor] = []
        if tolerances is None:
            return
        try:
            self._of_op = self._run_op()
            self._expected = list(call.finish(self._of_op, inputs))
            self._scales = [scale(output) for output in self._expected]
        except Exception as error:  # an op that cannot be run leaves nothing to compare with
            log.info("%s: answers are not compared: the op itself: %s", call.op, first_line(error))

    def __getstate__(self) -> dict[str, Any]:
        """For another process, where the op of this graph can't be run."""
        if self._expected is not None:
            self._op_repeats_itself()
        return {**self.__dict__, "_call": None, "_inputs": None}

    def fault(
        self, outputs: Sequence[torch.Tensor], alone: Callable[[], Any] | None = None
    ) -> Mismatch | None:
        """How ``outputs`` differ from the op's, beyond the tolerances.

        Args:
            outputs: What a candidate returns; with the op's consumers in its graph, what they do.
            alone: Runs the candidate without being compiled, and without the consumers. They may
                make much of a difference that is tolerated (a rounding to int8, an exponential),
                so then it is what the candidate itself returns that counts.
        """
        if self._expected is None:
            return None
        found = find_mismatch(outputs, self._expected, self._tolerances, self._scales)
        if found is None or not self._op_repeats_itself():
            return None
        return found if alone is None else self._fault_of(alone, outputs)

    def _fault_of(
        self, alone: Callable[[], Any], outputs: Sequence[torch.Tensor]
    ) -> Mismatch | None:
        """As ``fault``, by the candidate's own answer, and by what the consumers make of that."""
        answer: list[Any] = []
        flatten(alone(), answer)
        scales = [scale(output) for output in self._of_op]
        found = find_mismatch(answer, self._of_op, self._tolerances, scales)
        if found is not None:
            return found
        finished = list(self._call.finish(answer, self._inputs))
        loose = {tensor.dtype: self._loose(tensor.dtype) for tensor in finished}
        return find_mismatch(outputs, finished, loose, [scale(output) for output in finished])

    def _loose(self, dtype: torch.dtype) -> float:
        """For the same computation, compiled and not: what was rounded twice may be far apart."""
        return max(_LOOSE * tolerance(dtype, self._tolerances), 0 if dtype.is_floating_point else 1)

    def _run_op(self) -> list[torch.Tensor]:
        op = Candidate("", None, {}, {}, ())
        leaves: list[Any] = []
        flatten(invoke(op, self._call, self._inputs), leaves)
        return leaves

    def _op_repeats_itself(self) -> bool:
        """Whether the op gives the same answer twice; one that draws random numbers does not."""
        if self._repeats is None:
            assert self._expected is not None
            answer = self._call.finish(self._run_op(), self._inputs)
            again = find_mismatch(answer, self._expected, self._tolerances, self._scales)
            self._repeats = again is None
            if again is not None:
                log.info("%s: answers are not compared: it differs from itself", self._call.op)
        return self._repeats


def poison(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` with all of its memory overwritten by NaN, or by an unlikely value."""
    if tensor.dtype is torch.bool:
        return tensor.fill_(True)
    inexact = tensor.dtype.is_floating_point or tensor.dtype.is_complex
    tensor.untyped_storage().fill_(255 if inexact else 0xA5)
    return tensor


@contextlib.contextmanager
def poisoned_allocations(function: Callable[..., Any]) -> Iterator[None]:
    """Poison what the generated module that ``function`` belongs to allocates.

    An element that a candidate leaves unwritten then shows, whatever the allocator hands out.
    """
    scope = getattr(function, "__func__", function).__globals__
    allocators = {
        name: value
        for name, value in scope.items()
        if name.startswith("empty_strided_") and callable(value)
    }

    def poisoning(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        return lambda *args: poison(allocate(*args))

    scope.update({name: poisoning(allocate) for name, allocate in allocators.items()})
    try:
        yield
    finally:
        scope.update(allocators)


@contextlib.contextmanager
def filled_allocations() -> Iterator[None]:
    """Have PyTorch fill what it allocates, with NaN or the largest integer.

    This is for what a custom op allocates, which runs code of its own. PyTorch does it in
    deterministic mode alone, so that is on inside; nothing raises for it.
    """
    mode = (torch._C._get_deterministic_algorithms(), _warns_only())
    fills = torch.utils.deterministic.fill_uninitialized_memory
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of operators that are not deterministic
        torch._C._set_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = True
        try:
            yield
        finally:
            torch._C._set_deterministic_algorithms(mode[0], warn_only=mode[1])
            torch.utils.deterministic.fill_uninitialized_memory = fills


def _warns_only() -> bool:
    return bool(torch._C._get_deterministic_algorithms_warn_only())
