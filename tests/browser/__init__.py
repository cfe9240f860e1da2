"""The extension in a real JupyterLab and a real Notebook 7, in a real browser."""
