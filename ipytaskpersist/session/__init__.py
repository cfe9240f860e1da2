"""The tasks of this kernel: settings, launching, finding, waiting, results."""
