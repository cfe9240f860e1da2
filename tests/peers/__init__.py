"""The test suites of IPython, ipykernel and joblib, with the extension loaded and without."""
