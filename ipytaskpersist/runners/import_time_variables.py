"""Which environment variables are read when an interpreter starts or a library is imported.

A task for which one of these differs cannot be forked from an interpreter that has read it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase

PATTERNS = (
    # The interpreter, the C library, the locale, and where files of the user are.
    *("PYTHON*", "LD_*", "DYLD_*", "MALLOC_*", "GLIBC_*", "JE_MALLOC_*", "MIMALLOC_*", "TCMALLOC*"),
    *("LC_*", "LANG", "LANGUAGE", "LOCPATH", "HOME", "XDG_*", "VIRTUAL_ENV", "CONDA_*"),
    *("SSL_*", "OPENSSL_*", "IPYTHON*", "JUPYTER*"),
    # Threads of numerical libraries, and processors.
    *("OMP_*", "KMP_*", "GOMP_*", "MKL_*", "OPENBLAS_*", "GOTO_*", "BLIS_*", "VECLIB_*", "BLAS*"),
    *("NUMEXPR_*", "NUMBA_*", "RAYON_*", "TBB_*", "CUDA_*", "NVIDIA_*", "NCCL_*", "CUBLAS_*"),
    *("HIP_*", "ROCR_*", "HSA_*", "GPU_*", "ONEAPI_*", "XLA_*", "JAX_*"),
    # Libraries whose variables do not begin with the name of a package.
    *(
        "MPL*",
        "NO_COLOR",
        "FORCE_COLOR",
        "NPY_*",
        "TF_*",
        "PYTORCH_*",
        "HF_*",
        "ARROW_*",
        "SETUPTOOLS_*",
        "QT_*",
    ),
    *("DISPLAY", "WAYLAND_DISPLAY", "GDAL_*", "PROJ_*", "JAVA_HOME", "SPARK_*", "HADOOP_*"),
)
"""Patterns of names, as `fnmatch` reads them."""


def differing(
    one: Mapping[str, str], other: Mapping[str, str], packages: Collection[str]
) -> list[str]:
    """Return the names of such variables that differ.

    Those that begin with the name of an imported package count, too.
    """
    own = {package.upper() for package in packages}
    names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    return sorted(name for name in names if _is_read(name, own))


def _is_read(name: str, packages: Collection[str]) -> bool:
    begins = name.partition("_")[0]
    return begins in packages or any(fnmatchcase(name, pattern) for pattern in PATTERNS)
