"""The extension of the Jupyter server: it answers pages from the store, without a kernel."""
