"""Range dispatch: one compiled graph that runs the fastest implementation at every size.

The machinery behind ``torch._inductor.kernel.custom_op``, one idea a file, in the order in
which an op meets them:

- ``registration``  what a user asked for, checked before anything is compiled
- ``call``          one call of the op in the graph being lowered, bound to its schema
- ``candidates``    what competes: an implementation, its parameters, its identity
- ``trace``         the trace of a candidate, whose outputs fit those of the op
- ``ranges``        split points, ranges, merging
- ``inputs``        benchmark inputs for one point of the dispatch space
- ``grid``          the grid range x candidate: from the records, or measured
- ``signature``     the key of a call in the records; ``records``: memory and files
- ``tuner``         one probe: compile, check, measure; ``benchmark_module``, ``compiling``,
                    ``verify``, ``timing``
- ``choosing``      from measurements to winners
- ``fingerprint``   what makes Inductor's compile caches tell registrations apart
- ``dispatch``      the nested ``torch.cond`` for the merged ranges, and its inlining
- ``ir``            the flat n-ary dispatch node and its code generation
- ``plan``          what was measured and decided: text and JSON; ``page``, ``chart``: to look at
- ``report``        the plans of a process; ``source``: where they belong, ``saved``: those on disk
- ``progress``      how far a tuning has come; ``logs``: where plans are sent
- ``profiling``     a profile names the branch that ran
- ``archive``       records moved between folders, for the command line
- ``config``        the knobs
- ``stock``         names of stock's module that code may import, and nothing here uses
- ``compat``        the differences between supported PyTorch releases

Nothing is imported here: the pure parts can be used without Inductor.
"""

__version__ = "0.1.0"
