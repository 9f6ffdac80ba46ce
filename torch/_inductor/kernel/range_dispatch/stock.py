"""Names of stock's ``custom_op.py`` that tuning itself does not use, for code that imports them.

Users' scripts and PyTorch's own tests import them from ``torch._inductor.kernel.custom_op``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, TYPE_CHECKING, TypedDict

from torch._inductor.kernel.range_dispatch.ranges import Range
from torch._ops import OpOverload


if TYPE_CHECKING:
    from torch._inductor.select_algorithm import ExternKernelChoice


class _Where(TypedDict):
    tensor_name: str
    dim: int


class DispatchOnConfig(_Where, total=False):
    """The type of ``dispatch_on``: the size that decides, and where the last range is measured."""

    range_upper_bound: int


@dataclass(frozen=True)
class RangeBounds(Range):
    """A range of sizes as stock has them: from 1, both ends included.

    >>> print(RangeBounds(1, 512))
    [1, 512]
    """

    def __post_init__(self) -> None:
        if self.start < 1:
            raise ValueError(f"a RangeBounds starts at 1 or above, got start={self.start}")
        super().__post_init__()


@dataclass(frozen=True, eq=False)
class ImplConfig:
    """An implementation with its parameters; two are equal if name and parameters are.

    >>> ImplConfig("f", max, {"k": 2}) == ImplConfig("f", min, {"k": 2})
    True
    >>> print(ImplConfig("f", max, {"k": 2}))
    f(k=2)
    """

    impl_name: str
    impl_func: Callable[..., Any] = field(repr=False)
    kwargs: dict[str, Any] = field(default_factory=dict)
    config_patches: dict[str, Any] = field(default_factory=dict, repr=False)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ImplConfig):
            return NotImplemented
        return (self.impl_name, self.kwargs) == (other.impl_name, other.kwargs)

    def __hash__(self) -> int:
        return hash((self.impl_name, frozenset(self.kwargs.items())))

    def __str__(self) -> str:
        given = ", ".join(f"{name}={self.kwargs[name]}" for name in sorted(self.kwargs))
        return f"{self.impl_name}({given})" if given else self.impl_name


@dataclass
class RangeImplGroup:
    """The ranges that one implementation serves, ascending.

    >>> group = RangeImplGroup(ImplConfig("f", max), [RangeBounds(9, 16)])
    >>> group.add_range(RangeBounds(1, 4))
    >>> print(group)
    f: [1, 4], [9, 16]
    """

    impl_config: ImplConfig
    ranges: list[RangeBounds] = field(default_factory=list)

    def add_range(self, range_bounds: RangeBounds) -> None:
        self.ranges = sorted([*self.ranges, range_bounds])

    impl_name = property(attrgetter("impl_config.impl_name"))
    impl_func = property(attrgetter("impl_config.impl_func"))
    impl_kwargs = property(attrgetter("impl_config.kwargs"))
    config_patches = property(attrgetter("impl_config.config_patches"))

    def __str__(self) -> str:
        return f"{self.impl_name}: {', '.join(map(str, self.ranges))}"


_fallback_choices: dict[OpOverload, ExternKernelChoice] = {}


def _create_fallback_choice(op_overload: OpOverload) -> ExternKernelChoice:
    """The choice that calls an op itself: one for each op, since they have global names.

    It takes the arguments of a call when it is bound to one, so that calls may differ in them.
    """
    from torch._inductor.select_algorithm import extern_kernels, ExternKernelChoice

    if op_overload not in _fallback_choices:
        wanted = name = re.sub(r"::|\.", "_", op_overload.name()) + "_fallback"
        number = 1
        while hasattr(extern_kernels, name):  # an op of this name was defined before, and deleted
            number += 1
            name = f"{wanted}_{number}"
        _fallback_choices[op_overload] = ExternKernelChoice(
            op_overload,
            name=name,
            has_out_variant=False,
            op_overload=op_overload,
            use_fallback_kernel=True,
        )
    return _fallback_choices[op_overload]
