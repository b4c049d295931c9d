"""The one part of the build that setup.cfg cannot say: the optional C extension."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "tidegate.datapath._maglev",
            ["datapath/maglev.c"],
            define_macros=[("Py_LIMITED_API", "0x030b0000")],
            py_limited_api=True,
            # Where no compiler is, the build goes on without it, and maglev.py fills tables in Python.
            optional=True,
        )
    ]
)
