"""The name under which range dispatch is asked for in ``TORCH_LOGS``, and nothing else.

PyTorch parses that variable at the end of its own import, when this patch is not there yet, and
refuses a name that it does not know. A name that can be imported it takes for a logger. So with
this module on the path ``TORCH_LOGS="+range_dispatch"`` is understood, and the patch, when it is
loaded, sees what was asked for (``torch/_inductor/kernel/range_dispatch/logs.py``). The module is
looked for and never imported.
"""
