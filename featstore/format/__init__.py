"""The format on disk (docs/format.md): manifest, fields, views, sample ids, ledger, int8."""
