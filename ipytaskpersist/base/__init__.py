"""The foundation: records, paths, processes, patches, redaction."""
